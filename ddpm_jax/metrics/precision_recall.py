"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): are drawn images good, and are all kinds drawn?

The manifold of a set is the union of balls around its vectors, each reaching to the k-th nearest other vector of the
set and including it (eq. 1). Precision is the share of drawn vectors in the manifold of the real ones; recall the share
of real vectors in the manifold of the drawn ones (eq. 2). A vector is no neighbour of itself; its twins are.
"""

from collections.abc import Iterator

import numpy as np

from ddpm_jax.metrics.frechet import check_dimensions, check_features
from ddpm_jax.runtime.errors import InvalidDataError

BLOCK = 2**25  # distances in memory at once: 256 MiB
COLUMNS = 4096  # vectors in float64 at once
# A ball includes its edge, and features of few levels, pixels first of all, have many vectors just there. So an edge is
# as wide as what rounding makes of distances that are equal: rounding of the features to float32, of the longest one ...
FLOAT32 = 2.0**-22
# ... and of the products, of the largest squared distance from the centre.
PRODUCTS = 1e-12


class Manifold:
    """Real vectors and how far their balls reach, to be computed once for all the sets that are compared with them.

    Args:
      real: [N, D].
      k: which nearest neighbour a ball reaches to; below N.

    Raises:
      InvalidDataError: too few vectors for k, or a value that is not finite.
      ValueError: another shape, or k below 1.
    """

    def __init__(self, real: np.ndarray, *, k: int = 3):
        if k < 1:
            raise ValueError(f"k is {k}: it must be at least 1")
        self.k = k
        real = check_features(real)
        self._check_enough(real)
        # Squared distances come from products: the smaller these, the less they round.
        self._centre = real.mean(axis=0, dtype=np.float64)
        self._real = _Set(real, self._centre)
        self._radii = _squared_radii(self._real, k)

    def compare(self, drawn: np.ndarray) -> tuple[float, float]:
        """(precision, recall) of vectors [M, D], each 0..1, in float64; M above k.

        Both depend on the numbers of vectors: compare only where these are the same. Time grows with M (N + M); memory
        beyond that of the vectors does not grow.

        Raises:
          InvalidDataError: too few vectors, of other dimensions, or a value that is not finite.
          ValueError: another shape.
        """
        drawn = check_features(drawn)
        check_dimensions(self._centre.size, drawn.shape[1])
        self._check_enough(drawn)
        real, drawn = self._real, _Set(drawn, self._centre)
        largest = max(real.norms.max(), drawn.norms.max())
        longest = np.sqrt(largest) + np.linalg.norm(self._centre)

        def reach(squared: np.ndarray) -> np.ndarray:
            return squared + FLOAT32 * longest * np.sqrt(squared) + PRODUCTS * largest

        real_reach, drawn_reach = reach(self._radii), reach(_squared_radii(drawn, self.k))
        covered, first, good = np.zeros(len(real), bool), 0, []
        for block in _squared_distances(drawn, real):
            good.append((block <= real_reach).any(axis=1))
            covered |= (block <= drawn_reach[first : first + len(block), None]).any(axis=0)
            first += len(block)
        return float(np.concatenate(good).mean()), float(covered.mean())

    def _check_enough(self, vectors: np.ndarray) -> None:
        if len(vectors) <= self.k:
            raise InvalidDataError(
                f"precision and recall look at {self.k} neighbours and need at least {self.k + 1} images in each set, not "
                f"{len(vectors)}; measure more images"
            )


def precision_recall(real: np.ndarray, drawn: np.ndarray, *, k: int = 3) -> tuple[float, float]:
    """(precision, recall) of two sets, [N, D] and [M, D]; as `Manifold.compare`."""
    return Manifold(real, k=k).compare(drawn)


class _Set:
    """Vectors [N, D] about a centre [D]; float64 only where they are used."""

    def __init__(self, vectors: np.ndarray, centre: np.ndarray):
        self._vectors, self._centre = vectors, centre
        self.norms = np.concatenate([np.square(part).sum(axis=1) for part in self.parts(COLUMNS)])

    def __len__(self) -> int:
        return len(self._vectors)

    def parts(self, size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(self), size):
            yield self._vectors[first : first + size] - self._centre


def _squared_radii(vectors: _Set, k: int) -> np.ndarray:
    """[N], the squared distance of each vector to its k-th nearest other."""
    radii = []
    for block in _squared_distances(vectors, vectors):
        block.partition(k, axis=1)
        radii.append(block[:, k].copy())  # the least is its own
    return np.maximum(np.concatenate(radii), 0)


def _squared_distances(a: _Set, b: _Set) -> Iterator[np.ndarray]:
    """Blocks of rows of [N, M]."""
    first = 0
    for rows in a.parts(max(1, BLOCK // len(b))):
        distances = np.empty((len(rows), len(b)))
        begin = 0
        for columns in b.parts(COLUMNS):
            end = begin + len(columns)
            part = distances[:, begin:end]
            np.matmul(rows, -2 * columns.T, out=part)
            part += b.norms[begin:end]
            begin = end
        distances += a.norms[first : first + len(rows), None]
        first += len(rows)
        yield distances
