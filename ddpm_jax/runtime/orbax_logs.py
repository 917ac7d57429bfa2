"""Silences the logs of Orbax and asyncio. Relevant errors are raised."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import absl.logging


def silence_orbax() -> None:
    """Silences Orbax unless --verbosity is INFO or higher: its routine messages look alarming, and errors are raised."""
    for logger in (absl.logging.get_absl_logger(), logging.getLogger("asyncio")):
        if _orbax_log_filter not in logger.filters:
            logger.addFilter(_orbax_log_filter)
    if not isinstance(sys.unraisablehook, _UnraisableHookFilter):
        sys.unraisablehook = _UnraisableHookFilter(sys.unraisablehook)


def _orbax_log_filter(record: logging.LogRecord) -> bool:
    # When several writes fail, Orbax raises the error of one; asyncio logs the others with their tracebacks.
    not_awaited = record.name == "asyncio" and "exception was never retrieved" in str(record.msg)
    orbax = f"{os.sep}orbax{os.sep}" in record.pathname or not_awaited
    return not orbax or absl.logging.get_verbosity() >= absl.logging.INFO


class _UnraisableHookFilter:
    """Hook for unraisable exceptions that ignores those of writes that end after Orbax has given up."""

    def __init__(self, show: Callable[[Any], None]):
        self._show = show

    def __call__(self, unraisable: Any) -> None:
        # Each tensorstore thread finds the event loop closed by Orbax and prints a traceback.
        if str(unraisable.exc_value) != "Event loop is closed":
            self._show(unraisable)
