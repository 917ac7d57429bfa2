"""Atomic file writes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import os_errors
from ddpm_jax.runtime.object_path import open_upload


@contextlib.contextmanager
def open_atomic(file: Path, mode: str = "wb", *, sync: bool = True, shared: bool = False) -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `file` when the context ends; it is removed if the context fails.

    A reader of `file`, even after a crash, finds the old content or the new, never a part. An object in a bucket is written
    when the context ends.

    Args:
      file: its folder must exist.
      mode: "wb", or "w" for text in UTF-8.
      sync: whether to wait until the content is on disk. Otherwise a crash of the machine may leave a partial file.
      shared: whether several processes may write the file at once. The temporary file then has a unique name and remains
        after a kill; otherwise the next attempt overwrites it.

    Raises:
      OSError: it cannot be written.
    """
    if storage.is_remote(file):
        with open_upload(file, mode) as out:
            yield out
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp" if shared else f".{file.name}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as out:
            yield out
            if sync:
                out.flush()
                os.fsync(out.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(file: Path, text: str, *, advice: str = "") -> None:
    """Writes a text with `open_atomic`. `advice` ends the message of an error, such as "; choose another folder".

    Raises:
      FileAccessError: the file cannot be written.
    """
    with os_errors(f"cannot write {file}", advice), open_atomic(file, "w", shared=True) as out:
        out.write(text)
