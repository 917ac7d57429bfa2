"""What is kept of a set's features as they pass: mean and covariance of all, some of the features, the logits.

All features of CIFAR-10 in pixels are 600 MB, and the nearest neighbours among 50,000 take twenty times as long to find as
among 10,000. So the kernel distance and precision and recall look at a choice, drawn with a seed from the whole set.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ddpm_jax.metrics.features import Features
from ddpm_jax.metrics.frechet import Gaussian, check_dimensions, check_features
from ddpm_jax.metrics.moments import Moments

CHOICE_SEED = 0


class FeatureSet(NamedTuple):
    """Of N images.

    Attributes:
      count: N.
      gaussian: mean and covariance of all features; None where nobody asked.
      features: float32 [M, D], those chosen, in the order of the images.
      logits: float32 [N, K], or None.
    """

    count: int
    gaussian: Gaussian | None
    features: np.ndarray
    logits: np.ndarray | None


def accumulate_features(
    parts: Iterable[Features], count: int, kept: int, *, gaussian: bool = True, logits: bool = False
) -> FeatureSet:
    """Go through the features of `count` images, batch by batch.

    Args:
      parts: of as many images together.
      count: N, at least 1.
      kept: how many features to keep; 0 for all.
      gaussian: whether mean and covariance are wanted: D^2 numbers, and as many operations for each image.
      logits: whether the logits are.

    Raises:
      InvalidDataError: a value that is not finite, or fewer than two images where mean and covariance are wanted.
      ValueError: no logits where they are wanted, or another number of images.
    """
    indices, moments, done, filled = subsample_indices(count, kept), Moments(), 0, 0
    features, all_logits = np.zeros((0, 0), np.float32), []
    for vectors, own_logits in parts:
        vectors = check_features(vectors)
        if not features.size:
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
    if done != count:
        raise ValueError(f"features of {done} images, where {count} were announced")
    fitted = moments.gaussian() if gaussian else None
    return FeatureSet(count, fitted, features, np.concatenate(all_logits) if logits else None)


def subsample_indices(count: int, kept: int) -> np.ndarray:
    """int [min(count, kept)], ascending: which of `count` images are kept; all where `kept` is 0. The same at every call."""
    if not kept or count <= kept:
        return np.arange(count)
    # Unlike Generator, it promises the same numbers from every NumPy version.
    return np.sort(np.random.RandomState(CHOICE_SEED).permutation(count)[:kept])
