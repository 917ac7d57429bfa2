"""metrics.jsonl: one line of JSON per logged step. Resuming, charts and --mode=compare read it."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import FileAccessError, error_line, os_errors

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class JsonLines:
    """Appends to metrics.jsonl of a run.

    Args:
      workdir: the run's folder.
      start_step: first step. Later lines are removed: a killed run writes them again. None appends to the file as it is.

    Raises:
      FileAccessError: the file cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int | None) -> None:
        self._path = storage.path(workdir) / METRICS
        if start_step is not None:
            _truncate_after(self._path, start_step)
        with os_errors(f"cannot write {self._path}"):
            self._file = storage.open_growing(self._path)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line with step, time and the values. NaN and infinity become null, because JSON has neither.

        Raises:
          FileAccessError: the file cannot be written.
        """
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with os_errors(f"cannot write {self._path}"):
            self._file.write(json.dumps({"step": int(step), "time": round(time.time(), 3), **numbers}) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Writes what a bucket does not have yet; see `storage.GrowingObject`.

        Raises:
          FileAccessError: the file cannot be written.
        """
        with os_errors(f"cannot write {self._path}"):
            storage.sync(self._file)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, in order; empty without the file.

    An incomplete last line, which a killed training leaves, is skipped, and so are damaged lines, with a log line.

    Raises:
      FileAccessError: it cannot be read.
    """
    file = storage.path(workdir) / METRICS
    lines = _read(file).splitlines(keepends=True)
    rows = [_parse(line) for line in lines]
    if damaged := sum(row is None for row, line in zip(rows, lines, strict=True) if line.endswith("\n")):
        logger.warning(f"{damaged} damaged line(s) of {file} are skipped")
    return [row for row in rows if row is not None]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error


def _truncate_after(file: Path, start_step: int) -> None:
    """Keeps the lines of steps up to `start_step`; none for `start_step` 0."""
    text = _read(file)
    # From the beginning, not even step 0 is kept: the untrained model is evaluated again.
    lines = text.splitlines(keepends=True) if start_step > 0 else []
    kept = "".join(line for line in lines if (row := _parse(line)) and row["step"] <= start_step)
    if kept != text:
        write_atomically(file, kept)


def _parse(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl: step, an integer of 0 or more, and numbers or None. None for a damaged or incomplete line."""
    try:
        row = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or row["step"] < 0:
        return None
    return row if all(value is None or isinstance(value, int | float) for value in row.values()) else None
