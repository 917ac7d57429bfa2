import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from ddpm_jax.runtime.preemption import GracefulShutdown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_the_flag(number):
    with GracefulShutdown() as shutdown:
        assert shutdown._requested is shutdown.check() is shutdown.agreed is None
        assert shutdown.exit_code == 0
        os.kill(os.getpid(), number)
        assert shutdown._requested == shutdown.check() == shutdown.agreed == number
        assert shutdown.exit_code == 128 + number


def test_the_first_signal_counts():
    with GracefulShutdown() as shutdown:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown._requested == signal.SIGTERM


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_a_request_interrupts_at_once(first):
    with GracefulShutdown() as shutdown:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert shutdown._requested == first


def test_ctrl_c_after_the_last_check_is_raised_at_the_end():
    for error in (None, RuntimeError):
        shutdown = GracefulShutdown()
        shutdown.__enter__()
        assert shutdown.check() is None
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.nullcontext() if error else pytest.raises(KeyboardInterrupt):  # an error that ends the block is first
            shutdown.__exit__(error, None, None)


def test_the_last_check_has_the_votes_of_the_last_step():
    votes = [0]  # `PreemptionSync` returns the votes of the previous call

    def sync(mine, agree_now):
        urgent.append(agree_now)
        votes.append(mine)
        return votes[-2]

    urgent = []
    with GracefulShutdown(sync) as shutdown:
        assert shutdown.check() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert shutdown.check_last() == signal.SIGINT
    assert urgent == [False, True, True]


def test_the_synchronized_signal_applies_not_the_one_of_this_process():
    received, answers = [], iter([0, 0, signal.SIGTERM])

    def sync(mine, agree_now):
        received.append(mine)
        return next(answers)

    with GracefulShutdown(sync) as shutdown:
        assert shutdown.check() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert shutdown.check() is None  # the other processes do not know yet
        assert (shutdown.agreed, shutdown.exit_code) == (None, 0)
        assert shutdown.check() == shutdown.check() == shutdown.agreed == signal.SIGTERM
        assert shutdown.exit_code == 128 + signal.SIGTERM
    assert received == [0, signal.SIGINT, signal.SIGINT]  # no further calls once all have agreed


def test_old_handlers_are_restored_even_after_an_error():
    old = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    shutdown = GracefulShutdown()
    shutdown.__enter__()
    assert signal.getsignal(signal.SIGTERM) != old[0]
    error = RuntimeError()
    assert not shutdown.__exit__(RuntimeError, error, None)  # and the error is not swallowed
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == old


def test_in_another_thread_it_does_nothing():
    old = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with GracefulShutdown() as shutdown:
            seen.extend([signal.getsignal(signal.SIGTERM), shutdown._requested])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [old, None]


def test_the_loop_ends_with_the_exit_code_of_shells(child_environment):
    loop = (
        "import os, sys, signal\n"
        "from ddpm_jax.runtime.preemption import GracefulShutdown\n"
        "with GracefulShutdown() as shutdown:\n"
        "    for step in range(10):\n"
        "        if shutdown.check(): print('saved', step); sys.exit(shutdown.exit_code)\n"
        "        if step == 3: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    child = subprocess.run([sys.executable, "-c", loop], env=child_environment(), capture_output=True, text=True)
    assert (child.stdout, child.returncode) == ("saved 4\n", 143)
