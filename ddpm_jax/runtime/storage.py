"""Files and folders of a run, on this machine or in a bucket of an object store (gs://bucket/run).

Everything that is read or written under a name given by the user goes through a path made here. On this machine it is a
`pathlib.Path`, and nothing else changes. In a bucket it is an `ObjectPath`, which has the same methods; the differences of an
object store are handled here:

  - An object is written as a whole, and its readers find the old content or the new. Nothing can be appended: `open_growing`
    writes the object again, at intervals that grow with its size.
  - There are no folders, only objects whose names have a common prefix. One "exists" as long as an object is in it.
  - There is no rename. `move_folder` copies the objects inside the store and deletes the originals.
"""

import contextlib
import errno
import os
import pathlib
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from typing import IO, Any, cast

from ddpm_jax.runtime.errors import FileAccessError, error_line
from ddpm_jax.runtime.object_path import GrowingObject, filesystem, object_path, store_errors


def is_remote(path: str | os.PathLike) -> bool:
    """Whether this is the name of an object in a bucket, such as gs://bucket/run, not a path on this machine."""
    return "://" in os.fspath(path)


def is_supported(path: str | os.PathLike) -> bool:
    """Whether `path` accepts this name of an object."""
    return os.fspath(path).startswith("gs://")


def path(name: str | os.PathLike) -> pathlib.Path:
    """The absolute path of a file or folder; ~ is the home folder. An `ObjectPath` for gs://bucket/name.

    Raises:
      FileAccessError: the home folder of an unknown user, a store that is not supported, or no bucket.
      UnavailableError: the package for the store is missing.
    """
    text = os.fspath(name)
    if is_remote(text):
        return cast(pathlib.Path, object_path(text))
    text = os.path.expanduser(text)
    if text.startswith("~"):
        user = text.split("/")[0]
        raise FileAccessError(f"{text} is not a path on this machine: there is no home folder {user}; write the full path")
    return pathlib.Path(os.path.abspath(text))


def as_path(name: str | os.PathLike) -> pathlib.Path:
    """As `path`, but a path on this machine stays as it is: relative, and without ~."""
    return path(name) if is_remote(name) else pathlib.Path(name)


def folder_name(name: str) -> str:
    """`path` as a string, for code that joins names with os.path: an absolute path, or gs://bucket/name."""
    return os.fspath(path(name))


def read_file(name: str) -> bytes:
    """The content of a file of a data set.

    Raises:
      OSError: it cannot be read: FileAccessError if the bucket does not answer, so that the file is not taken for a broken one.
    """
    if not is_remote(name):
        with open(name, "rb") as file:
            return file.read()
    try:
        return path(name).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileAccessError(f"cannot read {name}: {error_line(error)}") from error


def make_folder(folder: pathlib.Path, *, parents: bool = True) -> None:
    """Creates a folder, unless it exists. In a bucket this does nothing.

    Raises:
      OSError: it cannot be created.
    """
    if not is_remote(folder):
        folder.mkdir(parents=parents, exist_ok=True)


def check_writable(folder: pathlib.Path) -> None:
    """Writes a file into a folder and removes it.

    Raises:
      OSError: the folder cannot be written, or is a file.
    """
    if is_remote(folder):
        # A store would accept objects "in" an object; as on a disk, a file is no folder.
        if folder.is_file():
            raise FileExistsError(errno.EEXIST, "it is a file", os.fspath(folder))
        if any(parent.is_file() for parent in list(folder.parents)[: max(0, len(folder.parts) - 4)]):  # below the bucket
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(folder))
        marker = folder / f".writable-{os.urandom(6).hex()}"
        marker.write_bytes(b"")
        marker.unlink()
    else:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass


def move_folder(folder: pathlib.Path, new: pathlib.Path) -> None:
    """Gives a folder another name. In a bucket, a killed process leaves all objects under at least one of the names.

    Raises:
      OSError: a file cannot be moved.
    """
    if is_remote(folder):
        files = [file for file in folder.rglob("*") if file.is_file()]
        with store_errors(folder):
            for file in files:
                filesystem().copy(os.fspath(file), os.fspath(new / file.relative_to(folder)))
            filesystem().rm([os.fspath(file) for file in files])
    else:
        folder.rename(new)


def object_sums(folder: pathlib.Path) -> dict[str, list[Any]]:
    """Name relative to `folder` -> [bytes, checksum by the store] of each object in a folder of a bucket; one request.

    Raises:
      OSError: the folder cannot be listed.
    """
    found = _listed(folder).items()
    return {name: [info["size"], str(info.get("crc32c") or info.get("md5Hash"))] for name, info in found}


def create(file: pathlib.Path, content: bytes) -> bool:
    """Writes an object in a bucket if there is none of this name. False if there is one, with another content.

    Raises:
      OSError: it cannot be written.
    """
    try:
        with store_errors(file, write=True):
            filesystem().pipe_file(os.fspath(file), content, mode="create")
    except FileExistsError:
        return file.read_bytes() == content  # written by this process, if the first answer was lost
    return True


def object_times(folder: pathlib.Path) -> dict[str, tuple[int, float]]:
    """Name relative to `folder` -> (bytes, time of the last write) of each object in a folder of a bucket; one request.

    Raises:
      OSError: the folder cannot be listed.
    """
    found = _listed(folder).items()
    return {name: (info["size"], info["mtime"].timestamp() if info.get("mtime") else 0.0) for name, info in found}


def download(file: pathlib.Path, target: pathlib.Path) -> None:
    """Copies an object to a file of this machine.

    Raises:
      OSError: it cannot be read, or the file cannot be written.
    """
    with store_errors(file):
        filesystem().get_file(os.fspath(file), os.fspath(target))


def _listed(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    with store_errors(folder):
        found = filesystem().find(os.fspath(folder), detail=True)
    start = len(os.fspath(folder).partition("://")[2]) + 1
    return {name[start:]: info for name, info in sorted(found.items()) if not name.endswith("/") and name[start:]}


def upload_folder(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Copies all files of a folder of this machine to a folder in a bucket.

    Raises:
      OSError: a file cannot be written.
    """
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        new = target / file.relative_to(folder).as_posix()
        with store_errors(new, write=True):
            filesystem().put_file(os.fspath(file), os.fspath(new))


def open_zip(file: pathlib.Path) -> zipfile.ZipFile:
    """Opens a zip archive for reading; it closes the file.

    Raises:
      OSError: the file cannot be read.
      zipfile.BadZipFile: it is damaged.
    """
    if not is_remote(file):
        return zipfile.ZipFile(file)
    stream = file.open("rb")
    archive = zipfile.ZipFile(stream)
    weakref.finalize(archive, stream.close)
    return archive


@contextlib.contextmanager
def local_copy(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Context with the path of a file on this machine, for libraries that open no other: the file itself, or a copy of it.

    Raises:
      OSError: it cannot be read.
    """
    if not is_remote(file):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / file.name
        download(file, copy)
        yield copy


def open_growing(file: pathlib.Path, *, new: bool = False) -> "IO[Any] | GrowingObject":
    """Opens a file to append to it: text in UTF-8, or with `new` a file that must not exist, for bytes.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(file):
        return GrowingObject(file, new=new)
    return file.open("xb") if new else file.open("a", encoding="utf-8")


def sync(file: Any) -> None:
    """Writes what was appended to an object since its last write. A file on this machine needs only its own `flush`.

    Raises:
      OSError: it cannot be written.
    """
    if isinstance(file, GrowingObject):
        file.sync()
