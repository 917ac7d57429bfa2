"""Training logs: progress line, metrics.jsonl and the trackers.

Tags are the same everywhere: train/loss, perf/steps_per_second, eval/frechet.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import numpy as np

from ddpm_jax.runtime.progress import StatusLine, Throughput, progress_parts
from ddpm_jax.runtime.trackers import Tracker
from ddpm_jax.runtime.trackers.jsonl import JsonLines

CONSOLE_SCALARS = ("train/loss", "train/grad_norm")  # in the progress line, without the group


class TrainLogger(contextlib.AbstractContextManager):
    """Logs a training run.

    Args:
      workdir: the run's folder, for metrics.jsonl.
      total_steps: last step of the training.
      start_step: first step. Later lines of metrics.jsonl are removed: a killed run writes them again. None appends to
        the file as it is.
      batch_size: images per step.
      is_writer: False in all processes except one; they write and print nothing.
      tracker: gets the same values, and images and texts; closed with the log. None, or without `is_writer`: not used.
      clock: monotonic seconds.
      out: destination of lines, by default stderr; a terminal's line is rewritten.

    Raises:
      FileAccessError: metrics.jsonl cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int,
        start_step: int | None,
        batch_size: int,
        is_writer: bool = True,
        tracker: Tracker | None = None,
        clock: Callable[[], float] = time.monotonic,
        out: TextIO | None = None,
    ) -> None:
        self._total = total_steps
        self._batch_size = batch_size
        self._is_writer = is_writer
        self._rate = Throughput(clock)
        self._line = StatusLine(sys.stderr if out is None else out, clock)
        self._step = 0
        self._shown: dict[str, float] = {}
        self._seconds_at_peak: float | None = None
        self._tracker = tracker if is_writer else None
        self._metrics = JsonLines(workdir, start_step) if is_writer else None

    def tick(self, step: int) -> None:
        """Records that `step` steps are done. Prints the progress line at intervals."""
        if not self._is_writer:
            return
        self._rate.update(step)
        self._step = step
        if self._line.due() or step >= self._total:
            self._show()

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records scalars of the completed `step` and prints the progress line.

        Raises:
          FileAccessError: metrics.jsonl cannot be written.
        """
        if self._metrics is None:
            return
        values = {name: float(value) for name, value in values.items()}
        self._metrics.log_scalars(step, values)
        if self._tracker is not None:
            self._tracker.log_scalars(step, values)
        self._shown |= {name: values[name] for name in CONSOLE_SCALARS if name in values}
        if step > self._step:
            self._rate.update(step)
            self._step = step
        self._show()

    def set_step_cost(self, seconds_at_peak: float) -> None:
        """Adds the MFU to the rates: a step would take this time at the peak FLOP/s of all devices."""
        self._seconds_at_peak = seconds_at_peak

    def rates(self) -> dict[str, float]:
        """Recent steps and images per second, excluding pauses, MFU and the seconds left; empty until they are known."""
        steps = self._rate.per_second()
        if steps is None:
            return {}
        found = {"perf/steps_per_second": steps, "perf/images_per_second": steps * self._batch_size}
        if self._seconds_at_peak is not None:
            found["perf/mfu"] = steps * self._seconds_at_peak
        return found | {"perf/seconds_left": max(self._total - self._step, 0) / steps}

    def log_image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records an image, uint8 [H, W, C], in the trackers."""
        if self._tracker is not None:
            self._tracker.log_image(step, name, grid)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Records a text in Markdown in the trackers."""
        if self._tracker is not None:
            self._tracker.log_text(step, name, text)

    def sync(self) -> None:
        """Writes all recorded scalars to metrics.jsonl, before a checkpoint of the step. On this machine they always are.

        Raises:
          FileAccessError: metrics.jsonl cannot be written.
        """
        if self._metrics is not None:
            self._metrics.sync()

    def pause(self) -> Any:
        """Context manager whose time is excluded from the training speed: sampling, evaluating, saving."""
        return self._rate.pause()

    def close(self) -> None:
        """Flushes and closes the logs. May be called twice."""
        self._line.end()
        if self._tracker is not None:
            self._tracker.close()
        if self._metrics is not None:
            self._metrics.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self) -> None:
        shown = [f"{name.rpartition('/')[2]} {value:.4g}" for name, value in self._shown.items()]
        begin, *speed = progress_parts(self._step, self._total, "steps", "step ", self._rate, self._batch_size)
        self._line.show(" · ".join([begin, *shown, *speed]))
