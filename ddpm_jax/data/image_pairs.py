"""Image-to-image translation: the condition image of each training image is a file of a second folder, with the same name.

    photos/a.jpg, photos/b.png ...     edges/a.png, edges/b.png ...

Names are compared as paths within the folders, without their endings.
"""

import collections
import hashlib
import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from ddpm_jax.data import decode
from ddpm_jax.data.first_reading import FirstReading
from ddpm_jax.data.folder_listing import find_images, listed
from ddpm_jax.data.source import (
    ArraySource,
    Batch,
    ImageSize,
    ImageSource,
    LazySource,
    center_crop_and_resize,
    fits_in_memory,
    height_width,
)
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

NAMED = 5


class PairedSource:
    """A source whose batches also have "condition", uint8 [n, h, w, C]; in all else it is `source`.

    Args:
      source: the images.
      conditions: as many images, in the same order.
    """

    def __init__(self, source: ImageSource, conditions: ImageSource):
        if len(source) != len(conditions):
            raise ValueError(f"{len(source)} images and {len(conditions)} condition images")
        self._source, self._conditions = source, conditions
        both = f"{source.fingerprint} {conditions.fingerprint}"
        self.fingerprint = hashlib.sha256(both.encode()).hexdigest()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not set yet, when it is copied
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def is_in_memory(self) -> bool:
        """Whether no file is read for a batch."""
        return all(getattr(source, "is_in_memory", False) for source in (self._source, self._conditions))

    def batch(self, indices: np.ndarray) -> Batch:
        """See `ImageSource.batch`."""
        return self._source.batch(indices) | {"condition": self._conditions.batch(indices)["image"]}


def load_pairs(
    source: ImageSource,
    folder: str,
    *,
    image_size: ImageSize,
    channels: int,
    background: str = "white",
    in_memory: bool | str = "auto",
    num_threads: int | None = None,
    cache_dir: str = "",
) -> ImageSource:
    """`source`, an image folder, with the condition images of `folder`, read as the images are.

    Every file is read once, so that a broken one is an immediate error.

    Args:
      source: from `load_image_folder`.
      folder: path of the condition images; ~ is expanded.
      image_size: (H, W) of the condition images, or one number for both; other files are center-cropped and resized.
      channels: 1 or 3.
      background, in_memory, num_threads, cache_dir: as for `load_image_folder`.

    Raises:
      InvalidArgumentError: no folder, or the source has no files.
      FileAccessError: the folder does not exist.
      InvalidDataError: condition images are missing, ambiguous, broken or deeper than 8 bits; the message lists them.
    """
    files: Sequence[str] = getattr(source, "files", ())
    if not folder:
        raise InvalidArgumentError("`condition_dir` is empty: name the folder of the condition images")
    if len(files) != len(source):
        raise InvalidArgumentError(f"pairs need a folder of images, and {source.name} is not one: use data.name=image_folder")
    folder = storage.folder_name(folder)
    paths, color = partners(files, folder, source.name), decode.parse_background(background)
    shape = (*height_width(image_size), channels)
    images = np.empty((len(paths), *shape), np.uint8) if fits_in_memory(in_memory, len(paths) * int(np.prod(shape))) else None
    first = FirstReading(folder, paths, color, shape, images, cache_dir)
    first.read_all(num_threads)
    if first.broken:
        named = [f"{paths[index]} ({first.broken[index]})" for index in sorted(first.broken)]
        raise InvalidDataError(
            f"{len(named):,} of {len(paths):,} condition images in {folder} cannot be read: {listed(named, NAMED)}; repair "
            "them, or remove the images of the same names"
        )
    if first.deep():  # their range would have to be the same in every split
        raise InvalidDataError(f"{folder} holds images of more than 8 bits, {len(first.deep()):,}: convert them to 8 bits")
    attributes: dict[str, Any] = {"name": folder, "split": source.split, "fingerprint": first.fingerprint(None)}
    if images is not None:
        return cast(ImageSource, PairedSource(source, ArraySource(images, **attributes)))

    def read(index: int) -> tuple[np.ndarray, None]:
        image = decode.read_image(os.path.join(folder, paths[index]), color, ())
        return center_crop_and_resize(image, image_size, channels), None

    lazy = LazySource(read, len(paths), image_size=image_size, channels=channels, num_threads=num_threads, **attributes)
    return cast(ImageSource, PairedSource(source, lazy))


def partners(files: Sequence[str], folder: str, images_folder: str = "the folder of images") -> list[str]:
    """The file of `folder` with the same name as each of `files`, paths within their folders, without its ending.

    Raises:
      FileAccessError: the folder does not exist.
      InvalidDataError: partners are missing, or two files have the same name.
    """
    by_name = collections.defaultdict(list)
    for path in find_images(folder)[0]:
        by_name[os.path.splitext(path)[0]].append(path)
    names = [os.path.splitext(path)[0] for path in files]
    if missing := [path for path, name in zip(files, names, strict=True) if name not in by_name]:
        raise InvalidDataError(
            f"{len(missing):,} of the {len(files):,} images in {images_folder} have no condition image of the same name in "
            f"{folder}: {listed(missing, NAMED)}; add these, or remove the images"
        )
    if twice := [path for name in names if len(by_name[name]) > 1 for path in by_name[name]]:
        raise InvalidDataError(f"{folder} has several files of the same name: {listed(twice, NAMED)}; keep one of each name")
    return [by_name[name][0] for name in names]
