"""Errors that a user can cause and fix. Each is a standard exception: a `ValueError`, an `OSError` or a `RuntimeError`.

Code that calls the library catches those. The command line catches `ExpectedError`, prints its message as one line and exits
with its code; every other exception is a bug of this program and keeps its traceback.

A message states the problem and the remedy. It names an argument in backquotes, `channels` or `on_decode_error='skip'`; the
command line replaces it with the field of the config (`user_messages.name_fields`).
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any


class ExpectedError(Exception):
    """The base of all errors whose message is written for the user.

    Attributes:
      exit_code: exit code of the command: 2 for a wrong command, 1 otherwise.
    """

    exit_code = 1


class InvalidArgumentError(ExpectedError, ValueError):
    """An argument, or the corresponding flag or config field, has an invalid value."""

    exit_code = 2


class InvalidDataError(ExpectedError, ValueError):
    """The content of a file, folder or array is invalid: damaged, of the wrong type, too small, or not finite."""


class FileAccessError(ExpectedError, OSError):
    """A file or folder does not exist, or cannot be read or written."""


class ConflictError(ExpectedError, RuntimeError):
    """A folder contains other results or another run, or another process uses it."""


class CheckpointError(ExpectedError, RuntimeError):
    """There is no checkpoint, or it is damaged or does not match the model."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint does not match the model.

    Attributes:
      differences: the first part of the message, without advice.
    """

    def __init__(self, message: str, differences: str = "") -> None:
        super().__init__(message)
        self.differences = differences or message


class DistributedError(ExpectedError, RuntimeError):
    """Another process of the job has failed or cannot be reached."""


class UnavailableError(ExpectedError, RuntimeError):
    """A package, a download or a prepared data set is missing."""


class NumericalError(ExpectedError, RuntimeError):
    """A computation did not converge or returned NaN or infinity."""


def error_line(error: object, *, most: int = 160, kind: bool = False) -> str:
    """The message of an error as one line of at most `most` characters.

    For an OSError only the system's reason: the caller's message names the file.

    Args:
      error: an exception, including tensorstore's for system errors; or a text.
      most: characters; a longer line is truncated.
      kind: whether to add the class and keep the full message: for errors of other libraries.
    """
    text = " ".join(str(error).split())
    if kind:
        text = f"{type(error).__name__}: {text}" if text else ""
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror.lower()
    elif code := re.search(r"os_error_code='(\d+)'", text):
        text = os.strerror(int(code[1])).lower()
    elif found := re.match(r"([A-Z_]+: )?(.*?) \[(?:tensorstore_spec|http_response)", text):  # tensorstore, in a bucket
        text = (found[1] or "") + re.split(r": (?=Error )|/: ", found[2])[-1]
    text = text or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


@contextlib.contextmanager
def os_errors(action: str, advice: str = "") -> Iterator[None]:
    """Context manager that converts an OSError to one line: the failed action, the system's reason, and the remedy.

    Args:
      action: such as "cannot write /home/ada/run/config.json".
      advice: such as "; choose another folder".

    Raises:
      FileAccessError: instead of an OSError.
    """
    try:
        yield
    except FileAccessError:
        raise
    except OSError as error:
        raise FileAccessError(f"{action}: {error_line(error)}{advice}") from error


def as_text(value: Any) -> str:
    """A value as JSON for messages, with letters of all languages; only bytes of file names that are not UTF-8 are escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
