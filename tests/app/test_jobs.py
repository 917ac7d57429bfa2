"""Jobs: one at a time, cancelled at the next report, errors to the reader, the newest of what was emitted."""

import threading

import pytest

from ddpm_jax.app.jobs import Cancelled, Jobs

TIMEOUT_S = 20


def test_a_job_yields_what_it_emits_and_its_result():
    gate = threading.Event()

    def work(emit):
        emit("first")
        assert gate.wait(TIMEOUT_S)
        return "result"

    results = Jobs().run("a", work)
    assert next(results) == "first"
    gate.set()
    assert list(results) == ["result"]


def test_a_slow_reader_gets_the_newest_stage():
    emitted = threading.Event()

    def work(emit):
        emit(0)
        for number in range(1, 100):
            emit(number)
        emitted.set()
        assert gate.wait(TIMEOUT_S)
        return "result"

    gate = threading.Event()
    results = Jobs().run("a", work)
    first = next(results)
    assert emitted.wait(TIMEOUT_S)
    seen = [first]
    if first != 99:
        seen.append(next(results))
    assert seen[-1] == 99
    assert len(seen) <= 2
    gate.set()
    assert list(results) == ["result"]


def test_a_cancelled_job_ends_at_its_next_report():
    jobs, steps = Jobs(), []

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


def test_another_job_waits_and_can_be_cancelled_before_it_starts():
    jobs, gate, ran = Jobs(), threading.Event(), []

    def first(emit):
        emit("running")
        assert gate.wait(TIMEOUT_S)
        return "first"

    running = jobs.run("a", first)
    assert next(running) == "running"
    found = []

    def read():
        try:
            list(jobs.run("b", lambda emit: ran.append("b")))
        except Cancelled:
            found.append("cancelled")

    waiting = threading.Thread(target=read)
    waiting.start()
    while not jobs.cancel("b"):
        pass
    gate.set()
    assert list(running) == ["first"]
    waiting.join(TIMEOUT_S)
    assert found == ["cancelled"]
    assert ran == []
    assert list(jobs.run("b", lambda emit: "later")) == ["later"]


def test_a_job_ends_if_its_reader_leaves():
    ended = threading.Event()

    def work(emit):
        try:
            while True:  # faster than it is read
                emit("stage")
        finally:
            ended.set()

    results = Jobs().run("a", work)
    next(results)
    results.close()
    assert ended.wait(TIMEOUT_S)


def test_errors_reach_the_reader():
    def work(emit):
        raise ValueError("num_steps is 0")

    with pytest.raises(ValueError, match="num_steps is 0"):
        list(Jobs().run("a", work))
