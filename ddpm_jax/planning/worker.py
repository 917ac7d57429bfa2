"""Runs a compilation in a process of its own: Ctrl-C stops it at once, and a line shows that it is at work.

A compiler holds its process for minutes, in which Python handles no signal.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from ddpm_jax.runtime.errors import ExpectedError, UnavailableError
from ddpm_jax.runtime.progress import StatusLine, format_duration

POLL_S = 0.5


def run_in_process(function: Callable[..., Any], *args: Any, environment: Mapping[str, str], label: str) -> Any:
    """`function(*args)` in a new process; its arguments and result must be picklable.

    Args:
      function: of a module, not of `__main__`.
      *args: its arguments.
      environment: variables of the process, in addition to those of this one.
      label: what the progress line shows before the elapsed time.

    Raises:
      ExpectedError: raised by the function.
      UnavailableError: the process ended without a result, or the function raised another exception.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, label, function, args), daemon=True)
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    sender.close()
    line, started = StatusLine(sys.stderr, time.monotonic), time.monotonic()
    try:
        while not receiver.poll(POLL_S):
            if line.due():
                line.show(f"{label}: {format_duration(time.monotonic() - started)}")
        error, result = receiver.recv()
    except EOFError:
        process.join()
        reason = f"exit code {process.exitcode}; with -9 the machine had too little memory"
        raise UnavailableError(f"{label} ended without a result ({reason})") from None
    finally:
        line.end()
        process.kill()
        process.join()
        receiver.close()
    if error is not None:
        raise error
    return result


def _child(sender: Connection, label: str, function: Callable[..., Any], args: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process; a thread does if the parent is killed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome: tuple[Exception | None, Any] = (None, function(*args))
    except ExpectedError as error:
        outcome = (error, None)
    except Exception as error:
        outcome = (UnavailableError(f"{label} failed: {type(error).__name__}: {error}".splitlines()[0]), None)
    sender.send(outcome)
    sender.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
