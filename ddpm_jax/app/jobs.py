"""One job at a time in a thread of its own, which reports what it has so far and can be cancelled; the others wait."""

import contextvars
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ddpm_jax.runtime.errors import UnavailableError

MAX_JOBS = 20  # that run or wait; each takes one of the 40 threads of Gradio, which requests need too

Work = Callable[[Callable[[Any], None]], Any]


class Cancelled(Exception):
    """The job was cancelled."""


class Job:
    """A function that runs in a thread."""

    def __init__(self, work: Work, changed: threading.Condition):
        """Does not start it yet.

        Args:
          work: emit -> result; calls `emit` with what it has so far, which raises Cancelled in it if the job is cancelled.
          changed: notified when the job is cancelled, for work that waits.
        """
        self._work, self._changed = work, changed
        self._cancel = threading.Event()
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="app-job", daemon=True)

    def cancel(self) -> None:
        """End the job at its next `emit` or `check`."""
        with self._changed:
            self._cancel.set()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise Cancelled if the job is cancelled."""
        if self._cancel.is_set():
            raise Cancelled

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
            self._events.put(("result", self._work(self._emit)))
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # whose arrays would remain on the device as long as the error
            self._events.put(("error", error))

    def _emit(self, stage: Any) -> None:
        self.check()
        self._events.put(("stage", stage))


class Jobs:
    """The jobs of all users of a page, of which one runs at a time, in the order in which they came."""

    def __init__(self, waiting: Callable[[int], Any]):
        """No jobs.

        Args:
          waiting: what a job emits that waits for a number of others; 0: when it starts.
        """
        self._waiting = waiting
        self._changed = threading.Condition()  # the line, or whether a job of it is cancelled
        self._line: list[Job] = []  # the first one runs
        self._of_session: dict[str, Job] = {}

    def run(self, session: str, work: Work) -> Iterator[Any]:
        """Run work for a session after the jobs that are there, as `Job.results`.

        Raises:
          UnavailableError: `MAX_JOBS` are there.
        """
        job = Job(lambda emit: self._in_turn(job, work, emit), self._changed)
        self._of_session[session] = job
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

    def close(self) -> None:
        """Cancel all jobs."""
        for job in list(self._of_session.values()):
            job.cancel()

    def _in_turn(self, job: Job, work: Work, emit: Callable[[Any], None]) -> Any:
        with self._changed:
            if len(self._line) >= MAX_JOBS:
                raise UnavailableError(f"{MAX_JOBS} jobs run or wait: try again later")
            self._line.append(job)
        try:
            with self._changed:
                shown = None
                while (before := self._line.index(job)) != 0:
                    job.check()
                    if before != shown:
                        emit(self._waiting(before))
                        shown = before
                    self._changed.wait()
            emit(self._waiting(0))
            return work(emit)
        finally:
            with self._changed:
                self._line.remove(job)
                self._changed.notify_all()
