"""Training logs: progress line, metrics.jsonl, TensorBoard."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import FileAccessError, error_line, os_errors
from ddpm_jax.runtime.progress import StatusLine, Throughput, progress_parts
from ddpm_jax.runtime.tensorboard import TensorBoardWriter

METRICS = "metrics.jsonl"
CONSOLE_SCALARS = ("loss", "grad_norm")  # in the progress line


class TrainLogger(contextlib.AbstractContextManager):
    """Logs a training run.

    Args:
      workdir: the run's folder, for metrics.jsonl and tensorboard/.
      total_steps: last step of the training.
      start_step: first step. Later lines of metrics.jsonl are removed: a killed run writes them again. None appends to
        the file as it is.
      batch_size: images per step.
      is_writer: False in all processes except one; they write and print nothing.
      tensorboard: whether to write events; logs one line and continues if the package tensorboard is missing.
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
        tensorboard: bool = True,
        clock: Callable[[], float] = time.monotonic,
        out: TextIO | None = None,
    ) -> None:
        self._file = Path(workdir).absolute() / METRICS
        self._total = total_steps
        self._batch_size = batch_size
        self._is_writer = is_writer
        self._rate = Throughput(clock)
        self._line = StatusLine(sys.stderr if out is None else out, clock)
        self._step = 0
        self._shown: dict[str, float] = {}
        self._events = TensorBoardWriter(self._file.parent, METRICS) if is_writer and tensorboard else None
        self._metrics: TextIO | None = None
        if is_writer:
            if start_step is not None:
                _truncate_after(self._file, start_step)
            with os_errors(f"cannot write {self._file}"):
                self._metrics = self._file.open("a", encoding="utf-8")

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
        if not self._is_writer:
            return
        values = {name: float(value) for name, value in values.items()}
        # JSON has no NaN and no infinity.
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with os_errors(f"cannot write {self._file}"):
            self._metrics.write(json.dumps({"step": int(step), "time": round(time.time(), 3), **numbers}) + "\n")
            self._metrics.flush()
        if self._events is not None:
            self._events.log_scalars(step, values)
        self._shown |= {name: values[name] for name in CONSOLE_SCALARS if name in values}
        if step > self._step:
            self._rate.update(step)
            self._step = step
        self._show()

    def rates(self) -> dict[str, float]:
        """Recent steps and images per second, excluding pauses; empty until they are known."""
        steps = self._rate.per_second()
        return {} if steps is None else {"steps_per_second": steps, "images_per_second": steps * self._batch_size}

    def log_image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records an image, uint8 [H, W, C], in TensorBoard."""
        if self._is_writer and self._events is not None:
            self._events.log_image(step, name, grid)

    def pause(self) -> Any:
        """Context manager whose time is excluded from the training speed: sampling, evaluating, saving."""
        return self._rate.pause()

    def close(self) -> None:
        """Flushes and closes the logs. May be called twice."""
        self._line.end()
        if self._events is not None:
            self._events.close()
        if self._metrics is not None:
            self._metrics.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self) -> None:
        shown = [f"{name} {value:.4g}" for name, value in self._shown.items()]
        begin, *speed = progress_parts(self._step, self._total, "steps", "step ", self._rate, self._batch_size)
        self._line.show(" · ".join([begin, *shown, *speed]))


def _truncate_after(file: Path, start_step: int) -> None:
    """Keeps the lines of steps up to `start_step`; none for `start_step` 0."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error
    # From the beginning, not even step 0 is kept: the untrained model is evaluated again.
    lines = text.splitlines(keepends=True) if start_step > 0 else []
    kept = "".join(line for line in lines if 0 <= _step_of(line) <= start_step)
    if kept != text:
        write_atomically(file, kept)


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 for an incomplete line."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1
