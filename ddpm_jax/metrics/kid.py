"""The Kernel Inception Distance (Bińkowski et al. 2018, arXiv 1801.01401): compares two sets up to third moments.

It is the squared maximum mean discrepancy under the kernel k(x, y) = (x·y / D + 1)^3. From m vectors x and n vectors y
(eq. 4 of Gretton et al. 2012, whose expectation is the true one at any m and n):

    MMD^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean over i, j of k(x_i, y_j)

The estimate is unbiased: unlike FID it does not decrease as the sets grow, and it is negative about half of the time if the
two distributions are equal. To save time it is the mean over random subsets of both sets, with a fixed seed.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.metrics.frechet import check_dimensions, check_features
from ddpm_jax.runtime.errors import InvalidDataError

MIN_SAMPLES = 4  # vectors per set: two for a subset, which is at most half of the set
SEED = 2020  # as torch-fidelity, so that both use the same subsets if the subset size is the same


class KernelDistance(NamedTuple):
    """The distance and how it was estimated.

    Attributes:
      mean: the distance, a mean over the subsets. Unbiased, so it may be negative.
      standard_error: of `mean` as an estimate from two finite sets; the true distance is within two of them 19 times of 20.
      std: population standard deviation over the subsets, which other tools print after the ±. Not an error of the mean.
    """

    mean: float
    standard_error: float
    std: float


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = SEED
) -> KernelDistance:
    """KID of features [N, D] and [M, D], float64 inside.

    The order of the two sets determines the subsets, which are sampled without replacement. With generated images first and
    real ones second they are torch-fidelity's subsets of input1 and input2; the other order differs by chance.

    If the smaller set has fewer than 2,000 vectors, a subset is half of it: larger subsets would share most of their
    vectors. The expectation is the same at any size.

    The standard error covers both the choice of subsets and the finite sets themselves. With s^2 the variance over subsets of
    m out of N vectors (the smaller set), it is s^2 (1 / num_subsets + (m / N) / (1 - m / N)): a mean over all vectors varies
    m / N as much as one over a subset, and subsets of one set 1 - m / N as much as independent ones. If both distributions
    are equal, it is too large by a factor of up to about 3.

    Raises:
      InvalidDataError: fewer than 4 vectors, different dimensions, or a value that is not finite.
      ValueError: wrong shape, num_subsets below 2, or subset_size below 2.
    """
    a, b = check_features(a), check_features(b)
    check_dimensions(a.shape[1], b.shape[1])
    if num_subsets < 2 or subset_size < 2:
        raise ValueError(f"num_subsets {num_subsets} and subset_size {subset_size} must both be at least 2")
    smaller = min(len(a), len(b))
    if smaller < MIN_SAMPLES:
        raise InvalidDataError(
            f"a kernel distance needs at least {MIN_SAMPLES} images in each set, not {smaller}; measure more images"
        )
    size = min(subset_size, smaller // 2)
    rng = np.random.RandomState(seed)  # unlike Generator, the same numbers in every NumPy version
    distances = np.array(
        [squared_mmd(a[_subset(rng, len(a), size)], b[_subset(rng, len(b), size)]) for _ in range(num_subsets)]
    )
    fraction = size / smaller
    standard_error = distances.std(ddof=1) * np.sqrt(1 / num_subsets + fraction / (1 - fraction))
    return KernelDistance(float(distances.mean()), float(standard_error), float(distances.std()))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The equation above for all of x [m, D] and y [n, D], at least two each, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # faster than a power, which uses logarithms


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def _subset(rng: np.random.RandomState, count: int, size: int) -> np.ndarray:
    return rng.choice(count, size, replace=False)
