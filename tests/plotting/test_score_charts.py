import numpy as np

from ddpm_jax.plotting import charts
from ddpm_jax.plotting.score_charts import draw_scores


def test_a_chart_for_each_score_with_two_steps(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "draw", lambda found: drawn.extend(found) or np.zeros((1, 1, 3), np.uint8))
    rows = [
        {"step": 2, "eval/kid": 1.0, "eval/frechet": 5.0},
        {"step": 1, "eval/frechet": 3.0},
        {"step": 1, "eval/frechet": 4.0},
    ]
    assert draw_scores({"run": rows, "other": []}, ["eval/frechet", "eval/kid", "eval/recall"]) is not None
    (chart,) = drawn
    (line,) = chart.lines
    assert (chart.title, line.label) == ("Fréchet distance", "run")
    np.testing.assert_array_equal([line.x, line.y], [[1, 2], [4, 5]])


def test_one_step_is_not_a_curve():
    assert draw_scores({"": [{"step": 1, "eval/kid": 1.0}]}, ["eval/kid"]) is None
