"""Traces of a range of training steps, for TensorBoard or xprof."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import jax

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import InvalidArgumentError, os_errors


def parse_steps(text: str) -> range:
    """FIRST:LAST -> the steps to trace, LAST not among them; "" for none.

    Raises:
      InvalidArgumentError: it is no such range.
    """
    if not text:
        return range(0)
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise InvalidArgumentError(f"`profile={text}` must be FIRST:LAST, such as 20:25")
    return range(int(first), int(last))


@contextlib.contextmanager
def profiling(folder: pathlib.Path, steps: range) -> Iterator[Callable[[int], None]]:
    """Context: a function to call before each step; it starts and ends the trace in `folder`."""
    tracing = False
    # The profiler writes to this machine only.
    local = pathlib.Path(tempfile.mkdtemp()) if storage.is_remote(folder) and steps else folder

    def stop() -> None:
        nonlocal tracing
        jax.profiler.stop_trace()
        tracing = False
        if local is not folder:
            with os_errors(f"cannot write to {folder}"):
                storage.upload_folder(local, folder)
            shutil.rmtree(local)

    def trace(step: int) -> None:
        nonlocal tracing
        if tracing and step not in steps:
            stop()
        elif not tracing and step in steps:
            jax.profiler.start_trace(str(local))
            tracing = True

    try:
        yield trace
    finally:
        if tracing:
            stop()
