"""Paths given by users: `~` is always expanded, and outputs are checked before the work begins."""

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Iterator

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line


def expand(path: str | os.PathLike) -> pathlib.Path:
    """The absolute path of `path`, as `storage.path`."""
    return storage.path(path)


def output_path(text: str, default: str | os.PathLike) -> pathlib.Path:
    """The path of an output that a user names; `default` if it is empty.

    Raises:
      FileAccessError: an address of a store that is not supported, such as s3://bucket/x.
    """
    if storage.is_remote(text) and not storage.is_supported(text):
        raise FileAccessError(
            f"`output={text}` is not a path on this machine, and gs:// is the only store that is supported: use a local one "
            "and copy the result, or mount the bucket"
        )
    return storage.path(text or default)


def make_output_folder(folder: pathlib.Path) -> None:
    """Creates the folder with its parents and checks that it is writable.

    Raises:
      FileAccessError: it cannot be created or written.
    """
    try:
        storage.make_folder(folder)
        storage.check_writable(folder)
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
