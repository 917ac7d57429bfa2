"""A function in another process: its result, its errors and its end."""

import operator
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ddpm_jax.planning import targets
from ddpm_jax.planning.worker import run_in_process
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError


def test_a_result_comes_back_and_the_environment_is_that_of_the_process_only():
    found = run_in_process(os.getenv, "PLAN_TEST", environment={"PLAN_TEST": "7"}, label="reading")
    assert found == "7"
    assert "PLAN_TEST" not in os.environ


def test_errors_are_raised_here():
    with pytest.raises(UnavailableError, match="compiling failed: TypeError"):
        run_in_process(operator.add, 1, "a", environment={}, label="compiling")
    with pytest.raises(InvalidArgumentError, match="target=x"):
        run_in_process(targets.parse_target, "x", environment={"JAX_PLATFORMS": "cpu"}, label="parsing")


def test_a_process_that_ends_without_a_result_is_one_line():
    with pytest.raises(UnavailableError, match=r"compiling ended without a result \(exit code 3"):
        run_in_process(os._exit, 3, environment={}, label="compiling")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_process_ends_with_its_parent(repository, number):
    program = (  # a shell starts background jobs with SIGINT ignored
        "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from ddpm_jax.planning.worker import run_in_process\n"
        "if __name__ == '__main__':\n    run_in_process(time.sleep, 1000, environment={}, label='compiling')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=repository, stderr=subprocess.DEVNULL)
    try:
        children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        sleeping = wait_for(lambda: [pid for pid in children.read_text().split() if is_sleeping_child(pid)])
        parent.send_signal(number)
        parent.wait(30)
        wait_for(lambda: not any(pathlib.Path(f"/proc/{pid}/cmdline").exists() for pid in sleeping))
    finally:
        parent.kill()
        parent.wait()


def is_sleeping_child(pid):
    """Whether a process runs the function, in its main thread, and watches its parent in another."""
    command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"spawn_main" in command and len(list(pathlib.Path(f"/proc/{pid}/task").iterdir())) > 1


def wait_for(condition, seconds=60.0):
    """The first result of `condition` that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("not in time")
