"""How long does a start of a large folder of images take? Its first reading, and a later start, which finds its files known.

python benchmarks/folder_start.py --files 20000
python benchmarks/folder_start.py --files 3000000 --made_up --dir=/scratch

The files are hard links of 1,000 JPEGs of 64x64 pixels, in folders of classes. CPU time depends less on other programs of the
machine than seconds do. Each start is a process of its own, for its peak of memory.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from ddpm_jax.data import image_folder

ORIGINALS = 1000
OPTIONS = {"image_size": 64, "channels": 3, "in_memory": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--folders", type=int, default=1000, help="number of classes")
    parser.add_argument("--made_up", action="store_true", help="a manifest with made-up digests, instead of the first reading")
    parser.add_argument("--dir", help="folder for the files, which are removed at the end")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        measure_start(*options.start)
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        photographs, cache = f"{folder}/photographs", f"{folder}/cache"
        make_files(pathlib.Path(folder), options.files, options.folders)
        if options.made_up:
            make_up_manifest(photographs, cache)
        for title in ("later start",) if options.made_up else ("first reading", "later start"):
            command = [sys.executable, __file__, "--start", photographs, cache]
            print(f"{title:14}", subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def make_files(folder: pathlib.Path, number: int, classes: int) -> None:
    """`number` links in photographs/, in so many folders."""
    (folder / "originals").mkdir()
    random = np.random.default_rng(0)
    for index in range(ORIGINALS):
        noise = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        noise.resize((64, 64), Image.Resampling.BICUBIC).save(folder / "originals" / str(index), "JPEG", quality=90)
        os.utime(folder / "originals" / str(index), (time.time() - 3600,) * 2)  # files that were just written are read twice
    for first in range(classes):
        name = f"n{first:08}"
        (folder / "photographs" / name).mkdir(parents=True)
        for index in range(first, number, classes):
            os.link(
                folder / "originals" / str(index // classes % ORIGINALS), folder / "photographs" / name / f"{name}_{index}.JPEG"
            )


def make_up_manifest(photographs: str, cache: str) -> None:
    """A manifest that knows all files."""
    first = image_folder.open_first_reading(photographs, split="train", background="white", cache_dir=cache, **OPTIONS)
    manifest = first.open_manifest(None)
    count = len(manifest.read)
    manifest.facts.digests[:] = np.frombuffer(np.random.default_rng(0).bytes(32 * count), np.uint8).reshape(count, 32)
    manifest.facts.most[:], manifest.read[:] = 255, True
    manifest.save()


def measure_start(photographs: str, cache: str) -> None:
    """Prints what the start of a training does with the folder."""
    start, cpu = time.perf_counter(), time.process_time()
    source = image_folder.load_image_folder(photographs, num_threads=4, cache_dir=cache, **OPTIONS)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # KB on Linux
    print(f"{len(source):,} files: {seconds:.1f} s, CPU {cpu:.1f} s, {len(source) / cpu:,.0f} files/s per core, {peak:.2f} GB")


if __name__ == "__main__":
    main()
