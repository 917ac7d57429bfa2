import math

import pytest

from ddpm_jax.training.best_step import BestStep, best_of


def test_lower_is_better_for_distances_and_higher_for_precision():
    for tag, expected in (("eval/frechet", [True, True, False, False]), ("eval/precision", [True, False, True, False])):
        best = BestStep(tag)
        assert [best.update(step, {tag: value}) for step, value in enumerate([2.0, 1.0, 3.0, 3.0])] == expected


def test_other_rows_and_values_that_are_not_finite_are_ignored():
    best = BestStep("eval/kid")
    for values in ({"eval/frechet": 1.0}, {"eval/kid": math.nan}, {"eval/kid": None}, {}):
        assert not best.update(1, values)
    assert best.step is None
    assert best.update(2, {"eval/kid": -0.5})
    assert (best.step, best.value) == (2, -0.5)


def test_only_steps_with_a_checkpoint_count():
    rows = [{"step": step, "eval/frechet": value} for step, value in ((1, 3.0), (2, 1.0), (3, 2.0))]
    rows.insert(1, {"step": 1, "train/loss": 0.1})
    assert best_of(rows, "eval/frechet", [1, 2, 3]).step == 2
    assert best_of(rows, "eval/frechet", [1, 3]).step == 3
    assert best_of(rows, "eval/frechet", []).step is None


def test_an_unknown_score():
    with pytest.raises(ValueError, match="'eval/fid' is not a score: choose one of eval/frechet"):
        BestStep("eval/fid")
