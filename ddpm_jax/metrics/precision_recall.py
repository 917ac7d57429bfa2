"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): fidelity and diversity of generated images.

The manifold of a set is the union of balls around its vectors, each with the distance to the k-th nearest other vector of
the set as radius, inclusive (eq. 1). Precision is the fraction of generated vectors in the manifold of the real ones; recall
the fraction of real vectors in the manifold of the generated ones (eq. 2). A vector is not its own neighbor; duplicates are.

Squared distances are computed in float32, which takes half of the time, and again in float64 where the error of the first
could change the result. So the result is that of float64.
"""

from collections.abc import Iterator

import numpy as np

from ddpm_jax.metrics.frechet import check_dimensions, check_features
from ddpm_jax.runtime.errors import InvalidDataError

BLOCK = 2**24  # distances in memory at once: 128 MiB in float64
COLUMNS = 4096  # vectors in float64 at once
PAIRS = 512  # pairs of vectors in memory at once
MOST_PAIRS = 64  # per row of a block; for more of them, the whole block in float64 takes less time
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
        good, covered = np.zeros(len(generated), bool), np.zeros(len(real), bool)
        for rows, distances, error in _float32_distances(generated, real):
            for reached, by_real in ((real_reach, True), (generated_reach[rows, None], False)):
                inside = distances <= (reached - error).astype(distances.dtype)
                near = (distances <= (reached + error).astype(distances.dtype)) & ~inside
                limit = np.broadcast_to(reached, near.shape)[near]
                inside[near] = _exact_distances(generated, real, rows, near) <= limit
                if by_real:
                    good[rows] = inside.any(axis=1)
                else:
                    covered |= inside.any(axis=0)
        return float(good.mean()), float(covered.mean())

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
        starts = range(0, len(vectors), COLUMNS)
        self.norms = np.concatenate([np.square(self[first : first + COLUMNS]).sum(axis=1) for first in starts])

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dimension(self) -> int:
        return self._vectors.shape[1]

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """Some of the vectors, float64 [n, D]."""
        return self._vectors[indices] - self._center


def _squared_radii(vectors: _Set, k: int) -> np.ndarray:
    """[N], the squared distance of each vector to its k-th nearest other vector."""
    radii = []
    for rows, distances, error in _float32_distances(vectors, vectors):
        kth = np.partition(distances, k, axis=1)[:, k, None].astype(np.float64)  # index 0 is the vector itself
        near = distances <= (kth + 2 * error).astype(distances.dtype)
        exact = np.full(distances.shape, np.inf)
        exact[near] = _exact_distances(vectors, vectors, rows, near)
        exact.partition(k, axis=1)
        radii.append(exact[:, k].copy())
    return np.maximum(np.concatenate(radii), 0)


def _float32_distances(a: _Set, b: _Set) -> Iterator[tuple[slice, np.ndarray, float]]:
    """Yields rows of the matrix [N, M] of squared distances: (which rows, float32 [n, M], bound of their errors).

    Where float32 has no range for them they are float64, and the bound is 0.

    With u = 2^-24, a product of D terms in any order has an error of at most D u |x| |y| (Higham, Accuracy and Stability of
    Numerical Algorithms, eq. 3.5), and a distance has twice that. The rest is for the other roundings: of the vectors, the
    norms, the sums and what the distances are compared with.
    """
    largest = max(a.norms.max(), b.norms.max())
    if not 1e-20 < largest < 1e30:  # beyond float32
        for rows, distances in _squared_distances(a, b):
            yield rows, distances, 0.0
        return
    for rows, distances in _squared_distances(a, b, np.float32):
        yield rows, distances, 2 * (a.dimension + 16) * 2.0**-24 * largest


def _exact_distances(a: _Set, b: _Set, rows: slice, chosen: np.ndarray) -> np.ndarray:
    """float64, the squared distances of some rows of the matrix [N, M] where `chosen` [n, M] is True, in its order."""
    if np.count_nonzero(chosen) > MOST_PAIRS * len(chosen):
        return next(_squared_distances(a, b, rows=rows))[1][chosen]
    own, other = np.nonzero(chosen)
    own += rows.start
    found = np.empty(len(own))
    for first in range(0, len(own), PAIRS):
        pairs = slice(first, first + PAIRS)
        difference = a[own[pairs]] - b[other[pairs]]
        found[pairs] = np.einsum("nd,nd->n", difference, difference)
    return found


def _squared_distances(
    a: _Set, b: _Set, dtype: type = np.float64, rows: slice = slice(0, None)
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of rows of the matrix [N, M]: (which rows, squared distances [n, M])."""
    step = max(1, BLOCK // len(b))
    for first in range(rows.start, len(a), step):
        here = slice(first, min(first + step, len(a)))
        vectors = (-2 * a[here]).astype(dtype)
        distances = np.empty((len(vectors), len(b)), dtype)
        for begin in range(0, len(b), COLUMNS):
            columns = slice(begin, begin + COLUMNS)
            part = distances[:, columns]
            np.matmul(vectors, b[columns].astype(dtype).T, out=part)
            part += b.norms[columns].astype(dtype)
        distances += a.norms[here, None].astype(dtype)
        yield here, distances
