"""Write results in a thread, while the program computes the next ones."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class BackgroundWriter(contextlib.AbstractContextManager):
    """Context: calls of `write` in one thread, in the order of `submit`, at most one pending.

    On exit the pending call has ended, whatever ended the context. So Ctrl-C leaves no half-written result behind.

    Args:
      write: called with the arguments of `submit`; must not wait for another process of the job.
    """

    def __init__(self, write: Callable[..., None]):
        self._write = write
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None

    def submit(self, *args: Any) -> None:
        """Start a call after the one before has ended.

        Raises:
          Exception: what the call before raised; this one does not start.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, *args)

    def wait(self) -> None:
        """Wait for the pending call, and raise what it raises."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def raise_if_failed(self) -> None:
        """Raise the error of the pending call if it has failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()
