"""Progress, throughput and remaining time in one line: rewritten in a terminal, printed at intervals to a file.

Throughput is measured over the recent past, without compilation and without the time inside `pause()`.
"""

import contextlib
import contextvars
import logging
import math
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import ClassVar, TextIO

WINDOW_S = 30.0  # throughput is the mean over this time
MIN_WINDOW_S = 0.5  # shorter times give no throughput
TERMINAL_S = 1.0  # between two updates of the line in a terminal
FILE_S = 10.0  # between two lines in a log file
# Whether status lines that are made in this context appear; a library shows none unless its caller asks for them.
_shown: contextvars.ContextVar[bool] = contextvars.ContextVar("shown", default=True)


@contextlib.contextmanager
def show_status_lines(shown: bool) -> Iterator[None]:
    """Context manager: whether the status lines that are made inside, such as those of `Progress`, appear at all."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


class Throughput:
    """Counts per second over the recent past. The first count only starts the clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: float = WINDOW_S) -> None:
        self._clock = clock
        self._window = window
        self._paused = 0.0
        self._points: deque[tuple[float, int]] = deque()

    def update(self, done: int) -> None:
        now = self._clock() - self._paused
        # Replace the newest point until it is a fiftieth of the window after the previous one, to bound their number.
        if len(self._points) > 1 and now - self._points[-2][0] < self._window / 50:
            self._points.pop()
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[1][0] >= self._window:
            self._points.popleft()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    def per_second(self) -> float | None:
        """Counts per second; None until two counts are `MIN_WINDOW_S` apart."""
        if len(self._points) < 2:
            return None
        (begin, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - begin) if end - begin >= MIN_WINDOW_S and last > first else None

    def seconds_left(self, remaining: int) -> float | None:
        speed = self.per_second()
        return None if speed is None else remaining / speed


class StatusLine:
    """One line that is rewritten in a terminal or notebook and printed at intervals to a file.

    Attributes:
      shown: the line visible in the terminal, or None; other output must be printed above it.
    """

    shown: ClassVar["StatusLine | None"] = None

    def __init__(self, out: TextIO, clock: Callable[[], float]) -> None:
        self._out = out
        self._clock = clock
        self._notebook = type(out).__module__.startswith("ipykernel")  # Jupyter: \r works, \x1b[K does not
        self._live = self._notebook or out.isatty()
        self._visible = _shown.get()
        self._open = False
        self._length = 0  # of the visible line in a notebook
        self._last = -math.inf
        self._lock = threading.Lock()  # TensorBoard's thread may log

    def due(self) -> bool:
        return self._clock() - self._last >= (TERMINAL_S if self._live else FILE_S)

    def show(self, text: str) -> None:
        self._last = self._clock()
        if not self._visible:
            return
        with self._lock:
            if self._live:
                width = shutil.get_terminal_size().columns - 1  # a full line would wrap, and \r would not return to its start
                self._out.write(f"\r{text[:width]}" + self._clear(len(text[:width])))
                self._open = True
                StatusLine.shown = self
            else:
                self._out.write(text + "\n")
            self._out.flush()

    def print_above(self, text: str) -> None:
        """Prints a permanent line; the next update shows the status line below it."""
        with self._lock:
            if self._open and self._notebook:
                text = f"\r{text}" + self._clear(len(text))
            elif self._open:
                text = "\r\x1b[K" + text
            self._out.write(text + "\n")
            self._open, self._length = False, 0
            self._out.flush()

    def _clear(self, length: int) -> str:
        """What erases the rest of the previous line, after `length` new characters."""
        if not self._notebook:
            return "\x1b[K"
        spaces = " " * max(0, self._length - length)
        self._length = length
        return spaces

    def end(self) -> None:
        if StatusLine.shown is self:
            StatusLine.shown = None
        with self._lock:
            if self._open:
                self._out.write("\n")
                self._out.flush()
                self._open = False


class LineHandler(logging.Handler):
    """Prints log records as lines on stderr, above the status line if a terminal shows one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, line = self.format(record), StatusLine.shown
            if line is not None:
                line.print_above(text)
            else:
                print(text, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class Progress(contextlib.AbstractContextManager):
    """Progress of `total` units: count, throughput and remaining time; after a title, if there are several such passes."""

    def __init__(
        self,
        total: int,
        unit: str = "images",
        title: str = "",
        *,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._unit = unit
        self._title = f"{title}: " if title else ""
        self._line = StatusLine(sys.stderr if out is None else out, clock)
        self._rate = Throughput(clock)

    def update(self, done: float) -> None:
        """Reports that `done` of the total are finished, fractions included. Time before the first call is not measured."""
        self._rate.update(done)
        if self._line.due() or done >= self._total:
            self._line.show(self._title + " · ".join(progress_parts(done, self._total, self._unit, "", self._rate)))

    def __exit__(self, *_: object) -> None:
        self._line.end()


def progress_parts(done: float, total: int, unit: str, prefix: str, rate: Throughput, images: int = 0) -> list[str]:
    """Count and percentage and, once known, throughput (also of images, with `images` per count) and remaining time."""
    counted = f"{prefix}{int(done):,} / {total:,}" if prefix else f"{int(done):,} / {total:,} {unit}"
    parts = [f"{counted} ({int(100 * done // max(total, 1))}%)"]
    speed = rate.per_second()
    if speed is not None:
        parts.append(format_rate(speed, unit))
        if images:
            parts.append(format_rate(speed * images, "images"))
        if done < total:
            parts.append(f"{format_duration(rate.seconds_left(total - done))} left")
    return parts


def format_rate(per_second: float, unit: str) -> str:
    """3.2 steps/s · 1,234 images/s · 14.3 s/step."""
    if per_second < 0.1:
        return f"{1 / per_second:,.1f} s/{unit.removesuffix('s')}"
    digits = 2 if per_second < 1 else 1 if per_second < 100 else 0
    return f"{per_second:,.{digits}f} {unit}/s"


def format_duration(seconds: float) -> str:
    """1:05 · 2:03:04 · 3 days 4 h."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} day{'s' * (days > 1)} {hours} h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
