"""Objects of Google Cloud Storage with the methods of `pathlib.Path`; for `storage.py`, which all other modules use.

gcsfs repeats requests that fail for a passing reason (network, 429, 5xx) up to 6 times in half a minute.
"""

import contextlib
import errno
import functools
import importlib.util
import io
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

from etils.epath import gpath

from ddpm_jax.runtime.errors import FileAccessError, UnavailableError, error_line

logger = logging.getLogger(__name__)

WHOLE_BYTES = 32 << 20  # objects up to this size are read with one request, and written from memory
GROWING_S = 5.0  # between two writes of a growing object, and at least
GROWING_SHARE = 20  # times the duration of the last write


class Status(NamedTuple):
    """The part of os.stat_result that is known of an object. Its time is that of the last write."""

    st_size: int
    st_mtime_ns: int

    @property
    def st_mtime(self) -> float:
        """Seconds since 1970."""
        return self.st_mtime_ns / 1e9


def object_path(name: str) -> "ObjectPath":
    """The path of gs://bucket/name. Raises as `storage.path`."""
    scheme, _, rest = name.partition("://")
    if scheme != "gs":
        supported = "the only object store that is supported is Google Cloud Storage (gs://)"
        raise FileAccessError(f"{name}: {supported}; choose a local folder, or mount the bucket")
    if not rest.strip("/"):
        raise FileAccessError(f"{name} has no bucket: write gs://BUCKET/NAME")
    if {".", ".."} & set(rest.split("/")):  # a store knows no such steps: they would become parts of names
        raise FileAccessError(f"{name} has a part . or ..: write the name of the folder without it")
    if importlib.util.find_spec("gcsfs") is None:
        raise UnavailableError(f"{name} needs a package that is not installed: pip install gcsfs (the extra gcs)")
    _make_etils_use_gcsfs()
    return ObjectPath(f"gs://{rest.strip('/')}")


