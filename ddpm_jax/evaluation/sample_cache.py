"""Resumable on-disk cache of generated images.

Each chunk is one file, images_FIRST.npz, written atomically. Images are missing if no valid chunk holds them. A manifest
records the settings, so that images with different settings never mix.
"""

import logging
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.evaluation import manifest
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import InvalidDataError, os_errors

logger = logging.getLogger(__name__)


class SampleCache:
    """Images 0, 1, 2 ... with the same settings, in a folder.

    Args:
      folder: path; created if missing.
      identity: settings that determine the images; JSON-serializable.
      is_writer: whether this process may create the folder and its manifest.

    Raises:
      ConflictError: the folder was written with different settings; the message lists each field.
      InvalidDataError: the manifest cannot be read.
      FileAccessError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any], *, is_writer: bool = True):
        self.folder = storage.path(folder)
        self._verified: dict[tuple[str, int, int], int] = {}  # (name, size, modification time) -> images of the chunk
        if (self.folder / manifest.MANIFEST).exists():
            manifest.require_same(self.folder, identity)
        elif is_writer:
            with os_errors(f"cannot create the folder {self.folder}"):
                storage.make_folder(self.folder)
            manifest.write(self.folder, identity)

    def missing(self, num_images: int) -> list[range]:
        """The indices below num_images that no valid chunk holds, as ranges in ascending order."""
        return _gaps(self._valid_files(), range(num_images))

    def write(self, first: int, images: np.ndarray, labels: np.ndarray | None = None, **more: np.ndarray) -> None:
        """Write a chunk, images first, first + 1, ...: uint8 [n, H, W, C], with labels int [n] or None.

        `more` are arrays [m, ...] of the first m <= n images, for `rows`.

        Raises:
          FileAccessError: the file cannot be written.
        """
        file = self._file(first)
        with os_errors(f"cannot write {file}", "; what was generated before is kept"), open_atomic(file) as out:
            np.savez(out, images=images, **({} if labels is None else {"labels": labels}), **more)

    def batches(self, num_images: int, batch_size: int, *, first: int = 0) -> Iterator[np.ndarray]:
        """Yield images first .. num_images-1 in order, uint8 [b, H, W, C], b <= batch_size, with one chunk in memory at a time.

        Chunks of other images are not read.

        Raises:
          InvalidDataError: images are missing.
        """
        needed = range(first, num_images)
        chunks = self._valid_files(needed)
        if gaps := _gaps(chunks, needed):  # a chunk that is damaged, or shorter than the distance to the next one
            chunks = self._valid_files()
            if gaps := _gaps(chunks, needed):
                raise InvalidDataError(
                    f"{self.folder} lacks images {gaps[0].start}..{gaps[0].stop - 1}: run the same command again"
                )
        done = first
        for begin, count in chunks:
            if begin + count <= done or done >= num_images:
                continue
            images = _read(self._file(begin))
            end = min(begin + count, num_images)
            for start in range(done, end, batch_size):
                yield images[start - begin : min(start + batch_size, end) - begin]
            done = end

    def rows(self, name: str, num_images: int) -> np.ndarray:
        """The array `name` of `write` for images 0 .. num_images-1, concatenated.

        Raises:
          KeyError: a chunk lacks it.
        """
        parts, done = [], 0
        for first, count in self._valid_files():
            if first <= done < min(first + count, num_images):
                rows = _read(self._file(first), name)[done - first : num_images - first]
                parts.append(rows)
                done += len(rows)
        return np.concatenate(parts)

    def clear(self) -> None:
        """Remove all chunks, including partial files of an interrupted write; keep the manifest."""
        for pattern in ("images_*.npz", ".images_*.npz.*"):
            for file in self.folder.glob(pattern):
                file.unlink()

    def _valid_files(self, needed: range | None = None) -> list[tuple[int, int]]:
        """(first, count) of each valid chunk, in order. Each file is read once to verify its checksums.

        With `needed`, only of those that have images of this range, if each chunk ends where the next one begins.
        """
        chunks, files = [], sorted(self.folder.glob("images_*.npz"))
        if needed is not None:
            starts = [int(file.stem.removeprefix("images_")) for file in files]
            ends = [*starts[1:], needed.stop]
            files = [
                file for file, start, end in zip(files, starts, ends, strict=True) if start < needed.stop and end > needed.start
            ]
        for file in files:
            try:
                status = file.stat()
                known = (file.name, status.st_size, status.st_mtime_ns)
                if known not in self._verified:
                    self._verified[known] = len(_read(file))
                chunks.append((int(file.stem.removeprefix("images_")), self._verified[known]))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                logger.warning(f"{file} is damaged ({type(error).__name__}): its images will be generated again")
        return chunks

    def _file(self, first: int) -> pathlib.Path:
        return self.folder / f"images_{first:08d}.npz"


def _gaps(chunks: list[tuple[int, int]], needed: range) -> list[range]:
    """The indices of a range that no chunk (first, count) holds."""
    gaps, reached = [], needed.start
    for first, count in chunks:
        if first >= needed.stop:
            break
        if first > reached:
            gaps.append(range(reached, first))
        reached = max(reached, first + count)
    if reached < needed.stop:
        gaps.append(range(reached, needed.stop))
    return gaps


def _read(file: pathlib.Path, name: str = "images") -> np.ndarray:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return arrays[name]  # the archive's checksum is verified
