"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): are drawn images good, and are all kinds drawn?

The manifold of a set is the union of balls around its vectors, each reaching to the k-th nearest other vector of the
set and including it (eq. 1). Precision is the share of drawn vectors in the manifold of the real ones; recall the share
of real vectors in the manifold of the drawn ones (eq. 2). A vector is no neighbour of itself; its twins are.
"""

from collections.abc import Iterator

import numpy as np

from ddpm_jax.metrics.frechet import check_dimensions, check_features
from ddpm_jax.runtime.errors import PersonError

BLOCK = 2**25  # distances in memory at once: 256 MiB
COLUMNS = 4096  # vectors in float64 at once
# A ball includes its edge, and features of few levels, pixels first of all, have many vectors just there. So an edge is
# as wide as what rounding makes of distances that are equal: rounding of the features to float32, of the longest one ...
FLOAT32 = 2.0**-22
# ... and of the products, of the largest squared distance from the centre.
PRODUCTS = 1e-12


def precision_recall(real: np.ndarray, drawn: np.ndarray, *, k: int = 3) -> tuple[float, float]:
    """(precision, recall), each 0..1, in float64.

    Both depend on the numbers of vectors: compare only where these are the same. Time grows with (N + M)^2; memory
    beyond that of the vectors does not grow.

    Args:
      real: [N, D].
      drawn: [M, D].
      k: which nearest neighbour a ball reaches to; below N and M.

    Raises:
      PersonError: too few vectors for k, other dimensions, or a value that is not finite.
      ValueError: another shape, or k below 1.
    """
    real, drawn = check_features(real), check_features(drawn)
    check_dimensions(real.shape[1], drawn.shape[1])
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    if min(len(real), len(drawn)) <= k:
        raise PersonError(
            f"precision and recall look at {k} neighbours and need at least {k + 1} images in each set, not "
            f"{min(len(real), len(drawn))}; measure more images"
        )
    # Squared distances come from products: the smaller these, the less they round.
    real, drawn = _Set(real, centre := real.mean(axis=0, dtype=np.float64)), _Set(drawn, centre)
    largest = max(real.norms.max(), drawn.norms.max())
    longest = np.sqrt(largest) + np.linalg.norm(centre)

    def reach(vectors: _Set) -> np.ndarray:
        squared = np.maximum(_squared_radii(vectors, k), 0)
        return squared + FLOAT32 * longest * np.sqrt(squared) + PRODUCTS * largest

    real_reach, drawn_reach = reach(real), reach(drawn)
    covered, first = np.zeros(len(real), bool), 0
    good = []
    for block in _squared_distances(drawn, real):
        good.append((block <= real_reach).any(axis=1))
        covered |= (block <= drawn_reach[first : first + len(block), None]).any(axis=0)
        first += len(block)
    return float(np.concatenate(good).mean()), float(covered.mean())


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
    return np.concatenate(radii)


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
