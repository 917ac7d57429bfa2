"""Paths given by users: `~` is always expanded, and outputs are checked before the work begins."""

import contextlib
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator

from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line


def expand(path: str | os.PathLike) -> pathlib.Path:
    """The absolute path of `path`, with `~` and `~user` replaced by the home folder.

    Raises:
      FileAccessError: `~user` of an unknown user.
    """
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        user = text.split("/")[0]
        raise FileAccessError(f"{text} is not a path on this machine: there is no home folder {user}; write the full path")
    return pathlib.Path(os.path.abspath(text))


def output_path(text: str, default: str | os.PathLike) -> pathlib.Path:
    """The path of an output that a user names; `default` if it is empty.

    Raises:
      FileAccessError: an address such as gs://bucket/x.
    """
    if not text:
        return expand(default)
    if "://" in text:
        raise FileAccessError(
            f"`output={text}` is not a path on this machine: use a local one and copy the result, or mount the bucket"
        )
    return expand(text)


def make_output_folder(folder: pathlib.Path) -> None:
    """Creates the folder with its parents and checks that it is writable.

    Raises:
      FileAccessError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(target: pathlib.Path, error: OSError) -> FileAccessError:
    """The error for an output that cannot be written."""
    reason = "it is a file" if isinstance(error, FileExistsError) else error_line(error)
    return FileAccessError(f"cannot write to {target}: {reason}; choose another `output`")


@contextlib.contextmanager
def write_errors(target: pathlib.Path) -> Iterator[None]:
    """Context that turns errors of writing to `target` into one-line errors.

    Raises:
      FileAccessError: the folder cannot be written.
      InvalidDataError: a file in it is damaged.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(target, error) from error
    except zipfile.BadZipFile as error:
        raise InvalidDataError(
            f"a file in {target} is damaged ({error}): remove the folder or choose another `output`"
        ) from error
