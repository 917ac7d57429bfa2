"""Mean and covariance of vectors that come in batches, in float64: what a Fréchet distance is computed from.

Two sets of n and m vectors with means a and b, and scatter matrices S_a and S_b (sums of (x - mean)(x - mean)^T), have together

    mean      a + (b - a) m / (n + m)
    scatter   S_a + S_b + (b - a)(b - a)^T n m / (n + m)

(Chan, Golub and LeVeque 1979, eq. 2.1). Unlike with running sums of x and x x^T, nothing large cancels: features
whose mean is a thousand times their spread lose no digit of it. The same equation merges what several hosts have measured.
"""

import numpy as np

from ddpm_jax.metrics.frechet import Gaussian, check_dimensions, check_enough, check_features

# Vectors that wait for one update: adding to a matrix of D x D takes as long for one vector as for a hundred.
BLOCK = 1024
PUBLISHED_COUNT = 50_000  # images of nearly all published FIDs
FEWEST_TO_PUBLISH = 10_000  # below this, papers do not compare


class Moments:
    """Count, mean and scatter of all vectors seen. Empty at first; the first batch says how many dimensions there are."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))
        self._block = np.zeros((0, 0))
        self._num_waiting = 0  # rows of the block that are filled

    @classmethod
    def of(cls, count: int, mean: np.ndarray, scatter: np.ndarray) -> "Moments":
        """From the three numbers of another one, as another host sends them. Takes copies."""
        mean, scatter = np.array(mean, np.float64), np.array(scatter, np.float64)
        if count < 0 or mean.ndim != 1 or scatter.shape != (mean.size, mean.size):
            raise ValueError(f"count {count}, mean {mean.shape} and scatter {scatter.shape} do not go together")
        moments = cls()
        moments._count, moments._mean, moments._scatter = int(count), mean, scatter
        return moments

    @property
    def count(self) -> int:
        """How many vectors have been seen."""
        return self._count + self._num_waiting

    @property
    def dimension(self) -> int:
        """Numbers in a vector; 0 before the first."""
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
        """Adds vectors [n, D]; n may be 0. After an error, nothing of them is added.

        Raises:
          InvalidDataError: a value that is not finite, or another D than before.
          ValueError: another shape.
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
            part = features[done : done + BLOCK - self._num_waiting]
            self._block[self._num_waiting : self._num_waiting + len(part)] = part
            self._num_waiting += len(part)
            done += len(part)
            if self._num_waiting == BLOCK:
                self._flush()

    def merge(self, other: "Moments") -> "Moments":
        """Those of both sets together; neither is changed. In any order the same, up to rounding.

        Raises:
          InvalidDataError: vectors of different dimension.
        """
        merged = Moments.of(self.count, self.mean, self.scatter)
        if not other.count:
            return merged
        if not self.count:
            return Moments.of(other.count, other.mean, other.scatter)
        check_dimensions(self.dimension, other.dimension)
        step = merged._move(other.count, other.mean)
        merged._scatter += other.scatter + step[:, None] * step
        return merged

    def gaussian(self) -> Gaussian:
        """Mean and covariance, divided by count - 1.

        Raises:
          InvalidDataError: fewer than two vectors.
        """
        check_enough(self.count)
        return Gaussian(self.mean.copy(), self.scatter / (self.count - 1))

    def _flush(self) -> None:
        if not self._num_waiting:
            return
        block, self._num_waiting = self._block[: self._num_waiting], 0
        if not self._count:
            self._mean, self._scatter = np.zeros(block.shape[1]), np.zeros((block.shape[1],) * 2)
        mean = block.mean(axis=0)
        # The last term of the equation is that of one vector more: one product makes the sum.
        rows = np.vstack([block - mean, self._move(len(block), mean)])
        self._scatter += rows.T @ rows

    def _move(self, count: int, mean: np.ndarray) -> np.ndarray:
        """Takes `count` vectors of `mean` into count and mean. Returns v [D]: v v^T is the last term of the equation."""
        total = self._count + count
        difference = mean - self._mean
        step = difference * np.sqrt(self._count / total * count)
        self._mean = self._mean + difference * (count / total)
        self._count = total
        return step


def gaussian_of(features: np.ndarray) -> Gaussian:
    """Of features [N, D] of any float type, without a float64 copy of all of them. Errors as in `Moments`."""
    moments = Moments()
    moments.update(features)
    return moments.gaussian()


def sample_warnings(num_images: int, num_reference: int | None, dimension: int, *, published: bool) -> list[str]:
    """What these counts do to a Fréchet distance, one sentence each; empty where there is nothing to say.

    Args:
      num_images: generated images that were measured.
      num_reference: images behind the reference statistics, or None where nobody knows.
      dimension: D of the features.
      published: whether the number will be held against published ones: FID on Inception's 2,048.
    """
    found = []
    for count, whose in ((num_images, "generated"), (num_reference, "reference")):
        if count is not None and count <= dimension:
            found.append(
                f"{count:,} {whose} images for {dimension:,} features: their covariance is singular and the Fréchet distance "
                f"too high by much; take more than {dimension:,}, better ten times that"
            )
    if num_reference is None:
        found.append("nobody knows how many images the reference statistics are of: this moves a Fréchet distance")
    if published and num_images < FEWEST_TO_PUBLISH:
        found.append(
            f"FID of {num_images:,} images: it falls as their number grows; compare it only with others of {num_images:,}, "
            f"and with published ones from {PUBLISHED_COUNT:,} images"
        )
    elif published and num_images < PUBLISHED_COUNT:
        found.append(f"FID of {num_images:,} images: published ones are mostly of {PUBLISHED_COUNT:,}, which lie lower")
    return found
