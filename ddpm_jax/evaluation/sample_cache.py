"""Generated images kept in a folder piece by piece: a command that is killed continues where it stopped.

Each piece is one file, images_FIRST.npz, written completely or not at all; what is missing is what no sound piece holds. A
manifest says what the images are, so that no two kinds ever mix.
"""

import logging
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.runtime import manifest
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import InvalidDataError, os_errors

logger = logging.getLogger(__name__)


class SampleCache:
    """Images 0, 1, 2 ... of one kind in a folder.

    Args:
      folder: made if need be.
      identity: what the images are, of what JSON can hold.
      defaults: values of fields of the identity that an older folder does not have.
      is_writer: whether this process may make the folder and its manifest.

    Raises:
      ConflictError: the folder holds images of another kind (names each field).
      FileAccessError: it cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        identity: dict[str, Any],
        *,
        defaults: dict[str, Any] | None = None,
        is_writer: bool = True,
    ):
        self.folder = pathlib.Path(folder).absolute()
        self._sound: dict[tuple[str, int, int], int] = {}  # (name, size, time of change) -> images, of pieces read before
        if (self.folder / manifest.MANIFEST).exists():
            manifest.require_same(self.folder, identity, defaults)
        elif is_writer:
            with os_errors(f"cannot make the folder {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
            manifest.write(self.folder, identity)

    def missing(self, num_images: int) -> list[range]:
        """The indices below num_images that no sound piece holds, as ranges in ascending order."""
        gaps, reached = [], 0
        for first, count in self._pieces():
            if first >= num_images:
                break
            if first > reached:
                gaps.append(range(reached, first))
            reached = max(reached, first + count)
        if reached < num_images:
            gaps.append(range(reached, num_images))
        return gaps

    def write(self, first: int, images: np.ndarray, labels: np.ndarray | None = None, **more: np.ndarray) -> None:
        """Keep images first, first + 1, ..: uint8 [n, H, W, C], and labels [n] where there are any.

        Args:
          first: index of the first of them.
          images: uint8 [n, H, W, C].
          labels: int [n], or None.
          **more: other arrays with a row for each of the first of these images, for `rows`.

        Raises:
          FileAccessError: they cannot be written.
        """
        file = self._file(first)
        with os_errors(f"cannot write {file}", "; what was generated before is kept"), open_atomic(file) as out:
            np.savez(out, images=images, **({} if labels is None else {"labels": labels}), **more)

    def batches(self, num_images: int, batch_size: int) -> Iterator[np.ndarray]:
        """Images 0 .. num_images-1 in order, uint8 [b, H, W, C] with b at most batch_size; one piece in memory at a time.

        Raises:
          InvalidDataError: some are missing.
        """
        if gaps := self.missing(num_images):
            raise InvalidDataError(
                f"{self.folder} lacks images {gaps[0].start}..{gaps[0].stop - 1}: start the same command again"
            )
        done = 0
        for first, count in self._pieces():
            if first + count <= done or done >= num_images:
                continue
            images = _read(self._file(first))
            end = min(first + count, num_images)
            for start in range(done, end, batch_size):
                yield images[start - first : min(start + batch_size, end) - first]
            done = end

    def rows(self, name: str, num_images: int) -> np.ndarray:
        """What `write` was given as `name` for images 0 .. num_images-1, in one array.

        Raises:
          KeyError: a piece does not hold it.
        """
        parts, done = [], 0
        for first, count in self._pieces():
            if first <= done < min(first + count, num_images):
                rows = _read(self._file(first), name)[done - first : num_images - first]
                parts.append(rows)
                done += len(rows)
        return np.concatenate(parts)

    def clear(self) -> None:
        """Remove all pieces, and what a kill left of one; the manifest stays."""
        for pattern in ("images_*.npz", ".images_*.npz.*"):
            for file in self.folder.glob(pattern):
                file.unlink()

    def _pieces(self) -> list[tuple[int, int]]:
        """(first, count) of each sound piece, in order. Each file is read once, to verify its checksums."""
        pieces = []
        for file in sorted(self.folder.glob("images_*.npz")):
            try:
                status = file.stat()
                known = (file.name, status.st_size, status.st_mtime_ns)
                if known not in self._sound:
                    self._sound[known] = len(_read(file))
                pieces.append((int(file.stem.removeprefix("images_")), self._sound[known]))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                logger.warning(f"{file} is damaged ({type(error).__name__}): its images are generated again")
        return pieces

    def _file(self, first: int) -> pathlib.Path:
        return self.folder / f"images_{first:08d}.npz"


def _read(file: pathlib.Path, name: str = "images") -> np.ndarray:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return arrays[name]  # the archive's checksum is verified
