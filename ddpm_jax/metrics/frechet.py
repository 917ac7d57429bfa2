"""The Fréchet distance between two sets of vectors, each as a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    d^2 = |mean_a - mean_b|^2 + Tr(C_a) + Tr(C_b) - 2 Tr((C_a C_b)^(1/2))

On Inception features it is the FID; on the pixels of small gray images it needs no network.

The last trace needs no matrix square root. With C_a = A A^T and C_b = B B^T, the eigenvalues of C_a C_b are those of
(A^T B)(A^T B)^T: the squares of the singular values of A^T B. So

    Tr((C_a C_b)^(1/2)) = sum of the singular values of A^T B,

which is as accurate as the covariances, also if they are singular (constant pixels, fewer vectors than dimensions). The
square root of an eigenvalue of the product would turn a rounding error of 1e-16 into 1e-8, once per missing dimension.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg.lapack

from ddpm_jax.runtime.errors import InvalidDataError

# Largest element of C - A A^T, relative to the largest of C, up to which the triangular factor A is accepted.
FACTOR_TOLERANCE = 1e-10


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] (divided by N - 1) of a set of vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian of features [N, D], N at least 2. `moments.Moments` does it in batches.

    Raises:
      InvalidDataError: fewer than two vectors, or a value that is not finite.
      ValueError: wrong shape.
    """
    features = check_features(features).astype(np.float64)
    check_enough(len(features))
    mean = features.mean(axis=0)
    centered = features - mean
    return Gaussian(mean, centered.T @ centered / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The equation above; at least 0, in squared units of the features. Symmetric up to rounding.

    A Gaussian has distance 0 to itself within 1e-12 of its trace. With D = 2048 it takes seconds.

    Raises:
      InvalidDataError: vectors of different dimension, or a value that is not finite.
      ValueError: a covariance that is not [D, D].
    """
    for gaussian in (a, b):
        size = gaussian.mean.size
        if gaussian.mean.ndim != 1 or gaussian.covariance.shape != (size, size):
            raise ValueError(f"mean {gaussian.mean.shape} and covariance {gaussian.covariance.shape} are not [D] and [D, D]")
        if not (np.isfinite(gaussian.mean).all() and np.isfinite(gaussian.covariance).all()):
            raise InvalidDataError("a mean or covariance has a value that is not finite: compute the statistics again")
    check_dimensions(a.mean.size, b.mean.size)
    cross = _factor(a.covariance).T @ _factor(b.covariance)
    trace_of_root = np.linalg.svd(cross, compute_uv=False).sum() if cross.size else 0.0
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root
    return max(0.0, float(distance))


def check_features(features: np.ndarray) -> np.ndarray:
    """Returns `features` if they are finite real numbers [N, D].

    Raises:
      InvalidDataError: a value that is not finite.
      ValueError: wrong shape, or not numeric.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in "fiub":
        raise ValueError(f"features must be numbers [N, D], not {features.dtype} {list(features.shape)}")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InvalidDataError(
            f"the features of {np.sum(~finite):,} of {len(features):,} images are not finite, first those of image "
            f"{int(np.argmin(finite))}: check that image and the weights of the feature network"
        )
    return features


def check_enough(count: int) -> None:
    """Raises InvalidDataError for fewer than two vectors."""
    if count < 2:
        raise InvalidDataError(
            f"{count} image{'s' * (count != 1)} of features: a covariance needs at least 2; measure more images"
        )


def check_dimensions(a: int, b: int) -> None:
    """Raises InvalidDataError if two sets have vectors of different size."""
    if a != b:
        raise InvalidDataError(
            f"features of {a:,} and of {b:,} dimensions cannot be compared: "
            "use the same feature extractor and image size for both"
        )


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A [D, rank] with A A^T = covariance [D, D], symmetric and, up to rounding, without negative eigenvalues."""
    largest = np.abs(covariance).max(initial=0.0)
    if not largest:
        return np.zeros((len(covariance), 0))
    # Pivoted Cholesky takes a tenth of the time of eigenvectors. It stops when only rounding error is left.
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance / largest, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    if np.abs(factor @ factor.T - covariance / largest).max() > FACTOR_TOLERANCE:
        # Then C has negative eigenvalues, for example from rounding to float32, and Cholesky amplifies the rounding.
        values, vectors = np.linalg.eigh(covariance / largest)
        kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
        factor = vectors[:, kept] * np.sqrt(values[kept])
    return factor * np.sqrt(largest)
