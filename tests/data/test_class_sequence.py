"""Classes in proportion: exact counts, and prefixes that do not depend on the length."""

import numpy as np
import pytest

from ddpm_jax.data.class_sequence import class_sequence, reduced


@pytest.mark.parametrize("seed", range(12))
def test_every_prefix_has_the_proportions_within_one_image(seed):
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 40))
    counts = np.floor(rng.pareto(0.7, num_classes) * 20).astype(int)
    counts[rng.integers(num_classes)] += 5
    length = 3 * int(min(counts.sum(), 1500))
    sequence = class_sequence(counts, length)
    so_far = np.cumsum(sequence[:, None] == np.arange(num_classes), axis=0)
    exact = np.arange(1, length + 1)[:, None] * counts / counts.sum()
    present = max(2, np.count_nonzero(counts))
    assert np.abs(so_far - exact).max() <= 1 - 1 / (2 * present - 2) + 1e-9
    np.testing.assert_array_equal(class_sequence(counts, length // 3), sequence[: length // 3])
    np.testing.assert_array_equal(class_sequence(7 * counts, length), sequence)


def test_a_sequence_as_long_as_the_set_has_its_counts():
    counts = np.array([190, 0, 10, 3, 1])
    np.testing.assert_array_equal(np.bincount(class_sequence(counts, counts.sum()), minlength=5), counts)
    np.testing.assert_array_equal(np.bincount(class_sequence(counts, 5 * counts.sum()), minlength=5), 5 * counts)


def test_equal_proportions_alternate():
    for num_classes in (1, 2, 10):
        sequence = class_sequence(np.full(num_classes, 600), 23)
        np.testing.assert_array_equal(sequence, np.arange(23) % num_classes)
        assert sequence.dtype == np.int32
    np.testing.assert_array_equal(class_sequence(np.array([0, 4, 0, 4]), 3), [1, 3, 1])
    np.testing.assert_array_equal(class_sequence(np.array([0, 4, 0]), 3), [1, 1, 1])
    assert class_sequence(np.array([1, 2]), 0).shape == (0,)


def test_proportions_as_the_smallest_integers():
    np.testing.assert_array_equal(reduced(np.array([6000, 3000, 0])), [2, 1, 0])


@pytest.mark.parametrize("counts", [[0, 0], [], [-1, 2], [0.5, 0.5], [[1, 2]]])
def test_invalid_counts_are_rejected(counts):
    with pytest.raises(ValueError, match="count"):
        class_sequence(np.array(counts), 3)
