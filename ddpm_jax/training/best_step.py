"""The step with the best score so far, which is never deleted (train.keep_best).

The scores are those of metrics.jsonl, so a resumed run knows the best step of the run that was killed.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.plotting import image_grid, score_charts
from ddpm_jax.runtime import distributed, storage, workdir
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import os_errors
from ddpm_jax.runtime.trackers import jsonl

logger = logging.getLogger(__name__)

LOWER = ("eval/frechet", "eval/kid", "eval/loss_ema", "eval/loss_raw")  # lower is better
HIGHER = ("eval/inception_score", "eval/precision", "eval/recall")
TAGS = (*LOWER, *HIGHER)
AUTO = "auto"  # AUTO_TAG if the evaluations measure it, otherwise none
AUTO_TAG = "eval/frechet"


class BestStep:
    """Follows one score.

    Args:
      tag: one of `TAGS`.

    Attributes:
      step: the best step; None before the first finite score.
      value: its score.
    """

    def __init__(self, tag: str) -> None:
        if tag not in TAGS:
            raise ValueError(f"{tag!r} is not a score: choose one of {', '.join(TAGS)}")
        self._tag, self._sign = tag, 1 if tag in LOWER else -1
        self.step: int | None = None
        self.value = math.nan

    def update(self, step: int, values: Mapping[str, Any]) -> bool:
        """Takes the scores of a step; returns whether it is the best. The first of equal scores is."""
        value = values.get(self._tag)
        if value is None or not math.isfinite(value):
            return False
        if self.step is not None and self._sign * value >= self._sign * self.value:
            return False
        self.step, self.value = step, float(value)
        return True


def best_of(rows: Iterable[Mapping[str, Any]], tag: str, steps: Collection[int]) -> BestStep:
    """The best of the logged scores.

    Args:
      rows: lines of metrics.jsonl.
      tag: as for `BestStep`.
      steps: those with a checkpoint; the others are ignored.
    """
    best = BestStep(tag)
    for row in rows:
        if row["step"] in steps:
            best.update(row["step"], row)
    return best


class BestCheckpoint:
    """Pins the checkpoint with the best score, and keeps the chart of all scores, eval/training.png, up to date.

    Args:
      tag: one of `TAGS`; "" for none.
      run_folder: the workdir, with the metrics.jsonl of the steps up to the latest checkpoint.
      checkpoints: those of the run.
    """

    def __init__(self, tag: str, run_folder: Path, checkpoints: CheckpointManager) -> None:
        self._tag, self._run_folder, self._checkpoints = tag, run_folder, checkpoints
        self._best: BestStep | None = best_of(jsonl.read_metrics(run_folder), tag, checkpoints.steps()) if tag else None
        (step,) = distributed.broadcast_ints([-1 if self._best is None or self._best.step is None else self._best.step])
        if step >= 0:
            checkpoints.pin(step)

    def update(self, step: int, values: Mapping[str, float]) -> bool:
        """Takes the logged scores of a step. Returns whether its checkpoint is the best one, which must be saved."""
        with distributed.raise_on_all_processes():
            if distributed.is_primary_process():
                self._draw()
        if self._best is None:
            return False
        if self._tag not in values:
            logger.info(f"{self._tag} was not measured at step {step:,}, so `keep_best` has no effect there")
        (is_best,) = distributed.broadcast_ints([int(self._best.update(step, values))])
        if is_best:
            self._checkpoints.pin(step)
        return bool(is_best)

    def _draw(self) -> None:
        rows = jsonl.read_metrics(self._run_folder)
        names = sorted({name for row in rows for name in row if name in TAGS})
        picture = score_charts.draw_scores({"": rows}, names)
        if picture is not None:
            folder = workdir.evaluation_folder(self._run_folder)
            with os_errors(f"cannot write into {folder}"):
                storage.make_folder(folder, parents=False)
                image_grid.save_png(folder / "training.png", picture)
