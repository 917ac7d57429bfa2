"""Mean and covariance of vectors that come in batches, in float64, mergeable.

Two groups with counts n and m, means a and b, and scatters A and B (sums of squared deviations from their own means) have
together the scatter A + B + nm/(n+m) (b - a)(b - a)^T (Chan, Golub & LeVeque 1979): nothing is subtracted from
something nearly as large, as it would be in sums of squares.
"""

import numpy as np

from ddpm_jax.metrics.frechet import Gaussian


class Moments:
    """Count, mean [D] and scatter [D, D] of the vectors seen so far.

    Args:
      dimension: D.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    def update(self, features: np.ndarray) -> None:
        """Take features [n, D] in.

        Raises:
          ValueError: another shape, or a value that is not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be [n, {len(self.mean)}], not {list(features.shape)}")
        if not np.isfinite(features).all():
            raise ValueError("features hold a value that is not finite")
        if len(features):
            mean = features.mean(axis=0)
            centred = features - mean
            self._add(len(features), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Take in what another has seen, such as that of another host.

        Raises:
          ValueError: of another dimension.
        """
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"features of {len(other.mean)} dimensions cannot join those of {len(self.mean)}")
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def gaussian(self) -> Gaussian:
        """Mean and covariance (divided by count - 1).

        Raises:
          ValueError: fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} vectors have no covariance: at least 2 are needed")
        return Gaussian(self.mean.copy(), self.scatter / (self.count - 1))

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        difference = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(difference, difference) * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total


def gaussian_of(features: np.ndarray, *, rows: int = 4096) -> Gaussian:
    """Mean and covariance of features [N, D] of any float type, without a float64 copy of all of them.

    Raises:
      ValueError: as `Moments`.
    """
    moments = Moments(features.shape[1])
    for first in range(0, len(features), rows):
        moments.update(features[first : first + rows])
    return moments.gaussian()
