"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): are drawn images good, and are all kinds drawn?

The manifold of a set is the union of balls around its vectors, each reaching to the k-th nearest other vector of the
set. Precision is the share of drawn vectors in the manifold of the real ones; recall the share of real vectors in
the manifold of the drawn ones.
"""

from collections.abc import Iterator

import numpy as np

BLOCK = 4096  # vectors whose distances to all others are in memory at once


def precision_recall(real: np.ndarray, drawn: np.ndarray, *, k: int = 3) -> tuple[float, float]:
    """(precision, recall), each 0..1.

    Both depend on the numbers of vectors: compare only where these are the same.

    Args:
      real: floating [N, D].
      drawn: floating [M, D].
      k: which nearest neighbour a ball reaches to; below N and M.

    Raises:
      ValueError: shapes that do not match, too few vectors for k, or a value that is not finite.
    """
    real, drawn = (np.asarray(vectors, np.float64) for vectors in (real, drawn))
    if real.ndim != 2 or drawn.ndim != 2 or real.shape[1] != drawn.shape[1]:
        raise ValueError(f"vectors must be [N, D] and [M, D], not {list(real.shape)} and {list(drawn.shape)}")
    if not 1 <= k < min(len(real), len(drawn)):
        raise ValueError(f"k is {k}: it must be at least 1 and below the {min(len(real), len(drawn))} vectors")
    if not (np.isfinite(real).all() and np.isfinite(drawn).all()):
        raise ValueError("features hold a value that is not finite")
    centre = real.mean(axis=0)  # squared distances come from products: the smaller these, the less they round
    real, drawn = real - centre, drawn - centre
    return _share_inside(drawn, real, _squared_radii(real, k)), _share_inside(real, drawn, _squared_radii(drawn, k))


def _squared_radii(vectors: np.ndarray, k: int) -> np.ndarray:
    """[N], the squared distance of each vector to its k-th nearest other."""
    radii = [np.partition(block, k, axis=1)[:, k] for block in _squared_distances(vectors, vectors)]  # 0 is itself
    return np.concatenate(radii)


def _share_inside(vectors: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> float:
    inside = [(block <= squared_radii).any(axis=1) for block in _squared_distances(vectors, centres)]
    return float(np.concatenate(inside).mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows of [N, M]."""
    norms = np.square(b).sum(axis=1)
    for first in range(0, len(a), BLOCK):
        rows = a[first : first + BLOCK]
        distances = norms - 2 * rows @ b.T
        distances += np.square(rows).sum(axis=1, keepdims=True)
        # What rounding leaves of a distance that is zero: a vector that is in both sets must lie in its own ball.
        distances[distances < 1e-12 * norms.max(initial=0)] = 0
        yield distances
