"""The kernel distance between two sets of vectors: KID on Inception features (Bińkowski et al. 2018, arXiv 1801.01401).

The squared maximum mean discrepancy under the kernel k(x, y) = (x·y / D + 1)³. Its unbiased estimate is 0 on average
for two samples of one distribution whatever their number, unlike the Fréchet distance.
"""

from typing import NamedTuple

import numpy as np


class KernelDistance(NamedTuple):
    """Mean over subsets, its standard error, and how many subsets of how many vectors were drawn."""

    mean: float
    standard_error: float
    subsets: int
    subset_size: int


def kernel_distance(a: np.ndarray, b: np.ndarray, *, seed: int, subsets: int = 100, subset_size: int = 1000) -> KernelDistance:
    """The kernel distance of features [N, D] and [M, D]; may be a little below 0.

    Each subset is drawn without replacement from each set. Where a set has fewer vectors than subset_size, subsets have
    half of the smaller set, so that they still differ. The standard error is over subsets, which overlap: of other
    samples the distance may differ by more.

    Raises:
      ValueError: shapes that do not match, fewer than 4 vectors, or a value that is not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"vectors must be [N, D] and [M, D], not {list(a.shape)} and {list(b.shape)}")
    smaller = min(len(a), len(b))
    if smaller < 4 or subsets < 2:
        raise ValueError(f"{smaller} vectors and {subsets} subsets are too few: at least 4 and 2 are needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features hold a value that is not finite")
    size = subset_size if subset_size <= smaller else smaller // 2
    random = np.random.default_rng(seed)
    values = [
        unbiased_mmd(*(np.asarray(x[random.choice(len(x), size, replace=False)], np.float64) for x in (a, b)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(subsets)), subsets, size)


def unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased estimate of the squared MMD of float64 [n, D] and [m, D]: no vector is compared with itself."""

    def within(x: np.ndarray) -> float:
        kernel = _kernel(x, x)
        return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * _kernel(a, b).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
