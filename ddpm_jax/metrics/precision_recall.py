"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): fidelity and diversity of generated images.

The manifold of a set is the union of balls around its vectors, each with the distance to the k-th nearest other vector of
the set as radius, inclusive (eq. 1). Precision is the fraction of generated vectors in the manifold of the real ones; recall
the fraction of real vectors in the manifold of the generated ones (eq. 2). A vector is not its own neighbor; duplicates are.
"""

from collections.abc import Iterator

import numpy as np

from ddpm_jax.metrics.frechet import check_dimensions, check_features
from ddpm_jax.runtime.errors import InvalidDataError

BLOCK = 2**25  # distances in memory at once: 256 MiB
COLUMNS = 4096  # vectors in float64 at once
# A ball includes its boundary, and features with few levels, such as pixels, have many vectors exactly there. The radius
# therefore gets a tolerance for the rounding of equal distances: of float32 features, relative to the longest vector ...
FLOAT32 = 2.0**-22
# ... and of the products, relative to the largest squared distance from the center.
PRODUCTS = 1e-12


class Manifold:
    """Real vectors and the radii of their balls, computed once for all sets to compare with.

    Args:
      real: [N, D].
      k: a ball reaches to the k-th nearest neighbor; below N.

    Raises:
      InvalidDataError: too few vectors for k, or a value that is not finite.
      ValueError: wrong shape, or k below 1.
    """

    def __init__(self, real: np.ndarray, *, k: int = 3):
        if k < 1:
            raise ValueError(f"k is {k}: it must be at least 1")
        self.k = k
        real = check_features(real)
        self._check_enough(real)
        # Squared distances are computed from products: centering keeps these small and their rounding too.
        self._center = real.mean(axis=0, dtype=np.float64)
        self._real = _Set(real, self._center)
        self._radii = _squared_radii(self._real, k)

    def compare(self, generated: np.ndarray) -> tuple[float, float]:
        """(precision, recall) of vectors [M, D], each 0..1, in float64; M above k.

        Both depend on N and M: compare only results with the same numbers. Time grows with M (N + M); memory beyond the
        vectors is constant.

        Raises:
          InvalidDataError: too few vectors, different dimensions, or a value that is not finite.
          ValueError: wrong shape.
        """
        generated = check_features(generated)
        check_dimensions(self._center.size, generated.shape[1])
        self._check_enough(generated)
        real, generated = self._real, _Set(generated, self._center)
        largest = max(real.norms.max(), generated.norms.max())
        longest = np.sqrt(largest) + np.linalg.norm(self._center)

        def reach(squared: np.ndarray) -> np.ndarray:
            return squared + FLOAT32 * longest * np.sqrt(squared) + PRODUCTS * largest

        real_reach, generated_reach = reach(self._radii), reach(_squared_radii(generated, self.k))
        covered, first, good = np.zeros(len(real), bool), 0, []
        for block in _squared_distances(generated, real):
            good.append((block <= real_reach).any(axis=1))
            covered |= (block <= generated_reach[first : first + len(block), None]).any(axis=0)
            first += len(block)
        return float(np.concatenate(good).mean()), float(covered.mean())

    def _check_enough(self, vectors: np.ndarray) -> None:
        if len(vectors) <= self.k:
            raise InvalidDataError(
                f"precision and recall use {self.k} neighbors and need at least {self.k + 1} images in each set, not "
                f"{len(vectors)}; measure more images"
            )


class _Set:
    """Vectors [N, D] relative to a center [D]; converted to float64 block by block."""

    def __init__(self, vectors: np.ndarray, center: np.ndarray):
        self._vectors, self._center = vectors, center
        self.norms = np.concatenate([np.square(part).sum(axis=1) for part in self.parts(COLUMNS)])

    def __len__(self) -> int:
        return len(self._vectors)

    def parts(self, size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(self), size):
            yield self._vectors[first : first + size] - self._center


def _squared_radii(vectors: _Set, k: int) -> np.ndarray:
    """[N], the squared distance of each vector to its k-th nearest other vector."""
    radii = []
    for block in _squared_distances(vectors, vectors):
        block.partition(k, axis=1)
        radii.append(block[:, k].copy())  # index 0 is the vector itself
    return np.maximum(np.concatenate(radii), 0)


def _squared_distances(a: _Set, b: _Set) -> Iterator[np.ndarray]:
    """Yields blocks of rows of the matrix [N, M]."""
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
