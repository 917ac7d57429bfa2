"""Checksums of the files of a checkpoint, stored in its folder, to detect changes since they were written."""

import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import write_atomically

SUMS = "checksums.json"
COMMITTED = "commit_success.txt"  # Orbax, in a bucket


def write_sums(folder: Path) -> None:
    """Writes size and CRC-32 of every file under `folder` into its checksums.json; in a bucket, the checksum of the store.

    Raises:
      OSError: a file cannot be read.
      FileAccessError: checksums.json cannot be written.
    """
    if storage.is_remote(folder):
        sums: dict[str, list[Any]] = storage.object_sums(folder)
    else:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sums = {file.relative_to(folder).as_posix(): [file.stat().st_size, _crc32(file)] for file in files}
    write_atomically(folder / SUMS, json.dumps(sums, indent=0) + "\n")


def is_committed(folder: Path) -> bool:
    """Whether Orbax has completed the checkpoint: its folder gets its name last, and in a bucket a file is written last."""
    return (folder / COMMITTED).exists() if storage.is_remote(folder) else folder.is_dir()


def quarantine(folder: Path) -> str:
    """Renames the folder of a damaged checkpoint to damaged-STEP; returns the new name.

    Raises:
      OSError: it cannot be renamed.
    """
    name = f"damaged-{folder.name}"
    new = next(path for path in (folder.with_name(f"{name}{end}") for end in _endings()) if not path.exists())
    storage.move_folder(folder, new)
    return new.name


def _endings() -> Iterator[str]:
    yield ""
    for number in itertools.count(1):
        yield f".{number}"


def has_sums(folder: Path) -> bool:
    """Whether the folder has checksums."""
    return (folder / SUMS).exists()


def check_sums(folder: Path, parts: Iterable[str]) -> None:
    """Checks the files of the subfolders `parts`. Without checksums.json, only checks that the subfolders exist.

    Raises:
      ValueError: a file is missing or has changed since it was written; names the first.
    """
    parts = set(parts)
    if not has_sums(folder):
        # The process was killed before it wrote the checksums, or while it deleted the folder.
        missing = sorted(part for part in parts if not (folder / part).is_dir())
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return
    try:
        sums = json.loads((folder / SUMS).read_bytes())
    except ValueError as error:
        raise ValueError(f"{SUMS} has changed since it was written") from error
    objects = storage.object_sums(folder) if storage.is_remote(folder) else None
    for name, (size, checksum) in sums.items():
        if name.partition("/")[0] not in parts:
            continue
        file = folder / name
        if not (file.exists() if objects is None else name in objects):
            raise ValueError(f"{name} is missing")
        found_size = file.stat().st_size if objects is None else objects[name][0]
        if found_size != size:
            raise ValueError(f"{name} has {found_size:,} of {size:,} bytes")
        if isinstance(checksum, int) != (objects is None):
            continue  # the run was copied from a bucket, or into one, where checksums are of another kind
        if (_crc32(file) if objects is None else objects[name][1]) != checksum:
            raise ValueError(f"{name} has changed since it was written")


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
