"""Mean and covariance of vectors that arrive in batches, in float64: the input of a Fréchet distance.

Two sets of n and m vectors with means a and b and scatter matrices S_a and S_b (sums of (x - mean)(x - mean)^T) have the union

    mean      a + (b - a) m / (n + m)
    scatter   S_a + S_b + (b - a)(b - a)^T n m / (n + m)

(Chan, Golub and LeVeque 1979, eq. 2.1). Unlike running sums of x and x x^T, it has no large cancellation: features whose
mean is a thousand times their standard deviation keep all digits.
"""

import numpy as np

from ddpm_jax.metrics.frechet import Gaussian, check_dimensions, check_enough, check_features

# Vectors buffered for one update: adding one vector to a D x D matrix takes as long as adding a hundred.
BLOCK = 1024


class Moments:
    """Count, mean and scatter of all vectors so far. Initially empty; the first batch sets the dimension."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))
        self._block = np.zeros((0, 0))
        self._num_buffered = 0  # rows of the block in use

    @property
    def count(self) -> int:
        """Number of vectors so far."""
        return self._count + self._num_buffered

    @property
    def dimension(self) -> int:
        """D; 0 before the first vector."""
        return self._mean.size or self._block.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """float64 [D]."""
        self._flush()
        return self._mean

    @property
    def scatter(self) -> np.ndarray:
        """float64 [D, D], the sum of (x - mean)(x - mean)^T."""
        self._flush()
        return self._scatter

    def update(self, features: np.ndarray) -> None:
        """Adds vectors [n, D]; n may be 0. After an error, none of them is added.

        Raises:
          InvalidDataError: a value that is not finite, or a different D than before.
          ValueError: wrong shape.
        """
        features = check_features(features)
        if not len(features):
            return
        if self.dimension:
            check_dimensions(self.dimension, features.shape[1])
        if not self._block.size:
            self._block = np.empty((BLOCK, features.shape[1]))
        done = 0
        while done < len(features):
            part = features[done : done + BLOCK - self._num_buffered]
            self._block[self._num_buffered : self._num_buffered + len(part)] = part
            self._num_buffered += len(part)
            done += len(part)
            if self._num_buffered == BLOCK:
                self._flush()

    @classmethod
    def of_union(cls, count: int, mean: np.ndarray, scatter: np.ndarray) -> "Moments":
        """The moments of `count` vectors with this mean [D] and scatter [D, D]."""
        moments = cls()
        moments._count, moments._mean, moments._scatter = count, mean, scatter
        return moments

    def scatter_about(self, mean: np.ndarray) -> np.ndarray:
        """float64 [D, D], the sum of (x - mean)(x - mean)^T for any `mean` [D]. Those of several sets may be added."""
        if not self.count:
            return np.zeros((mean.size,) * 2)
        difference = (self.mean - mean)[:, None]
        return self.scatter + self.count * (difference @ difference.T)

    def gaussian(self) -> Gaussian:
        """Mean and covariance, divided by count - 1.

        Raises:
          InvalidDataError: fewer than two vectors.
        """
        check_enough(self.count)
        return Gaussian(self.mean.copy(), self.scatter / (self.count - 1))

    def _flush(self) -> None:
        if not self._num_buffered:
            return
        block, self._num_buffered = self._block[: self._num_buffered], 0
        if not self._count:
            self._mean, self._scatter = np.zeros(block.shape[1]), np.zeros((block.shape[1],) * 2)
        mean = block.mean(axis=0)
        # The last term of the equation is the outer product of one more row, so one matrix product computes the sum.
        rows = np.vstack([block - mean, self._move(len(block), mean)])
        self._scatter += rows.T @ rows

    def _move(self, count: int, mean: np.ndarray) -> np.ndarray:
        """Merges `count` vectors of mean `mean` into count and mean. Returns v [D]: v v^T is the last term above."""
        total = self._count + count
        difference = mean - self._mean
        step = difference * np.sqrt(self._count / total * count)
        self._mean = self._mean + difference * (count / total)
        self._count = total
        return step


def gaussian_of(features: np.ndarray) -> Gaussian:
    """The Gaussian of features [N, D] of any float type, without a float64 copy of all of them. Raises as `Moments`."""
    moments = Moments()
    moments.update(features)
    return moments.gaussian()
