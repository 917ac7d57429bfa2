"""Streaming moments: the same as all at once, in any pieces, in any order, far from the origin too."""

import numpy as np
import pytest

from ddpm_jax.metrics.frechet import fit_gaussian
from ddpm_jax.metrics.statistics import Moments, gaussian_of

VECTORS = 1e3 + np.random.default_rng(0).standard_normal((101, 7))


def in_pieces(vectors, sizes):
    moments = Moments(vectors.shape[1])
    for piece in np.split(vectors, np.cumsum(sizes)):
        moments.update(piece)
    return moments


@pytest.mark.parametrize("sizes", [[], [1], [50, 1, 0, 20], [1] * 100])
def test_pieces_give_what_the_whole_gives(sizes):
    """1e-10, though the mean is a thousand times the deviation."""
    got, want = in_pieces(VECTORS, sizes).gaussian(), fit_gaussian(VECTORS)
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-13)
    np.testing.assert_allclose(got.covariance, want.covariance, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(want.covariance, np.cov(VECTORS.T), rtol=1e-10, atol=1e-10)


def test_merging_needs_no_order():
    parts = [in_pieces(part, []) for part in np.split(VECTORS, [3, 40])]
    for order in ([0, 1, 2], [2, 0, 1]):
        whole = Moments(7)
        for index in order:
            whole.merge(parts[index])
        whole.merge(Moments(7))
        assert whole.count == 101
        np.testing.assert_allclose(whole.gaussian().covariance, np.cov(VECTORS.T), rtol=1e-10, atol=1e-10)


def test_a_float32_array_is_taken_in_float64():
    single = VECTORS.astype(np.float32)
    got, want = gaussian_of(single, rows=10), fit_gaussian(single.astype(np.float64))
    np.testing.assert_allclose(got.covariance, want.covariance, rtol=1e-10, atol=1e-10)


def test_wrong_inputs_are_refused():
    moments = Moments(2)
    with pytest.raises(ValueError, match=r"must be \[n, 2\]"):
        moments.update(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="not finite"):
        moments.update(np.full((3, 2), np.inf))
    with pytest.raises(ValueError, match="0 vectors"):
        moments.gaussian()
    moments.update(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="1 vectors"):
        moments.gaussian()
    with pytest.raises(ValueError, match="cannot join"):
        moments.merge(Moments(3))
