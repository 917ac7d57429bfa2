"""Decodes the image files of a folder or a zip: all of them once, before anything is computed, so that all faults are listed.

The images stay in memory if they fit; otherwise they are decoded again when they are needed.
"""

import concurrent.futures
import dataclasses
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ddpm_jax.data import decode, value_range
from ddpm_jax.data.folder_listing import listed
from ddpm_jax.data.source import fits_in_memory
from ddpm_jax.evaluation.image_resize import Resize, resized, size_error
from ddpm_jax.runtime import distributed
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

logger = logging.getLogger(__name__)

CHUNK = 64  # images per task of a thread
NAMED = 5  # broken files in an error


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the files of a set are read.

    Attributes:
      resize: see `parse_resize`.
      size: (H, W) that the images must have; None for the size of the first one.
      on_decode_error: what to do about unreadable files, "error" or "skip".
      background: RGB behind transparent pixels.
      levels: (black, white) of gray files of more than 8 bits; () to detect one range for all of them.
      data_dir: folder of TFDS's sets; "" for TFDS's default.
      num_threads: threads that read and decode.
    """

    resize: Resize | None = None
    size: tuple[int, int] | None = None
    on_decode_error: str = "error"
    background: tuple[int, int, int] = (255, 255, 255)
    levels: tuple[float, ...] = ()
    data_dir: str = ""
    num_threads: int | None = None


class FileImages:
    """The images of many files, all of one size.

    Attributes:
      shape: (N, H, W, C) of the readable images; C is 3 if any of them has colors.
      num_resized: how many of the files have images of another size.
      broken: how many of the files cannot be read and are left out.
      levels: (black, white) of the gray files of more than 8 bits; () if there are none.

    Args:
      name: of the set, for messages.
      names: of the files, for messages.
      content: index -> bytes of a file; raises ImageDecodeError, in several threads at once.
      reading: how they are read.

    Raises:
      InvalidDataError: a file is broken (on_decode_error "error"), or none can be read; images of different sizes.
      InvalidArgumentError: no range fits the gray files of more than 8 bits.
    """

    def __init__(self, name: str, names: Sequence[str], content: Callable[[int], bytes], reading: Reading):
        self._name, self._names, self._content, self._reading = name, names, content, reading
        self._broken: dict[int, str] = {}
        self._deep: dict[int, value_range.DeepLevels] = {}
        self._sizes: dict[int, tuple[int, int]] = {}  # of the images that have another size
        self._kept: dict[int, np.ndarray] = {}
        self._levels, self._is_color = reading.levels, False
        self._size = reading.size or self._first_size()
        self._in_memory = fits_in_memory("auto", len(names) * self._size[0] * self._size[1] * 3)
        self._for_each(range(len(names)))
        if self._deep:
            self._levels = self._levels or self._range()
            self._for_each(sorted(self._deep))
        self._check_broken()
        if self._sizes and not reading.resize:
            named = [f"{names[i]} ({width}x{height})" for i, (height, width) in sorted(self._sizes.items())]
            raise size_error(name, f"{len(named):,} of {len(names):,} images", self._size, listed(named, 3))
        self._valid = np.array([index for index in range(len(names)) if index not in self._broken])
        self.shape = (len(self._valid), *self._size, 3 if self._is_color else 1)
        self.num_resized, self.broken = len(self._sizes), len(self._broken)
        self.levels = self._levels if self._deep else ()

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """The images at `indices`, each uint8 [H, W, 1 or 3].

        Raises:
          InvalidDataError: a file can no longer be read.
        """
        rows = self._valid[indices].tolist()
        if self._in_memory:
            return [self._kept[row] for row in rows]
        try:
            found = [self._read(row) for row in rows]
        except decode.ImageDecodeError as error:
            raise InvalidDataError(f"a file in {self._name} can no longer be read ({error}): put it back") from error
        return [image for image in found if image is not None]  # all of them, as read before

    def _first_size(self) -> tuple[int, int]:
        for index in range(len(self._names)):
            try:
                with self._open(index) as picture:
                    return picture.height, picture.width
            except decode.ImageDecodeError as error:
                self._broken[index] = str(error)
        self._check_broken()
        raise AssertionError("unreachable")

    def _for_each(self, indices: Sequence[int]) -> None:
        chunks = [indices[first : first + CHUNK] for first in range(0, len(indices), CHUNK)]
        num_threads = self._reading.num_threads or min(16, os.cpu_count() or 1)
        pool = concurrent.futures.ThreadPoolExecutor(num_threads, "image-decoder")
        with warnings.catch_warnings(), distributed.show_progress(len(indices)) as report, pool:
            warnings.filterwarnings("ignore", module=r"PIL\.")  # invalid EXIF metadata, large images
            done = 0
            try:
                for count in pool.map(self._read_chunk, chunks):
                    done += count
                    report(done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _read_chunk(self, indices: Sequence[int]) -> int:
        for index in indices:
            try:
                image = self._read(index)
            except decode.ImageDecodeError as error:
                self._broken[index] = str(error)
                continue
            if image is not None:
                self._is_color |= image.shape[2] == 3
                if self._in_memory:
                    self._kept[index] = image
        return len(indices)

    def _read(self, index: int) -> np.ndarray | None:
        """uint8 [H, W, 1 or 3]; None for an image of another size that is not to be resized, or deep without a range."""
        with self._open(index) as picture:
            if decode.is_deep(picture) and not self._levels:
                self._deep[index] = decode.measure_deep(picture)
                return None
            image = decode.to_uint8(picture, self._reading.background, self._levels)
        image = image[..., None] if image.ndim == 2 else image
        if image.shape[:2] == self._size:
            return image
        self._sizes[index] = image.shape[:2]
        return resized(image, self._size, self._reading.resize.filter) if self._reading.resize else None

    def _open(self, index: int) -> Image.Image:
        return decode.open_image(io.BytesIO(self._content(index)))

    def _range(self) -> tuple[float, float]:
        try:
            return value_range.find_range(list(self._deep.values()))
        except ValueError as error:
            raise InvalidArgumentError(f"`levels` is not set, and in {self._name} {error}") from error

    def _check_broken(self) -> None:
        if not self._broken:
            return
        named = listed([f"{self._names[index]} ({self._broken[index]})" for index in sorted(self._broken)], NAMED)
        which = f"{len(self._broken):,} of {len(self._names):,} images in {self._name}"
        if len(self._broken) == len(self._names):
            raise InvalidDataError(f"none of the {len(self._names):,} images in {self._name} can be read: {named}")
        if self._reading.on_decode_error == "error":
            raise InvalidDataError(
                f"{which} cannot be read: {named}; repair or remove them, or leave them out: `on_decode_error='skip'`"
            )
        logger.info(f"skipped {which}, which cannot be read: {named}")
