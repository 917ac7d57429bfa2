"""What a run tells while it trains: a progress line, metrics.jsonl, TensorBoard."""

import json
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import FileAccessError, error_line, os_errors
from ddpm_jax.runtime.progress import Progress, StatusLine, Throughput, progress_parts

logger = logging.getLogger(__name__)

__all__ = ["Progress", "TensorBoardWriter", "TrainLogger"]

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class TrainLogger:
    """The record of a training run.

    Args:
      workdir: the run's folder; metrics.jsonl and tensorboard/ go into it.
      total_steps: where training ends.
      start_step: the step it starts from. Lines of metrics.jsonl after it are cut off: a run that was killed
        writes them again. None leaves the file as it is, to add to.
      batch_size: images a step.
      is_writer: False in all processes but one: those write and say nothing.
      tensorboard: whether to write events; without tensorflow one line says so, and all goes on.
      on_line: which of the scalars the progress line shows.
      out: where lines go, by default stderr; a terminal's line is rewritten in place.

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
        on_line: Collection[str] = ("loss", "grad_norm"),
        clock: Callable[[], float] = time.monotonic,
        out: TextIO | None = None,
    ) -> None:
        self._file = Path(workdir).absolute() / METRICS
        self._total = total_steps
        self._batch_size = batch_size
        self._is_writer = is_writer
        self._rate = Throughput(clock)
        self._line = StatusLine(sys.stderr if out is None else out, clock)
        self._on_line = on_line
        self._step = 0
        self._shown: dict[str, float] = {}
        self._events = TensorBoardWriter(self._file.parent) if is_writer and tensorboard else None
        self._metrics: TextIO | None = None
        if is_writer:
            if start_step is not None:
                _truncate_after(self._file, start_step)
            with os_errors(f"cannot write {self._file}"):
                self._metrics = self._file.open("a", encoding="utf-8")

    def tick(self, step: int) -> None:
        """`step` steps are done. Prints the progress line now and then."""
        if not self._is_writer:
            return
        if self._events is not None:
            self._events.warm()  # after the first step, so that it waits for no import
        self._rate.update(step)
        self._step = step
        if self._line.due() or step >= self._total:
            self._show()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers of `step`, which is done, and prints the progress line with those that it shows.

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
            self._events.scalars(step, values)
        self._shown |= {name: values[name] for name in self._on_line if name in values}
        if step > self._step:
            self._rate.update(step)
            self._step = step
        self._show()

    def rates(self) -> dict[str, float]:
        """Steps and images a second over the recent past, pauses left out; empty before they are known."""
        steps = self._rate.per_second()
        return {} if steps is None else {"steps_per_second": steps, "images_per_second": steps * self._batch_size}

    def image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records a picture, uint8 [H, W, C], in TensorBoard."""
        if self._is_writer and self._events is not None:
            self._events.image(step, name, grid)

    def pause(self) -> Any:
        """Context whose time counts as no training: sampling, evaluating, saving."""
        return self._rate.pause()

    def close(self) -> None:
        """Writes what is still waiting. May be called twice."""
        self._line.end()
        if self._events is not None:
            self._events.close()
        if self._metrics is not None:
            self._metrics.close()

    def __enter__(self) -> "TrainLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self) -> None:
        shown = [f"{name} {value:.4g}" for name, value in self._shown.items()]
        begin, *speed = progress_parts(self._step, self._total, "steps", "step ", self._rate, self._batch_size)
        self._line.show(" · ".join([begin, *shown, *speed]))


class TensorBoardWriter:
    """TensorBoard's events, written by a thread: importing tensorflow takes seconds, and nobody need wait. A context.

    Where they cannot be written, one line is logged: no picture of a number is worth a run.

    Args:
      workdir: the run's folder; they go into its tensorboard/.
      beside: the file that has the same numbers.
    """

    def __init__(self, workdir: str | os.PathLike, beside: str = METRICS) -> None:
        self._folder = Path(workdir).absolute() / TENSORBOARD
        self._beside = beside
        self._queue: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._off = False

    def warm(self) -> None:
        """Begin to import what will be needed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
            self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float], curve: str = "") -> None:
        """Record numbers of `step`.

        Args:
          step: where on the axis.
          values: tag -> number; each tag is a chart.
          curve: "" for the run itself; other names are curves of their own in these charts, and files in a folder of
            their own: TensorBoard reads of a folder only the newest file, which must stay that of a run in training.
        """
        self._put(curve, "write_scalars", int(step), dict(values))

    def image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C]."""
        self._put("", "write_images", int(step), {name: np.asarray(grid, np.uint8)})

    def close(self) -> None:
        """Write what is still waiting. May be called twice."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, *entry: Any) -> None:
        self.warm()
        if not self._off:
            self._queue.put(entry)

    def _run(self) -> None:
        writers: dict[str, Any] = {}
        try:
            open_writer = _load_writers()
            while entry := self._queue.get():
                curve, method, *arguments = entry
                if curve not in writers:
                    writers[curve] = open_writer(str(self._folder / curve))
                getattr(writers[curve], method)(*arguments)
                if self._queue.empty():
                    for writer in writers.values():
                        writer.flush()
            for writer in writers.values():
                writer.close()
        except Exception as error:  # an import may fail in any way
            self._off = True
            logger.warning(f"TensorBoard is off ({error_line(error)}); {self._beside} has the same numbers")


def _load_writers() -> Callable[[str], Any]:
    """Folder -> writer of events into it."""
    # Else tensorflow tells of GPU libraries that it shall not use, and of the rounding of operations it will not do.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf
    from clu import metric_writers

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)  # else it takes the memory that JAX computes in
    return metric_writers.SummaryWriter


def _truncate_after(file: Path, start_step: int) -> None:
    """Leaves the lines of steps up to `start_step`; from the beginning, none."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error
    # From the beginning, not even those of step 0 stay: it evaluates and draws the untrained model again.
    lines = text.splitlines(keepends=True) if start_step > 0 else []
    kept = "".join(line for line in lines if 0 <= _step_of(line) <= start_step)
    if kept != text:
        write_atomically(file, kept)


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 where the line is torn."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1