class ObjectPath(gpath.PosixGPath):
    """The name of an object, or of a group of objects as if it were a folder, with the methods of `pathlib.Path`.

    Methods raise OSError as those of `pathlib.Path` do, with the store's reason.
    """

    def absolute(self) -> "ObjectPath":
        return self

    def expanduser(self) -> "ObjectPath":
        return self

    def exists(self) -> bool:
        return self._info() is not None

    def is_dir(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def stat(self) -> Status:  # type: ignore[override]
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        changed = info.get("mtime")
        return Status(int(info.get("size") or 0), int(changed.timestamp() * 1e9) if changed else 0)

    def iterdir(self) -> "Iterator[ObjectPath]":
        with store_errors(self):
            names = filesystem().ls(os.fspath(self), detail=False)
        here = os.fspath(self).partition("://")[2].strip("/")
        found = {name.rstrip("/") for name in names} - {here}
        if not found and not names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return iter([self / name.rpartition("/")[2] for name in sorted(found)])

    def glob(self, pattern: str) -> "Iterator[ObjectPath]":
        """A pattern of one name; one that ends in a slash finds folders only."""
        assert "/" not in pattern.rstrip("/"), pattern
        try:
            entries = [entry for entry in self.iterdir() if entry.match(pattern.rstrip("/"))]
        except (FileNotFoundError, NotADirectoryError):
            return iter(())
        return iter([entry for entry in entries if entry.is_dir()] if pattern.endswith("/") else entries)

    def rglob(self, pattern: str) -> "Iterator[ObjectPath]":
        """All objects below this name; folders are not among them."""
        with store_errors(self):
            names = filesystem().find(os.fspath(self))
        found = (ObjectPath(f"gs://{name}") for name in names if not name.endswith("/"))
        return iter([entry for entry in found if entry.match(pattern)])

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        pass

    def read_bytes(self) -> bytes:
        with store_errors(self):
            return filesystem().cat_file(os.fspath(self))

    def read_text(self, encoding: str | None = None, errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors)

    def write_bytes(self, data: bytes) -> int:
        with store_errors(self, write=True):
            filesystem().pipe_file(os.fspath(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with store_errors(self):
                filesystem().rm_file(os.fspath(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def open(self, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, **_: Any) -> IO[Any]:
        """For reading only; see `open_upload` and `open_growing`."""
        assert mode in ("r", "rb"), mode
        if self.stat().st_size <= WHOLE_BYTES:
            data: IO[bytes] = io.BytesIO(self.read_bytes())
        else:
            with store_errors(self):
                data = io.BufferedReader(filesystem().open(os.fspath(self), "rb", cache_type="readahead"))
        return data if "b" in mode else io.TextIOWrapper(data, encoding=encoding or "utf-8", errors=errors)

    def _info(self) -> dict[str, Any] | None:
        try:
            with store_errors(self):
                return filesystem().info(os.fspath(self))
        except (FileNotFoundError, NotADirectoryError):
            return None


class GrowingObject:
    """An object that is written again, as a whole, with what was appended. The content is held in memory.

    `flush` waits for the next interval, and a failure is only logged: the next write contains everything. `sync` writes now.

    Args:
      file: an `ObjectPath`.
      new: whether to begin without the content that the object has.
    """

    def __init__(self, file: pathlib.Path, *, new: bool = False) -> None:
        self._file = file
        self._content = bytearray()
        if not new:
            with contextlib.suppress(FileNotFoundError):
                self._content += file.read_bytes()
        self._written, self._due = len(self._content), 0.0

    def write(self, data: str | bytes) -> int:
        """Appends a text in UTF-8, or bytes."""
        self._content += data.encode() if isinstance(data, str) else data
        return len(data)

    @property
    def size(self) -> int:
        """The number of bytes so far."""
        return len(self._content)

    def flush(self) -> None:
        """Writes the object if the interval has passed."""
        if time.monotonic() < self._due:
            return
        started = time.monotonic()
        try:
            self.sync()
        except OSError as error:
            logger.warning(f"cannot write {self._file} now: {error_line(error)}; the next write contains all of it")
        ended = time.monotonic()
        self._due = ended + max(GROWING_S, GROWING_SHARE * (ended - started))

    def sync(self) -> None:
        """Writes the object. Raises OSError if that fails."""
        if self._written < len(self._content):
            self._file.write_bytes(bytes(self._content))
            self._written = len(self._content)

    def close(self) -> None:
        """Writes the object; a failure is logged. May be called twice."""
        self._due = 0.0
        self.flush()


@contextlib.contextmanager
def open_upload(file: pathlib.Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a local temporary file whose content becomes the object `file` when the context ends, and not if it fails.

    Args:
      file: an `ObjectPath`.
      mode: "wb", or "w" for text in UTF-8.

    Raises:
      OSError: it cannot be written.
    """
    with tempfile.SpooledTemporaryFile(WHOLE_BYTES, "w+b") as spool:
        if "b" in mode:
            yield spool
        else:
            text = io.TextIOWrapper(cast(IO[bytes], spool), encoding="utf-8", newline="\n")
            yield text
            text.flush()
            text.detach()
        size = spool.seek(0, os.SEEK_END)
        spool.seek(0)
        if size <= WHOLE_BYTES:
            file.write_bytes(spool.read())
        else:
            with store_errors(file, write=True), filesystem().open(os.fspath(file), "wb") as out:
                shutil.copyfileobj(spool, out, WHOLE_BYTES)


@functools.cache
def _make_etils_use_gcsfs() -> None:
    """For Orbax, which opens gs:// with etils: where tensorflow is installed, etils would use it and its credentials."""
    os.environ.setdefault("EPATH_USE_TF", "false")
    decide = getattr(gpath, "_is_tf_installed", None)  # it may have decided before, for a local path
    if decide is not None:
        decide.cache_clear()


@functools.cache
def filesystem() -> Any:
    """The client of Google Cloud Storage, with the credentials that gcsfs finds."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback for each error that it raises
    # Listings are not cached: other processes write too. Changes of this setting reach etils, and so Orbax, as well.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gs")


@contextlib.contextmanager
def store_errors(file: os.PathLike, *, write: bool = False) -> Iterator[None]:
    """Converts the errors of gcsfs, google.auth and aiohttp to OSError with a reason of one line."""
    name = os.fspath(file)
    try:
        yield
    except FileNotFoundError as error:
        if write:
            bucket = "/".join(name.split("/")[:3])
            raise OSError(errno.ENOENT, f"there is no bucket {bucket}", name) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
    except (MemoryError, ImportError, FileExistsError, IsADirectoryError, NotADirectoryError):
        raise
    except Exception as error:
        code, text = getattr(error, "code", None), error_line(error)
        if text.startswith("forbidden") or str(error).startswith("Forbidden") or code in (401, 403, "401", "403"):
            raise PermissionError(errno.EACCES, "no permission in this bucket with the credentials found", name) from error
        if type(error).__module__.startswith("google.auth"):
            advice = "no valid credentials: run `gcloud auth application-default login`"
            raise PermissionError(errno.EACCES, advice, name) from error
        if isinstance(error, OSError) and error.strerror and error.filename:
            raise
        unreachable = isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith("aiohttp")
        fault = "the store cannot be reached" if unreachable else "the store does not answer as it should"
        raise OSError(errno.EIO, f"{fault} ({error_line(error, kind=True)})", name) from error
