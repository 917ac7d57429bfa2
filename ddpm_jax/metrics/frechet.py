"""The Fréchet distance between two sets of vectors, each seen as a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

On Inception features it is the FID; on the pixels of small grey images it is a number that takes no network.
"""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] (divided by N - 1) of a set of vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Features [N, D], N at least 2, to their Gaussian.

    Raises:
      ValueError: another shape, fewer than two vectors, or a value that is not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be [N, D] with N at least 2, not {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError("features hold a value that is not finite")
    mean = features.mean(axis=0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)); at least 0, in squared units of the features.

    C_a C_b has the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: both roots come from eigenvalues of
    symmetric matrices, which exist where covariances are singular too (pixels that never change, fewer vectors than
    dimensions), unlike a general matrix root.

    Raises:
      ValueError: vectors of different dimension.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.size} and of {b.mean.size} dimensions cannot be compared")
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))  # C_a = root root^T: as good a root as the symmetric one
    cross = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    trace_of_root = np.sqrt(np.maximum(cross, 0)).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root
    return max(0.0, float(distance))
