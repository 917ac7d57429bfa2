"""Checksums of the files in a folder, stored in the folder, to detect changes since they were written."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from ddpm_jax.runtime.atomic import write_atomically

SUMS = "checksums.json"


def write_sums(folder: Path) -> None:
    """Writes size and CRC-32 of every file under `folder` into its checksums.json.

    Raises:
      OSError: a file cannot be read.
      FileAccessError: checksums.json cannot be written.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sums = {file.relative_to(folder).as_posix(): [file.stat().st_size, _crc32(file)] for file in files}
    write_atomically(folder / SUMS, json.dumps(sums, indent=0) + "\n")


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
    for name, (size, crc32) in sums.items():
        if name.partition("/")[0] not in parts:
            continue
        file = folder / name
        if not file.exists():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != size:
            raise ValueError(f"{name} has {file.stat().st_size:,} of {size:,} bytes")
        if _crc32(file) != crc32:
            raise ValueError(f"{name} has changed since it was written")


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
