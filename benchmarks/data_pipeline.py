"""Is the data pipeline fast enough? Images/s of the pipeline alone and of the training step in the same run.

python benchmarks/data_pipeline.py --config=digits
python benchmarks/data_pipeline.py --config=cifar10 --batch_size=8 --data_dir=PATH

The pipeline runs as in training, including the transfer to the device, but the batches are not used.

With --sizes: images/s of reading alone, from a folder of JPEGs and from the set that `ddpm-jax prepare` makes of it
(ArrayRecord), by threads and by processes, and per second of a CPU core, which depends less on other programs of the machine.

python benchmarks/data_pipeline.py --sizes 64 256
"""

import contextlib
import itertools
import os
import pathlib
import resource
import tempfile
import time

import common
import numpy as np
from PIL import Image
from train_step import our_step

from ddpm_jax import data_config
from ddpm_jax.data import device_prefetch, image_folder, pipeline, prepare, prepare_target, prepared
from ddpm_jax.data.source import ImageSource
from ddpm_jax.runtime import mesh as meshes


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data_dir", default="", help="folder of the TFDS sets, or the image folder")
    parser.add_argument("--in_memory", choices=data_config.IN_MEMORY, help="instead of the config's")
    parser.add_argument("--sizes", type=int, nargs="+", help="measure reading alone, of images of these sizes")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="with --sizes: values of data.num_workers")
    parser.add_argument(
        "--images", type=int, default=500, help="with --sizes: photographs that are generated without --data_dir"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="with --sizes: how long a round takes")
    options = parser.parse_args()
    if options.sizes:
        measure_reading(options)
        return
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


def measure_reading(options) -> None:
    """Prints a table of reading rates."""
    batch_size = options.batch_size or 128
    with tempfile.TemporaryDirectory() as folder:
        photographs = options.data_dir or str(write_photographs(pathlib.Path(folder) / "photographs", options.images))
        print(f"{common.machine()}; batches of {batch_size}, data.num_threads=4; without a device; fastest of {options.rounds}")
        print(f"{'images':22} {'pixels':>8} {'num_workers':>12} {'images/s':>12} {'images/s per core':>18} {'MB/s':>8}")
        for size in options.sizes:
            target = f"{folder}/{size}"
            prepare.prepare(photographs, target, prepare_target.Settings(size))
            common_options = {"in_memory": False, "num_threads": 4}
            sources = {
                "folder": image_folder.load_image_folder(
                    photographs, image_size=size, channels=3, cache_dir=f"{folder}/cache", **common_options
                ),
                "prepared (ArrayRecord)": prepared.load_prepared("train", folder=target, **common_options),
            }
            for (name, source), num_workers in itertools.product(sources.items(), options.workers):
                rounds = [reading_rates(source, batch_size, num_workers, options.seconds) for _ in range(options.rounds)]
                rate, per_core = map(max, zip(*rounds, strict=True))
                print(
                    f"{name:22} {size:4}x{size:<4} {num_workers:11} {rate:12,.0f} {per_core:18,.0f} "
                    f"{rate * size * size * 3 / 1e6:8,.0f}",
                    flush=True,
                )


def reading_rates(source: ImageSource, batch_size: int, num_workers: int, seconds: float) -> tuple[float, float]:
    """Images/s, and images per second of CPU time of all threads and processes."""
    with contextlib.closing(pipeline.batches(source, batch_size=batch_size, seed=0, num_workers=num_workers)) as iterator:
        for _ in range(10):  # more than are prefetched before the first one is taken
            next(iterator)
        start, cpu, number = time.perf_counter(), cpu_seconds(), 0
        while number < 4 or time.perf_counter() - start < seconds:
            next(iterator)
            number += 1
        images = number * batch_size
        return images / (time.perf_counter() - start), images / max(cpu_seconds() - cpu, 1e-9)


def cpu_seconds() -> float:
    """CPU time of this process and, on Linux, of the processes that it has started."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    ticks = 0
    for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return usage.ru_utime + usage.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def write_photographs(folder: pathlib.Path, number: int) -> pathlib.Path:
    """JPEGs of 400x300 pixels: noise in three scales, of about 60 KB each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(number):
        picture = np.zeros((300, 400, 3))
        for scale in (4, 25, 100):
            noise = random.integers(0, 256, (300 // scale + 1, 400 // scale + 1, 3), dtype=np.uint8)
            picture += np.asarray(Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC), float) / 3
        Image.fromarray(picture.round().astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
