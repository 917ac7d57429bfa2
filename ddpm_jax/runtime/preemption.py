"""Graceful shutdown on SIGTERM, SIGINT and a notice of preemption: the current step ends and the state is saved."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

from ddpm_jax.runtime.preemption_notice import PreemptionNotice


class GracefulShutdown:
    """Context manager in which SIGTERM and SIGINT set a flag instead of ending the process. A `PreemptionNotice` sets that
    of SIGTERM.

    with GracefulShutdown() as shutdown:
        for step in ...:
            if shutdown.check():
                save(); sys.exit(shutdown.exit_code)

    A Ctrl-C after the first signal interrupts immediately. Only the main thread receives signals, so this does nothing
    in other threads. The previous handlers are restored at the end. A Ctrl-C that no `check` returned is raised there.

    Args:
      sync: for several processes, e.g. `PreemptionSync`: takes the signal received by this process, or 0, and whether they
        must agree by the next call, and returns the signal on which all stop, or 0; every process calls it once per step.
        None for one process.
    """

    def __init__(self, sync: Callable[[int, bool], int] | None = None) -> None:
        self._sync = sync
        self._requested: int | None = None  # the first signal received by this process
        self._agreed: int | None = None
        self._interrupted = False  # whether KeyboardInterrupt was raised
        self._old: dict[int, object] = {}
        self._notice = PreemptionNotice(self._preempted)

    def check(self) -> int | None:
        """The signal on which to stop now, or None; the same in every process. Must be called once per step."""
        return self._check(agree_now=False)

    def check_last(self) -> int | None:
        """As `check`, after the last step: with a signal that came since the last `check`, on which several processes agree
        only one call later."""
        self._check(agree_now=True)
        return self._check(agree_now=True)

    def _check(self, agree_now: bool) -> int | None:
        if self._agreed is None:
            mine = self._requested or 0
            self._agreed = (mine if self._sync is None else self._sync(mine, agree_now)) or None
        return self._agreed

    @property
    def agreed(self) -> int | None:
        """The last result of `check`."""
        return self._agreed

    @property
    def exit_code(self) -> int:
        """128 + the signal returned by `check`, as in shells; 0 without one."""
        return 128 + self._agreed if self._agreed else 0

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        self._notice.__enter__()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._notice.__exit__()
        for number, handler in self._old.items():
            # None means a handler that was not set from Python; it cannot be restored from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()
        if kind is None and self._requested == signal.SIGINT and self._agreed is None and not self._interrupted:
            raise KeyboardInterrupt  # it came after the last `check`

    def _preempted(self) -> None:
        if self._requested is None:
            self._requested = signal.SIGTERM

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested is None:
            self._requested = number
        elif number == signal.SIGINT:
            self._interrupted = True
            signal.default_int_handler(number, frame)
