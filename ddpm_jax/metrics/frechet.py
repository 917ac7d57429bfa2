"""The Fréchet distance between two sets of vectors, each seen as a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    d^2 = |mean_a - mean_b|^2 + Tr(C_a) + Tr(C_b) - 2 Tr((C_a C_b)^(1/2))

On Inception features it is the FID; on the pixels of small grey images it is a number that takes no network.

The last trace needs no matrix root. With C_a = A A^T and C_b = B B^T, the eigenvalues of C_a C_b are those of
(A^T B)(A^T B)^T: the squares of the singular values of A^T B. So

    Tr((C_a C_b)^(1/2)) = sum of the singular values of A^T B,

which exists, and is as accurate as the covariances are, where these are singular too (pixels that never change, fewer
vectors than dimensions). Eigenvalues of the product would first have to be rooted, and a rounding error of 1e-16
becomes one of 1e-8 by that, once for each dimension that is missing.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg.lapack

from ddpm_jax.runtime.errors import InvalidDataError

# Largest element of C - A A^T, in units of the largest of C, with which the triangular factor A counts as one of C.
FACTOR_TOLERANCE = 1e-10


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] (divided by N - 1) of a set of vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Features [N, D], N at least 2, to their Gaussian. `statistics.Moments` does it in batches.

    Raises:
      InvalidDataError: fewer than two vectors, or a value that is not finite.
      ValueError: another shape.
    """
    features = check_features(features).astype(np.float64)
    check_enough(len(features))
    mean = features.mean(axis=0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The equation above; at least 0, in squared units of the features. Symmetric up to rounding.

    From itself a Gaussian is at 0 within 1e-12 of its trace. With D = 2048 it takes seconds.

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
    """`features` as they are, if they are finite real numbers [N, D].

    Raises:
      InvalidDataError: a value that is not finite.
      ValueError: another shape, or no numbers.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in "fiub":
        raise ValueError(f"features must be numbers [N, D], not {features.dtype} {list(features.shape)}")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InvalidDataError(
            f"the features of {np.sum(~finite):,} of {len(features):,} images are not finite, first those of number "
            f"{int(np.argmin(finite))}: look at that image, and at the weights of the feature network"
        )
    return features


def check_enough(count: int) -> None:
    """Raises InvalidDataError for fewer than two vectors."""
    if count < 2:
        raise InvalidDataError(
            f"{count} image{'s' * (count != 1)} of features: a covariance needs at least 2; measure more images"
        )


def check_dimensions(a: int, b: int) -> None:
    """Raises InvalidDataError where two sets have vectors of different size."""
    if a != b:
        raise InvalidDataError(
            f"features of {a:,} and of {b:,} dimensions cannot be compared: "
            "take the same feature extractor and image size for both"
        )


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A [D, rank] with A A^T = covariance [D, D], symmetric and, up to rounding, without negative eigenvalues."""
    largest = np.abs(covariance).max(initial=0.0)
    if not largest:
        return np.zeros((len(covariance), 0))
    # Cholesky with pivots, a tenth of the time of eigenvectors. It ends where nothing but rounding is left.
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance / largest, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    if np.abs(factor @ factor.T - covariance / largest).max() > FACTOR_TOLERANCE:
        # Not without negative eigenvalues then: rounded to float32, say. There Cholesky multiplies the rounding.
        values, vectors = np.linalg.eigh(covariance / largest)
        kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
        factor = vectors[:, kept] * np.sqrt(values[kept])
    return factor * np.sqrt(largest)
