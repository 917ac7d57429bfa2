"""Jobs: one at a time in their order, cancelled at the next report or while they wait, errors to the reader."""

import gc
import threading
import weakref

import pytest

from ddpm_jax.app import jobs as jobs_module
from ddpm_jax.app.jobs import Cancelled, Jobs
from ddpm_jax.runtime.errors import UnavailableError

TIMEOUT_S = 20


@pytest.fixture
def jobs():
    return Jobs(lambda before: f"{before} before")


def read_until(results, value):
    """Read results until one of them is `value`; those before are stages that a faster reader sees."""
    while next(results) != value:
        pass


class Reader(threading.Thread):
    """Reads a job in a thread: `seen` is what it yields, `error` what it raises."""

    def __init__(self, results):
        super().__init__(daemon=True)
        self.results, self.seen, self.error, self.begun = results, [], None, threading.Event()
        self.start()

    def run(self):
        try:
            for value in self.results:
                self.seen.append(value)
                self.begun.set()
        except Exception as error:
            self.error = error

    def ended(self):
        self.join(TIMEOUT_S)
        return not self.is_alive()


def blocking(gate):
    def work(emit):
        emit("running")
        assert gate.wait(TIMEOUT_S)
        emit("after the gate")
        return "result"

    return work


def test_a_job_yields_what_it_emits_and_its_result(jobs):
    gate = threading.Event()
    results = jobs.run("a", blocking(gate))
    read_until(results, "running")
    gate.set()
    assert list(results)[-1] == "result"


def test_a_slow_reader_gets_the_newest_stage(jobs):
    emitted = threading.Event()

    def work(emit):
        for number in range(100):
            emit(number)
        emitted.set()
        assert gate.wait(TIMEOUT_S)
        return "result"

    gate = threading.Event()
    results = jobs.run("a", work)
    seen = [next(results)]
    assert emitted.wait(TIMEOUT_S)
    if seen != [99]:
        seen.append(next(results))
    assert seen[-1] == 99
    gate.set()
    assert list(results) == ["result"]


def test_a_cancelled_job_ends_at_its_next_report(jobs):
    steps = []

    def work(emit):
        for step in range(1000):
            steps.append(step)
            emit(step)
            if step == 3:
                assert jobs.cancel("a")
        return "result"

    with pytest.raises(Cancelled):
        list(jobs.run("a", work))
    assert steps == [0, 1, 2, 3, 4]
    assert not jobs.cancel("a")


def test_jobs_wait_in_their_order_and_see_their_place(jobs):
    gate, order = threading.Event(), []
    running = jobs.run("first", blocking(gate))
    read_until(running, "running")
    waiting = []
    for name in ("b", "c", "d"):
        waiting.append(Reader(jobs.run(name, lambda emit, name=name: order.append(name))))
        assert waiting[-1].begun.wait(TIMEOUT_S)
    assert [reader.seen for reader in waiting] == [["1 before"], ["2 before"], ["3 before"]]
    assert jobs.cancel("b")  # the others go up, and it does not wait for its turn to end
    assert waiting[0].ended()
    assert isinstance(waiting[0].error, Cancelled)
    gate.set()
    assert list(running)[-1] == "result"
    assert all(reader.ended() and reader.error is None for reader in waiting[1:])
    assert order == ["c", "d"]
    assert set(waiting[1].seen) <= {"2 before", "1 before", "0 before", None}


def test_a_reader_that_leaves_a_waiting_job_ends_it(jobs):
    gate, ran = threading.Event(), []
    running = jobs.run("a", blocking(gate))
    read_until(running, "running")
    waiting = jobs.run("b", lambda emit: ran.append("b"))
    assert next(waiting) == "1 before"
    waiting.close()
    gate.set()
    assert list(running)[-1] == "result"
    assert list(jobs.run("c", lambda emit: "later"))[-1] == "later"
    assert ran == []


def test_too_many_jobs_are_refused(jobs, monkeypatch):
    monkeypatch.setattr(jobs_module, "MAX_JOBS", 1)
    gate = threading.Event()
    running = jobs.run("a", blocking(gate))
    read_until(running, "running")
    with pytest.raises(UnavailableError, match=r"^1 jobs run or wait: try again later$"):
        list(jobs.run("b", lambda emit: "b"))
    gate.set()
    assert list(running)[-1] == "result"
    assert list(jobs.run("b", lambda emit: "b"))[-1] == "b"


def test_all_are_cancelled_at_the_end(jobs):
    gate = threading.Event()
    readers = [Reader(jobs.run(name, blocking(gate))) for name in "ab"]
    assert all(reader.begun.wait(TIMEOUT_S) for reader in readers)
    jobs.close()
    gate.set()
    assert all(reader.ended() and isinstance(reader.error, Cancelled) for reader in readers)


def test_a_job_ends_if_its_reader_leaves(jobs):
    ended = threading.Event()

    def work(emit):
        try:
            while True:  # faster than it is read
                emit("stage")
        finally:
            ended.set()

    results = jobs.run("a", work)
    next(results)
    results.close()
    assert ended.wait(TIMEOUT_S)


def test_errors_reach_the_reader_and_hold_no_arrays(jobs):
    """An error remains in cycles of Gradio's frames, and with it the arrays of the job until they are found."""

    class Array:
        pass

    held = []

    def work(emit):
        array = Array()
        held.append(weakref.ref(array))
        raise ValueError("num_steps is 0")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="num_steps is 0") as caught:
            list(jobs.run("a", work))
        assert held[0]() is None
        assert caught.value.__traceback__ is not None
    finally:
        gc.enable()
