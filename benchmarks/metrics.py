"""How much time and memory do the metrics need, given the features? Uses random vectors, no images and no network.

python benchmarks/metrics.py                                   # 50,000 of 2,048: an FID; 10,000 for kid, precision and recall
python benchmarks/metrics.py --num=2000 --dimension=64 --kept=500

Prints wall-clock seconds, CPU seconds of all cores (more reliable on a shared machine), and the peak memory of the process
so far, including the vectors.
"""

import argparse
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax.metrics.feature_set import accumulate_features
from ddpm_jax.metrics.features import Features
from ddpm_jax.metrics.frechet import frechet_distance
from ddpm_jax.metrics.kid import kernel_distance
from ddpm_jax.metrics.precision_recall import Manifold

BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=50_000, help="vectors of each set")
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--kept", type=int, default=10_000, help="of each set for kid, precision and recall; 0 for all")
    options = parser.parse_args()
    print(f"two sets of {options.num:,} vectors of {options.dimension:,}, {options.kept:,} of them kept")
    print(f"{'':32} {'seconds':>8} {'of cores':>9} {'memory, GiB':>12}")
    real, generated = (
        timed(
            f"moments and choice, {name}",
            lambda shift=shift: accumulate_features(parts(options, shift), options.num, options.kept),
        )
        for name, shift in (("real", 0.0), ("generated", 0.1))
    )
    timed("Fréchet distance", lambda: frechet_distance(real.gaussian, generated.gaussian))
    timed("KID", lambda: kernel_distance(real.features, generated.features))
    manifold = timed("neighbors of the real", lambda: Manifold(real.features))
    timed("precision and recall", lambda: manifold.compare(generated.features))


def parts(options: argparse.Namespace, shift: float) -> Iterator[Features]:
    """Vectors whose standard deviation decreases over the dimensions, as for features; batch by batch."""
    rng = np.random.default_rng(0)
    spread = np.exp(-np.arange(options.dimension) / (options.dimension / 7)).astype(np.float32)
    for first in range(0, options.num, BATCH):
        size = (min(BATCH, options.num - first), options.dimension)
        yield Features(rng.standard_normal(size, dtype=np.float32) * spread + np.float32(shift))


def timed(name: str, work: Callable[[], object]) -> object:
    """What `work` gives; prints what it took."""
    passed, cores = time.perf_counter(), time.process_time()
    result = work()
    passed, cores = time.perf_counter() - passed, time.process_time() - cores
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:32} {passed:8.1f} {cores:9.1f} {memory:12.2f}", flush=True)
    return result


if __name__ == "__main__":
    main()
