"""Is the data pipeline fast enough? Images/s of the pipeline alone and of the training step in the same run.

python benchmarks/data_pipeline.py --config=digits
python benchmarks/data_pipeline.py --config=cifar10 --batch_size=8 --data_dir=PATH

The pipeline runs as in training, including the transfer to the device, but the batches are not used.
"""

import time

import common
from train_step import our_step

from ddpm_jax import data_config
from ddpm_jax.data import device_prefetch, pipeline
from ddpm_jax.runtime import mesh as meshes


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data_dir", default="", help="folder of the TFDS sets, or the image folder")
    parser.add_argument("--in_memory", choices=data_config.IN_MEMORY, help="instead of the config's")
    options = parser.parse_args()
    config = common.load_config(options)
    config.data.data_dir = options.data_dir
    config.data.in_memory = options.in_memory or config.data.in_memory
    batch_size = config.train.batch_size

    mesh = meshes.make_mesh()
    start = time.perf_counter()
    source = data_config.load_source(config)
    print(f"{len(source):,} images of {source.name} ready after {time.perf_counter() - start:.1f} s")
    stream = device_prefetch.prefetch_to_device(
        pipeline.batches(
            source,
            batch_size=batch_size,
            seed=config.seed,
            num_threads=config.data.num_threads,
            prefetch=config.data.prefetch,
        ),
        meshes.batch_sharding(mesh),
    )
    step, _, _ = our_step(config, next(stream))
    # Batches prefetched during the step's round are soon used up: a round takes long enough for hundreds of batches.
    work = {"input": common.in_process(lambda: next(stream)["image"].block_until_ready()), "step": common.in_process(step)}
    rows = common.seconds(work, options.rounds, 2.0)
    stream.close()

    print(f"{common.machine()}; {options.config}, batch {batch_size}, median of {options.rounds}")
    for name, what in (("input", "the pipeline delivers"), ("step", "the training step takes")):
        print(f"{what:26} {batch_size / rows[name]:12,.1f} images/s")
    print(f"{'ratio':26} {rows['step'] / rows['input']:12,.1f}x")


if __name__ == "__main__":
    main()
