"""Errors that a user can cause and fix. Each is a standard exception: a `ValueError`, an `OSError` or a `RuntimeError`.

Code that calls the library catches those. The command line catches `ExpectedError`, prints its message as one line and exits
with its code; every other exception is a bug of this program and keeps its traceback.

A message says what is wrong and what to do. It names an argument in backquotes, `channels` or `on_decode_error='skip'`; the
command line replaces that by the field of the config (`user_messages.name_fields`).
"""

import contextlib
import os
import re
from collections.abc import Iterator


class ExpectedError(Exception):
    """The base of all errors whose message is written for the user.

    Attributes:
      exit_code: of a command that ends with it: 2 where the command is wrong, 1 otherwise.
    """

    exit_code = 1


class InvalidArgumentError(ExpectedError, ValueError):
    """An argument, and so a flag or a field of the config, has a value that makes no sense."""

    exit_code = 2


class InvalidDataError(ExpectedError, ValueError):
    """A file, a folder or an array does not hold what is needed: damaged, of another kind, too few, or not finite."""


class FileAccessError(ExpectedError, OSError):
    """A file or folder is not there, or cannot be read or written."""


class ConflictError(ExpectedError, RuntimeError):
    """A folder holds other results, or another run, or another process uses it."""


class CheckpointError(ExpectedError, RuntimeError):
    """There is no checkpoint, or it is damaged or of another model."""


class DistributedError(ExpectedError, RuntimeError):
    """Another process of the job has failed or cannot be reached."""


class UnavailableError(ExpectedError, RuntimeError):
    """A package, a download or a prepared data set is missing."""


class NumericalError(ExpectedError, RuntimeError):
    """A computation did not converge or gave NaN or infinity."""


def error_line(error: object, *, most: int = 160, kind: bool = False) -> str:
    """What an error says, in one line of at most `most` characters.

    An OSError says the system's reason alone: the message around it names the file.

    Args:
      error: an exception, also one of tensorstore over a system error; or a text.
      most: characters; a longer line is cut.
      kind: whether the line begins with the class and holds all that the error says: for errors of other programs' code.
    """
    text = " ".join(str(error).split())
    if kind:
        text = f"{type(error).__name__}: {text}" if text else ""
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror.lower()
    elif code := re.search(r"os_error_code='(\d+)'", text):
        text = os.strerror(int(code[1])).lower()
    text = text or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


@contextlib.contextmanager
def os_errors(action: str, advice: str = "") -> Iterator[None]:
    """Context that makes one line of an OSError: the action that failed, the system's reason, and what to do.

    Args:
      action: such as "cannot write /home/ada/run/config.json".
      advice: such as "; choose another folder".

    Raises:
      FileAccessError: in place of an OSError.
    """
    try:
        yield
    except FileAccessError:
        raise
    except OSError as error:
        raise FileAccessError(f"{action}: {error_line(error)}{advice}") from error
