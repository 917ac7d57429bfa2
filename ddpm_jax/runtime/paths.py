"""Paths that users give: `~` is the home folder everywhere, and an output is checked before the work for it begins."""

import os
import pathlib
import tempfile

from ddpm_jax.runtime.errors import FileAccessError, error_line


def expand(path: str | os.PathLike) -> pathlib.Path:
    """The absolute path of `path`, with `~` and `~user` replaced by the home folder.

    Raises:
      FileAccessError: `~user` of a user that this machine does not have.
    """
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        user = text.split("/")[0]
        raise FileAccessError(f"{text} is not a path of this machine: it has no home folder {user}; write the path in full")
    return pathlib.Path(os.path.abspath(text))


def output_path(text: str, default: str | os.PathLike) -> pathlib.Path:
    """The path that --output names; `default` where it is empty.

    Raises:
      FileAccessError: an address such as gs://bucket/x.
    """
    if not text:
        return expand(default)
    if "://" in text:
        raise FileAccessError(
            f"--output={text} is not a path of this machine: name a local one and copy it, or mount the bucket"
        )
    return expand(text)


def make_output_folder(folder: pathlib.Path) -> None:
    """Make the folder, parents included, and try to write into it.

    Raises:
      FileAccessError: it cannot be made or written; one line that names --output.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error


def make_output_parent(file: pathlib.Path) -> None:
    """As `make_output_folder`, of the folder that `file` is to be written into.

    Raises:
      FileAccessError: the folder cannot be made or written, or `file` is a folder.
    """
    make_output_folder(file.parent)
    if file.is_dir():
        raise FileAccessError(f"cannot write to {file}: it is a folder; choose another --output")


def cannot_write(target: pathlib.Path, error: OSError) -> FileAccessError:
    """The one line for an output that the system does not let us write."""
    reason = "it is a file" if isinstance(error, FileExistsError) else error_line(error)
    return FileAccessError(f"cannot write to {target}: {reason}; choose another --output")
