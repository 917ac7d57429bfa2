"""Calls in a thread: in order, one at a time, ended on exit, and no error is lost."""

import collections
import threading

import pytest

from ddpm_jax.runtime.background_writer import BackgroundWriter


def test_calls_are_in_order_and_the_caller_waits_for_the_one_before():
    """The second `submit` returns only after the first call has ended."""
    go, done = threading.Event(), []

    def write(number):
        if number == 0:
            assert go.wait(10)
        done.append((number, threading.current_thread() is threading.main_thread()))

    with BackgroundWriter(write) as writer:
        writer.submit(0)
        assert done == []  # the caller did not wait
        writer.raise_if_failed()  # does not wait either
        go.set()
        for number in (1, 2):
            writer.submit(number)
            assert [call[0] for call in done[:number]] == list(range(number))
    assert done == [(0, False), (1, False), (2, False)]


def fail(text):
    raise OSError(text)


def test_an_error_is_raised_once_at_the_next_call():
    with BackgroundWriter(fail) as writer:
        writer.submit("disk full")
        with pytest.raises(OSError, match="disk full"):
            writer.submit("never written")
        writer.submit("full again")
        with pytest.raises(OSError, match="full again"):
            writer.wait()
        writer.wait()
    with pytest.raises(OSError, match="the last one"), BackgroundWriter(fail) as writer:
        writer.submit("the last one")


def test_a_failure_is_found_without_waiting():
    with BackgroundWriter(fail) as writer:
        writer.submit("disk full")
        with pytest.raises(OSError, match="disk full"):
            collections.deque(iter(writer.raise_if_failed, "forever"), maxlen=0)


def submit_and_interrupt(write, *args):
    with BackgroundWriter(write) as writer:
        writer.submit(*args)
        raise KeyboardInterrupt


def test_an_error_of_the_program_waits_for_the_call_and_is_not_replaced_by_its_error():
    """As with Ctrl-C: what was given is written first."""
    go, done = threading.Event(), []

    def write(fails):
        assert go.wait(10)
        done.append(fails)
        if fails:
            raise OSError("disk full")

    for fails in (False, True):
        go.clear()
        threading.Timer(0.1, go.set).start()
        with pytest.raises(KeyboardInterrupt):
            submit_and_interrupt(write, fails)
        assert done[-1] == fails
    assert done == [False, True]
