"""How fast is Inception? Images/s of evaluation.features=inception, including the resize.

python benchmarks/features.py --config=cifar10                                  # random pixels, random weights
python benchmarks/features.py --config=cifar10 --against=torch                  # pip install torch torchvision pytorch-fid
python benchmarks/features.py --config=cifar10 --stream=2000 --data_dir=PATH    # the set's own images, as in an evaluation

With --against=torch, pytorch-fid's network runs on the same uint8 images in alternating rounds, with its own resize to
299x299, in both of PyTorch's memory formats; a ratio above 1 means that ours is faster. Speed does not depend on the weights.
"""

import functools
import resource
import time

import common
import jax
import numpy as np
import random_inception

from ddpm_jax import build, cpu, data_config
from ddpm_jax.evaluation import feature_extraction
from ddpm_jax.metrics import features, inception, inception_weights
from ddpm_jax.runtime import mesh as meshes


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--against", choices=["torch"], help="measure this beside ours")
    parser.add_argument(
        "--stream", type=int, default=0, help="so many images of the config's data set, through feature_extraction.extract"
    )
    parser.add_argument("--data_dir", default="", help="where TFDS sets are, or the image folder")
    options = parser.parse_args()
    config = common.load_config(options)
    batch_size = options.batch_size or meshes.images_per_batch(config.evaluation.batch_size)
    state = random_inception.random_state_dict(0)
    variables = inception_weights.from_state_dict(state)
    print(f"{common.machine()}; images of {options.config}, batch {batch_size}")
    if options.stream:
        config.data.data_dir = options.data_dir
        stream(config, variables, options.stream, batch_size)
        return

    images = np.random.default_rng(0).integers(0, 256, (batch_size, *build.image_shape(config)), dtype=np.uint8)
    network = functools.partial(inception.apply, group_size=cpu.inception_group_size())
    apply, placed = jax.jit(network), jax.device_put(variables)
    flops = common.count_flops(network, placed, images)
    ceiling_matmul, ceiling_flops = common.matmul(np.float32)
    work = {"ddpm_jax": common.in_process(lambda: jax.block_until_ready(apply(placed, images)))}
    if options.against:
        work |= common.against_torch("torch_inception", "extractor", state, images)
    rows = common.seconds(work | {"ceiling": ceiling_matmul}, options.rounds)
    ceiling = ceiling_flops / rows.pop("ceiling")
    print(f"{flops / batch_size / 1e9:,.1f} GFLOP per image, counted in the program; median of {options.rounds}")
    better = min((name for name in rows if name.startswith("torch")), key=rows.get, default=None)
    common.table(rows, batch_size, flops, ceiling, better)
    if better:
        print(f"ddpm_jax is {rows[better] / rows['ddpm_jax']:.2f}x {better}")


def stream(config, variables, number: int, batch_size: int) -> None:
    """Times the features of the first images of a data set, as in an evaluation; compilation is reported separately."""
    source = data_config.load_source(config)
    number = min(number, len(source))
    batches = (source.batch(np.arange(i, min(i + batch_size, number)))["image"] for i in range(0, number, batch_size))
    apply = functools.partial(features.apply_inception, group_size=cpu.inception_group_size())
    extractor = features.FeatureExtractor("inception", apply, {}, variables)
    begin, marks = time.perf_counter(), []
    for part in feature_extraction.extract(extractor, meshes.make_mesh(), batches, batch_size=batch_size):
        marks.append((time.perf_counter(), len(part.features)))
    print(f"{number:,} images of {source.name} {source.split}; the first {marks[0][1]} after {marks[0][0] - begin:.1f} s")
    if len(marks) > 1:
        counted = sum(count for _, count in marks[1:])
        print(f"{'the others':26} {counted / (marks[-1][0] - marks[0][0]):12,.1f} images/s")
    print(f"{'peak memory of the process':26} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:12,.2f} GiB")


if __name__ == "__main__":
    main()
