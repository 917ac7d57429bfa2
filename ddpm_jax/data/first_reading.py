"""Reads each file of a set once before training: into memory if it fits, and to collect facts about the files.

These are: the unreadable files, a digest and the range of levels of each file, and the range of the deep gray files.
"""

import hashlib
import io
import logging
import os
import warnings
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data import decode, identity, value_range
from ddpm_jax.data.source import center_crop_and_resize, for_each_chunk
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, error_line

logger = logging.getLogger(__name__)

CHUNK = 16  # files per task of a thread: photographs are large, and progress should be visible


class FirstReading:
    """Reads each file once.

    Deep gray files are read a second time, once the levels of all of them are known.

    Args:
      folder: of the files.
      paths: relative to `folder`.
      background: RGB behind transparent pixels.
      shape: (H, W, C) of the decoded images.
      images: uint8 [N, H, W, C] to fill, or None to keep no images.
    """

    def __init__(
        self,
        folder: str,
        paths: Sequence[str],
        background: tuple[int, int, int],
        shape: tuple[int, int, int],
        images: np.ndarray | None,
    ):
        self._folder, self._paths, self._background, self._shape, self._images = folder, paths, background, shape, images
        self._digests = [b""] * len(paths)
        self._least, self._most = np.zeros(len(paths), np.uint8), np.zeros(len(paths), np.uint8)
        self.broken: dict[int, str] = {}
        self._deep: dict[int, value_range.DeepLevels] = {}

    def read_all(self, num_threads: int | None) -> None:
        """Reads every file and sets `broken`: index -> reason."""
        self._for_each(range(len(self._paths)), (), num_threads)

    def read_deep(self, levels: Sequence[float], num_threads: int | None) -> tuple[float, ...]:
        """Reads the deep files again, with the range `levels` or the detected one. Returns that range; () without deep files.

        Raises:
          InvalidArgumentError: no range fits.
        """
        if not self._deep:
            return tuple(levels)
        found = not levels
        if found:
            try:
                levels = value_range.find_range(list(self._deep.values()))
            except ValueError as error:
                raise InvalidArgumentError(f"`levels` is not set, and in {self._folder} {error}") from error
        named = {self._paths[index]: measured for index, measured in self._deep.items()}
        logger.info(f"{self._folder}: {value_range.describe_range(named, tuple(levels), found=found)}")
        self._for_each(sorted(self._deep), tuple(levels), num_threads)
        return tuple(float(level) for level in levels)

    def fingerprint(self, kept: Sequence[int] | None, prefix: str = "") -> str:
        """Fingerprint of the files with these indices, by default all; `prefix`, the folder of a split, is ignored."""
        chosen = range(len(self._paths)) if kept is None else kept
        return identity.files_fingerprint((self._paths[index].removeprefix(prefix), self._digests[index]) for index in chosen)

    def deep(self) -> list[value_range.DeepLevels]:
        """Levels of the files of more than 8 bits."""
        return list(self._deep.values())

    def all_equal(self, kept: Sequence[int] | None) -> bool:
        """Whether there are several files, all with the same content."""
        chosen = range(len(self._paths)) if kept is None else kept
        return len(chosen) > 1 and len({self._digests[index] for index in chosen}) == 1

    def extremes(self, kept: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest level of each image with these indices, by default all."""
        chosen = slice(None) if kept is None else list(kept)
        return self._least[chosen], self._most[chosen]

    def _for_each(self, indices: Sequence[int], levels: tuple[float, ...], num_threads: int | None) -> None:
        def read_chunk(positions: range) -> None:
            for index in (indices[position] for position in positions):
                try:
                    self._read(index, levels)
                except decode.ImageDecodeError as error:
                    self.broken[index] = str(error)

        title = f"{self._folder}: {'checked' if self._images is None else 'read'}"
        with warnings.catch_warnings():  # not in the threads, which share one set of filters
            warnings.filterwarnings("ignore", module=r"PIL\.")  # invalid EXIF metadata, large photographs
            for_each_chunk(read_chunk, len(indices), chunk=CHUNK, title=title, num_threads=num_threads)

    def _read(self, index: int, levels: tuple[float, ...]) -> None:
        try:
            content = storage.read_file(os.path.join(self._folder, self._paths[index]))
        except FileAccessError:
            raise
        except OSError as error:
            raise decode.ImageDecodeError(error_line(error)) from error
        self._digests[index] = hashlib.sha256(content).digest()
        with decode.open_image(io.BytesIO(content)) as picture:
            if decode.is_deep(picture) and not levels:
                self._deep[index] = decode.measure_deep(picture)
                return
            if decode.is_deep(picture):
                self._deep.setdefault(index, decode.measure_deep(picture))
            image = center_crop_and_resize(decode.to_uint8(picture, self._background, levels), self._shape[:2], self._shape[2])
        self._least[index], self._most[index] = image.min(), image.max()
        if self._images is not None:
            self._images[index] = image
