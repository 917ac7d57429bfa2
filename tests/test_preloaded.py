"""Programs in forked processes have the output, exit codes and signals of `subprocess`."""

import os
import signal
import subprocess
import sys

import pytest

from tests import preloaded


def test_a_program_has_its_own_arguments_environment_and_end(tmp_path):
    code = (
        "import atexit, os, sys\n"
        "atexit.register(print, 'at exit')\n"
        "print('ddpm_jax.cli.train' in sys.modules, sys.argv, os.environ['A_NAME'], __name__)\n"
        "print('to stderr', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    done = preloaded.run([sys.executable, "-c", code, "x", "y"], tmp_path, env=os.environ | {"A_NAME": "value"})
    assert done.returncode == 3
    assert done.stdout == "True ['-c', 'x', 'y'] value __main__\nat exit\n"  # True: imported before
    assert done.stderr == "to stderr\n"


def test_an_exception_is_exit_code_1_with_a_traceback(tmp_path):
    done = preloaded.run([sys.executable, "-c", "raise KeyError('x')"], tmp_path)
    assert done.returncode == 1
    assert "KeyError: 'x'" in done.stderr


def test_main_is_the_program_of_the_command_line(tmp_path):
    line = [sys.executable, "main.py", "--workdir=x", "--mode=fly"]
    ours = preloaded.run(line, tmp_path)
    theirs = subprocess.run(line, cwd=preloaded.REPOSITORY, capture_output=True, text=True, check=False)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert ours.returncode == 2


def test_signals(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = preloaded.Process(sleep)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        process.send_signal(number)
        assert process.wait(timeout=60) == -number
        process.kill()  # has no effect after the end


def test_another_interpreter_is_an_error():
    with pytest.raises(ValueError, match="is not"):
        preloaded.Process(["python2", "main.py"])
