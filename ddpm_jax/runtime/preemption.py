"""Being asked to stop: the first signal lets the step finish and the state be saved."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


class GracefulShutdown:
    """Context in which SIGTERM and SIGINT set a flag instead of ending the process.

    with Interrupt() as interrupt:
        for step in ...:
            if interrupt.check():
                save(); sys.exit(interrupt.exit_code)

    A Ctrl-C after the first request interrupts at once. Signals reach the main thread
    only, so in any other thread this does nothing. The old handlers come back at the end.

    Args:
      vote: with several processes, how they agree: takes the signal that this one received, or 0, and returns the one
        on which all stop, or 0; each process calls it once a step. None with one process.
    """

    def __init__(self, vote: Callable[[int], int] | None = None) -> None:
        self._vote = vote
        self._requested: int | None = None
        self._agreed: int | None = None
        self._old: dict[int, object] = {}

    @property
    def requested(self) -> int | None:
        """The first signal that this process received (signal.SIGTERM or signal.SIGINT), None before."""
        return self._requested

    def check(self) -> int | None:
        """The signal on which to stop now, None to go on; the same in every process. Call it once a step."""
        if self._agreed is None:
            self._agreed = self._requested if self._vote is None else self._vote(self._requested or 0) or None
        return self._agreed

    @property
    def agreed(self) -> int | None:
        """What `check` returned last."""
        return self._agreed

    @property
    def exit_code(self) -> int:
        """128 + the signal that `check` returned, as shells report it; 0 where it returned none."""
        return 128 + self._agreed if self._agreed else 0

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            # None stands for a handler that was not set from Python; it cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested is None:
            self._requested = number
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
