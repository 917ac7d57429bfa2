"""One job at a time in a thread of its own, which reports what it has so far and can be cancelled."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Cancelled(Exception):
    """The job was cancelled."""


class Job:
    """A function that runs in a thread."""

    def __init__(self, work: Callable[[Callable[[Any], None]], Any], device: threading.Lock):
        """Does not start it yet.

        Args:
          work: emit -> result; calls `emit` with what it has so far, which raises Cancelled in it if the job is cancelled.
          device: held while the work runs.
        """
        self._work, self._device = work, device
        self._cancel = threading.Event()
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="app-job", daemon=True)

    def cancel(self) -> None:
        """End the job at its next `emit`, or before it starts."""
        self._cancel.set()

    def results(self) -> Iterator[Any]:
        """Run the job; yields what it emits, the newest only if the reader is slower, and its result last.

        The job is cancelled if the reader stops.

        Raises:
          Cancelled: it was cancelled.
          Exception: of the work.
        """
        self._thread.start()
        try:
            while True:
                kind, value = self._events.get()
                for _ in range(self._events.qsize()):  # of this moment: the work may emit faster than this loop reads
                    kind, value = self._events.get()
                if kind == "error":
                    raise value
                yield value
                if kind == "result":
                    return
        finally:
            self.cancel()

    def _run(self) -> None:
        try:
            with self._device:
                self._check()
                result = self._work(self._emit)
            self._events.put(("result", result))
        except BaseException as error:
            self._events.put(("error", error))

    def _emit(self, stage: Any) -> None:
        self._check()
        self._events.put(("stage", stage))

    def _check(self) -> None:
        if self._cancel.is_set():
            raise Cancelled


class Jobs:
    """The jobs of all users of a page, of which one runs at a time."""

    def __init__(self) -> None:
        self._device = threading.Lock()
        self._of_session: dict[str, Job] = {}

    def run(self, session: str, work: Callable[[Callable[[Any], None]], Any]) -> Iterator[Any]:
        """Run work for a session, as `Job.results`."""
        job = self._of_session[session] = Job(work, self._device)
        try:
            yield from job.results()
        finally:
            if self._of_session.get(session) is job:
                del self._of_session[session]

    def cancel(self, session: str) -> bool:
        """Cancel the job of a session; whether there was one."""
        job = self._of_session.get(session)
        if job is not None:
            job.cancel()
        return job is not None
