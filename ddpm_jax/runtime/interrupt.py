"""Being asked to stop: the first signal lets the step finish and the state be saved."""

import signal
import threading
from types import FrameType


class Interrupt:
    """Context in which SIGTERM and SIGINT set a flag instead of ending the process.

    with Interrupt() as interrupt:
        for step in ...:
            if interrupt.requested:
                save(); sys.exit(interrupt.exit_code)

    A Ctrl-C after the first request interrupts at once. Signals reach the main thread
    only, so in any other thread this does nothing. The old handlers come back at the end.
    """

    def __init__(self) -> None:
        self._requested: int | None = None
        self._old: dict[int, object] = {}

    @property
    def requested(self) -> int | None:
        """The first signal received (signal.SIGTERM or signal.SIGINT), None before."""
        return self._requested

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells report it; 0 where none came."""
        return 128 + self._requested if self._requested else 0

    def __enter__(self) -> "Interrupt":
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
