"""The Inception Score where it is known."""

import numpy as np
import pytest

from ddpm_jax.metrics.inception_score import inception_score


def test_certain_and_even_over_k_classes_scores_k():
    logits = 1000.0 * np.eye(5)[np.arange(100) % 5]
    assert inception_score(logits) == pytest.approx((5, 0), abs=1e-9)


def test_all_alike_scores_one():
    alike = np.tile(np.random.default_rng(0).standard_normal(7), (40, 1))
    assert inception_score(alike, splits=4) == pytest.approx((1, 0), abs=1e-12)


def test_it_is_the_definition_split_by_split():
    logits = np.random.default_rng(0).standard_normal((23, 4))
    scores = []
    for part in np.array_split(logits, 3):
        p = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
        scores.append(np.exp(np.mean([sum(row * np.log(row / p.mean(axis=0))) for row in p])))
    assert inception_score(logits, splits=3) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    np.testing.assert_allclose(inception_score(logits + 50, splits=3), inception_score(logits, splits=3), rtol=1e-10)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="at least 10"):
        inception_score(np.zeros((9, 3)))
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.full((20, 3), np.nan))
