"""Precision and recall: brute force, and sets whose answer is known."""

import numpy as np
import pytest

from ddpm_jax.metrics import precision_recall as module
from ddpm_jax.metrics.precision_recall import precision_recall

RANDOM = np.random.default_rng(0)


def brute_force(real, drawn, k):
    def inside(vectors, centres):
        radii = [sorted(np.linalg.norm(centres - centre, axis=1))[k] for centre in centres]
        return np.mean([any(np.linalg.norm(v - c) <= r for c, r in zip(centres, radii, strict=True)) for v in vectors])

    return inside(drawn, real), inside(real, drawn)


@pytest.mark.parametrize("block", [7, 4096])
def test_it_is_what_brute_force_finds(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    real, drawn = RANDOM.standard_normal((40, 3)), 0.5 + RANDOM.standard_normal((30, 3))
    expected = brute_force(real, drawn, 3)
    assert precision_recall(real, drawn) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < 1


def test_sets_whose_answer_is_known():
    real = RANDOM.standard_normal((50, 4))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1000) == (0, 0)
    one_kind = np.repeat(real[:1], 20, axis=0)  # good images, all the same
    precision, recall = precision_recall(real, one_kind)
    assert precision == 1
    assert recall == pytest.approx(1 / 50)
    assert precision_recall(1e4 + real, 1e4 + real[:20])[0] == 1  # far from the origin no digits are lost


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="k is 3"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))
    with pytest.raises(ValueError, match="not finite"):
        precision_recall(np.zeros((9, 2)), np.full((9, 2), np.nan))
