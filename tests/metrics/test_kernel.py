"""The kernel distance: its definition by loops, its freedom from bias, and sets that are far apart."""

import numpy as np
import pytest

from ddpm_jax.metrics.kernel import kernel_distance, unbiased_mmd

RANDOM = np.random.default_rng(0)


def test_it_is_the_mean_over_pairs():
    a, b = RANDOM.standard_normal((6, 3)), 0.3 + RANDOM.standard_normal((5, 3))

    def kernel(x, y):
        return (sum(x * y) / 3 + 1) ** 3

    def mean(x, y, same):
        return np.mean([kernel(p, q) for i, p in enumerate(x) for j, q in enumerate(y) if not (same and i == j)])

    assert unbiased_mmd(a, b) == pytest.approx(mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False), rel=1e-12)


def test_two_samples_of_one_distribution_have_none_on_average():
    """400 pairs of 10 vectors: the mean within 4 of its standard errors of 0, and values on both sides."""
    values = [unbiased_mmd(*RANDOM.standard_normal((2, 10, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_subsets_are_drawn_by_the_seed_and_their_number_told():
    a, b = RANDOM.standard_normal((50, 4)), 1 + RANDOM.standard_normal((40, 4))
    one = kernel_distance(a, b, seed=0, subsets=30, subset_size=20)
    assert one == kernel_distance(a, b, seed=0, subsets=30, subset_size=20)
    assert one.mean != kernel_distance(a, b, seed=1, subsets=30, subset_size=20).mean
    assert (one.subsets, one.subset_size) == (30, 20)
    assert one.mean == pytest.approx(unbiased_mmd(a, b), rel=0.3)
    assert one.mean > 10 * one.standard_error > 0
    assert kernel_distance(a, b, seed=0).subset_size == 20  # half of the smaller set


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="too few"):
        kernel_distance(np.zeros((3, 2)), np.zeros((9, 2)), seed=0)
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        kernel_distance(np.zeros((9, 2)), np.zeros((9, 3)), seed=0)
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(np.zeros((9, 2)), np.full((9, 2), np.nan), seed=0)
