"""Charts of scores over training steps, one chart per score."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.plotting import charts

TITLES = {
    "train/loss": "Training loss",
    "loss_ema": "Held-out loss, EMA parameters",
    "loss_raw": "Held-out loss, raw parameters",
    "frechet": "Fréchet distance",
    "kid": "KID",
    "inception_score": "Inception score",
    "precision": "Precision",
    "recall": "Recall",
}


def draw_scores(
    rows_of: Mapping[str, Iterable[Mapping[str, Any]]], names: Sequence[str], *, log_scores: Sequence[str] = ()
) -> np.ndarray | None:
    """Charts in a grid, each with a curve for each label: uint8 [H, W, 3]; None if no score has two steps.

    Args:
      rows_of: label of a curve -> rows with `step` and scores; where a step repeats, the last row counts.
      names: scores, one chart each; a score that no row has is left out.
      log_scores: those with a logarithmic axis and without a mark at each measurement, such as the training loss.
    """
    found = []
    for name in names:
        lines = []
        for label, rows in rows_of.items():
            values = {row["step"]: row[name] for row in rows if row.get(name) is not None}
            if values:
                x, y = np.array(sorted(values.items()), float).T
                lines.append(charts.Line(x, y, label, points=name not in log_scores))
        if any(len(line.x) > 1 for line in lines):
            title = TITLES.get(name.removeprefix("eval/"), name.removeprefix("eval/").replace("_", " "))
            found.append(charts.Chart(title, "step", "", lines, log_y=name in log_scores))
    return charts.draw(found) if found else None
