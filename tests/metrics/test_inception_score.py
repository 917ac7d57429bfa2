"""The Inception Score against closed forms, and against torch-fidelity."""

import numpy as np
import pytest

from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.runtime.errors import InvalidDataError


@pytest.mark.parametrize("num_splits", [10, 3])
def test_it_agrees_with_another_implementation(golden, num_splits):
    score = inception_score(golden["logits"], num_splits=num_splits)
    np.testing.assert_allclose([score.mean, score.std], golden[f"isc_{num_splits}"], rtol=1e-12)


def test_equal_images_score_1(rng):
    score = inception_score(np.tile(rng.normal(size=(1, 6)), (50, 1)))
    assert score.mean == pytest.approx(1, abs=1e-12)
    assert score.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("certainty", [1e3, 1e30])
def test_certain_balanced_classes_score_their_number(certainty):
    """Also for logits far beyond the range of exp; classes of probability 0 have no effect."""
    logits = np.tile(certainty * np.eye(5, 8), (20, 1))  # five classes of eight, in turn
    score = inception_score(logits.astype(np.float32))
    assert score.mean == pytest.approx(5, rel=1e-12)
    assert score.std == pytest.approx(0, abs=1e-12)


def test_two_classes_known_with_probability_p_have_a_closed_form():
    p = 0.9
    logits = np.log(np.tile([[p, 1 - p], [1 - p, p]], (50, 1)))
    expected = 2 * p**p * (1 - p) ** (1 - p)  # exp(log 2 - entropy of p)
    assert inception_score(logits).mean == pytest.approx(expected, rel=1e-12)


def test_only_differences_of_logits_count(rng):
    logits = rng.normal(size=(40, 6))
    moved = logits + rng.normal(size=(40, 1)) * 100
    assert inception_score(moved).mean == pytest.approx(inception_score(logits).mean, rel=1e-10)


def test_order_matters_between_parts_but_not_within(rng):
    logits = np.repeat(50 * np.eye(4), 10, axis=0)  # sorted by class
    within = logits.reshape(4, 10, 4)[:, rng.permutation(10)].reshape(40, 4)
    assert inception_score(within, num_splits=4) == inception_score(logits, num_splits=4)
    assert inception_score(logits, num_splits=4).mean == pytest.approx(1, abs=1e-12)  # each part holds one class
    assert inception_score(rng.permutation(logits), num_splits=4).mean > 2
    assert inception_score(logits, num_splits=1).mean == pytest.approx(4, rel=1e-12)


def test_it_is_between_1_and_the_number_of_classes(rng):
    score = inception_score(rng.normal(size=(103, 6)) * 4)
    assert 1 < score.mean < 6


def test_bad_input_is_an_error():
    with pytest.raises(InvalidDataError, match="10 parts needs at least as many images, not 9"):
        inception_score(np.zeros((9, 3)))
    with pytest.raises(InvalidDataError, match="not finite"):
        inception_score(np.array([[0.0, np.nan]]), num_splits=1)
    with pytest.raises(ValueError, match="num_splits"):
        inception_score(np.zeros((9, 3)), num_splits=0)
