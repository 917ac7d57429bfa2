"""The Kernel Inception Distance (Bińkowski et al. 2018, arXiv 1801.01401): how far apart two sets lie, up to third moments.

It is the squared maximum mean discrepancy under the kernel k(x, y) = (x·y / D + 1)^3. From m vectors x and n vectors y
(eq. 4 of Gretton et al. 2012, whose expectation is the true one at any m and n):

    MMD^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean over i, j of k(x_i, y_j)

Without bias means that it does not fall as the sets grow, as FID does, and that it falls below 0 half of the time where the
two distributions are the same. To save time it is the mean over subsets of both sets, drawn with a seed.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.metrics.frechet import check_dimensions, check_features
from ddpm_jax.runtime.errors import InvalidDataError

MIN_SAMPLES = 4  # vectors of a set: two for a subset, which is at most half of the set
SEED = 2020  # torch-fidelity's: with it and subsets of the same size, both draw the same


class KernelDistance(NamedTuple):
    """The distance, and what was drawn for it.

    Attributes:
      mean: over the subsets; the distance. Without bias, so it may be negative.
      standard_error: of `mean` as an estimate from two finite sets; the true distance lies within two of it 19 times of 20.
      std: of the subsets' distances (divided by their number): what other tools print behind the ±. It is no error of the mean.
      num_subsets: pairs of subsets drawn.
      subset_size: vectors in each, drawn without replacement; each pair anew from the whole sets.
      seed: of the drawing.
    """

    mean: float
    standard_error: float
    std: float
    num_subsets: int
    subset_size: int
    seed: int


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = SEED
) -> KernelDistance:
    """KID of features [N, D] and [M, D], float64 inside.

    The order of the two sets decides which subsets are drawn. With generated images first and real ones second, as
    --mode=evaluate passes them, they are torch-fidelity's subsets of input1 and input2; the other order differs by chance.

    Where the smaller set has less than 2,000 vectors, subsets are half of it: nothing is left to compare between subsets
    that share most of their vectors. The expectation is the same at any size.

    The standard error counts both what the subsets leave to chance and what the sets themselves do. With s^2 the
    variance over subsets of m out of N vectors (the smaller set), it is s^2 (1 / num_subsets + (m / N) / (1 - m / N)): a mean
    over all vectors varies m / N as much as one over a subset, and subsets of one set 1 - m / N as much as independent
    ones. Where both distributions are the same it is too large, by a factor of up to about 3.

    Raises:
      InvalidDataError: fewer than 4 vectors, other dimensions, or a value that is not finite.
      ValueError: another shape, num_subsets below 2, or subset_size below 2.
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
    rng = np.random.RandomState(seed)  # unlike Generator, it promises the same numbers from every NumPy version
    distances = np.array(
        [squared_mmd(a[_subset(rng, len(a), size)], b[_subset(rng, len(b), size)]) for _ in range(num_subsets)]
    )
    share = size / smaller
    standard_error = distances.std(ddof=1) * np.sqrt(1 / num_subsets + share / (1 - share))
    return KernelDistance(float(distances.mean()), float(standard_error), float(distances.std()), num_subsets, size, seed)


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The equation above for all of x [m, D] and y [n, D], at least two each, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # a power would go through logarithms


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def _subset(rng: np.random.RandomState, count: int, size: int) -> np.ndarray:
    return rng.choice(count, size, replace=False)
