"""What Orbax and asyncio print in passing, kept off the screen: what matters is raised."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import absl.logging


def silence_orbax() -> None:
    """Lets Orbax log only where --verbosity asks for information: what it says in passing alarms, what matters raises."""
    for logger in (absl.logging.get_absl_logger(), logging.getLogger("asyncio")):
        if _orbax_log_filter not in logger.filters:
            logger.addFilter(_orbax_log_filter)
    if not isinstance(sys.unraisablehook, _UnraisableHookFilter):
        sys.unraisablehook = _UnraisableHookFilter(sys.unraisablehook)


def _orbax_log_filter(record: logging.LogRecord) -> bool:
    # Of writes that fail together Orbax awaits one, which raises; asyncio tells of every other, with its traceback.
    not_awaited = record.name == "asyncio" and "exception was never retrieved" in str(record.msg)
    orbax = f"{os.sep}orbax{os.sep}" in record.pathname or not_awaited
    return not orbax or absl.logging.get_verbosity() >= absl.logging.INFO


class _UnraisableHookFilter:
    """What shows errors that nobody can catch, but for those of writes that end after Orbax has given up on all of them."""

    def __init__(self, show: Callable[[Any], None]):
        self._show = show

    def __call__(self, unraisable: Any) -> None:
        # tensorstore's threads come upon the event loop that Orbax has left, each with a traceback of its own.
        if str(unraisable.exc_value) != "Event loop is closed":
            self._show(unraisable)
