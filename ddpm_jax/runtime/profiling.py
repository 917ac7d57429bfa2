"""Traces of a range of training steps, for TensorBoard or xprof."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import jax

from ddpm_jax.runtime.errors import InvalidArgumentError


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

    def trace(step: int) -> None:
        nonlocal tracing
        if tracing and step not in steps:
            jax.profiler.stop_trace()
            tracing = False
        elif not tracing and step in steps:
            jax.profiler.start_trace(str(folder))
            tracing = True

    try:
        yield trace
    finally:
        if tracing:
            jax.profiler.stop_trace()
