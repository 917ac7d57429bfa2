"""Accumulates the features of an image set: mean and covariance of all, a subsample of the features, and the logits.

The pixel features of CIFAR-10 take 600 MB, and a nearest-neighbor search among 50,000 vectors takes twenty times as long as
among 10,000. KID, precision and recall therefore use a random subsample with a fixed seed.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from ddpm_jax.metrics.features import Features
from ddpm_jax.metrics.frechet import Gaussian, check_dimensions, check_features
from ddpm_jax.metrics.moments import Moments

CHOICE_SEED = 0


class FeatureSet(NamedTuple):
    """Features of N images.

    Attributes:
      count: N.
      gaussian: mean and covariance of all features, or None if not requested.
      features: float32 [M, D], the subsample, in the order of the images.
      logits: float32 [N, K], or None.
      spatial: mean and covariance of all spatial features, or None if not requested.
    """

    count: int
    gaussian: Gaussian | None
    features: np.ndarray
    logits: np.ndarray | None
    spatial: Gaussian | None = None


class Exchange(Protocol):
    """What `accumulate_features` needs of `ddpm_jax.runtime.exchange`."""

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of all processes."""
        ...

    def concatenate(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes."""
        ...

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum over the processes."""
        ...


def accumulate_features(
    parts: Iterable[Features],
    count: int,
    kept: int,
    *,
    own: range | None = None,
    exchange: Exchange | None = None,
    gaussian: bool = True,
    logits: bool = False,
    spatial: bool = False,
) -> FeatureSet:
    """Accumulates the features of `count` images, batch by batch.

    Args:
      parts: features of `count` images in total, or of those of `own`.
      count: N, at least 1.
      kept: number of feature vectors to keep; 0 for all.
      own: the indices of the images in `parts`, the part of this process; None for all.
      exchange: exchanges arrays between the processes, which all call this and get the same: sums for the moments, and the
        features that are kept.
      gaussian: whether to compute mean and covariance: D^2 numbers, and as many operations per image.
      logits: whether to keep the logits.
      spatial: whether to compute mean and covariance of the spatial features.

    Raises:
      InvalidDataError: a value that is not finite, or fewer than two images with `gaussian`.
      ValueError: missing logits with `logits`, missing spatial features with `spatial`, or a different number of images.
    """
    images = range(count) if own is None else own
    indices, moments, spatial_moments, done, filled = subsample_indices(count, kept), Moments(), Moments(), 0, 0
    indices = indices[np.searchsorted(indices, images.start) : np.searchsorted(indices, images.stop)] - images.start
    features, all_logits = np.zeros((0, 0), np.float32), [np.zeros((0, 0), np.float32)]
    for vectors, own_logits, own_spatial in parts:
        vectors = check_features(vectors)
        if not done:
            features = np.empty((len(indices), vectors.shape[1]), np.float32)
        check_dimensions(features.shape[1], vectors.shape[1])
        if gaussian:
            moments.update(vectors)
        here = indices[filled : np.searchsorted(indices, done + len(vectors))] - done
        features[filled : filled + len(here)] = vectors[here]
        filled, done = filled + len(here), done + len(vectors)
        if logits:
            if own_logits is None:
                raise ValueError("these features come without logits: leave inception_score out of `metrics`")
            all_logits.append(own_logits)
        if spatial:
            if own_spatial is None:
                raise ValueError("these features come without spatial ones: leave sfid out of `metrics`, or use inception")
            spatial_moments.update(own_spatial)
    if done != len(images):
        raise ValueError(f"features of {done} images, expected {len(images)}")
    own_logits = np.concatenate(all_logits[1:] or all_logits) if logits else None
    if exchange is not None:
        features = exchange.concatenate(features)
        moments = _merged(moments, exchange) if gaussian else moments
        spatial_moments = _merged(spatial_moments, exchange) if spatial else spatial_moments
        own_logits = exchange.concatenate(own_logits) if own_logits is not None else None
    fitted, fitted_spatial = moments.gaussian() if gaussian else None, spatial_moments.gaussian() if spatial else None
    return FeatureSet(count, fitted, features, own_logits, fitted_spatial)


def _merged(moments: Moments, exchange: Exchange) -> Moments:
    """The moments of the vectors of all processes. Exchanges means, then the sum of D x D matrices."""
    counts = np.concatenate(exchange.gather(np.array([moments.count])))
    if len(counts) == 1:
        return moments
    means = exchange.concatenate(moments.mean[None] if moments.count else np.zeros((0, 0)))
    mean = (counts[counts > 0] / counts.sum()) @ means
    return Moments.of_union(int(counts.sum()), mean, exchange.total(moments.scatter_about(mean)))


def subsample_indices(count: int, kept: int) -> np.ndarray:
    """int [min(count, kept)], ascending: indices of the images to keep, all if `kept` is 0. Deterministic."""
    if not kept or count <= kept:
        return np.arange(count)
    # Unlike Generator, RandomState returns the same numbers in every NumPy version.
    return np.sort(np.random.RandomState(CHOICE_SEED).permutation(count)[:kept])
