"""A folder of arrays: images of any number of channels, uint8, uint16 or floats, in NumPy or TIFF files.

    scans/0001.npy, scans/0002.npz, scans/0003.tif ...     no labels
    scans/healthy/..., scans/sick/...                      classes; splits as in `image_folder.py`

Each file holds one image, [H, W] or [H, W, C]; an .npz file has one array, or one called image. Values and sizes are used as
they are: measured values are not resampled, so that every file must have the height, width and channels of the set.
Every file is read once before training, and later starts read only files that have changed (`folder_manifest.py`).
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.data import decode
from ddpm_jax.data.file_names import FileNames
from ddpm_jax.data.first_reading import FirstReading
from ddpm_jax.data.folder_listing import check_reading, choose_examples, find_images, one_line, splits_of
from ddpm_jax.data.image_folder import readable_indices
from ddpm_jax.data.source import (
    ARRAY_DTYPES,
    ArraySource,
    ImageSize,
    ImageSource,
    LazySource,
    fits_in_memory,
    height_width,
)
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, error_line

logger = logging.getLogger(__name__)

EXTENSIONS = (".npy", ".npz", ".tif", ".tiff")


class ArrayFileError(decode.ImageDecodeError):
    """A file cannot be read as an image of the set. The message is the reason, in a few words."""


class ArrayReading(FirstReading):
    """Reads each array once. The facts are the digests of the arrays.

    Args:
      folder, paths, cache_dir: as for `FirstReading`.
      shape: (H, W, C) of every array.
      dtype: their type.
      images: `dtype` [N, H, W, C] to fill, or None to keep no arrays.
    """

    def __init__(
        self,
        folder: str,
        paths: Sequence[str],
        shape: tuple[int, int, int],
        dtype: str,
        images: np.ndarray | None,
        cache_dir: str = "",
    ):
        super().__init__(folder, paths, (0, 0, 0), shape, images, cache_dir)
        self._dtype = dtype

    def _settings(self) -> str:
        return f"arrays {self._shape} of {self._dtype}"

    def _read(self, index: int, levels: tuple[float, ...]) -> None:
        image = read_array(os.path.join(self._folder, self._paths[index]), self._shape, self._dtype)
        self._facts.digests[index] = np.frombuffer(hashlib.sha256(image.data).digest(), np.uint8)
        if self._images is not None:
            self._images[index] = image


def load_array_folder(
    folder: str,
    *,
    image_size: ImageSize,
    channels: int,
    array_dtype: str,
    split: str = "train",
    levels: Sequence[float] = (),
    on_decode_error: str = "error",
    in_memory: bool | str = "auto",
    num_threads: int | None = None,
    cache_dir: str = "",
) -> ImageSource:
    """The arrays of a folder, every one read once at the start, to find unreadable files, and hashed.

    Args:
      folder: its path; ~ is expanded.
      image_size: (H, W) of every file, or one number for both.
      channels: C of every file; [H, W] has one channel.
      array_dtype: uint8 or uint16, which must be the type of the files; float32, to which floats of other sizes are converted.
      split, on_decode_error, in_memory, num_threads, cache_dir: as for `image_folder.load_image_folder`.
      levels: (low, high), the values that become -1 and 1, recorded as the source's `value_range`.

    Raises:
      InvalidArgumentError: an unknown type or split, or a range for uint8, which always has 0..255.
      FileAccessError: the folder does not exist.
      InvalidDataError: it contains no array, or files that cannot be read (on_decode_error "error").
    """
    if array_dtype not in ARRAY_DTYPES:
        raise InvalidArgumentError(f"`array_dtype` is {array_dtype!r}: choose one of {', '.join(ARRAY_DTYPES)}")
    if array_dtype == "uint8" and levels:
        raise InvalidArgumentError("`levels` is set, but arrays of uint8 always have the range 0..255: leave it ()")
    check_reading(on_decode_error)
    folder, found = _list_arrays(folder)
    paths, labels, classes = choose_examples(folder, found, split)
    shape = (*height_width(image_size), channels)
    in_memory = fits_in_memory(in_memory, _num_bytes(len(paths), shape, array_dtype))
    images = np.empty((len(paths), *shape), array_dtype) if in_memory else None
    first = ArrayReading(folder, paths, shape, array_dtype, images, cache_dir)
    first.read_all(num_threads)
    kept = list(range(len(paths)))
    if broken := first.broken:
        kept = readable_indices(folder, paths, labels, classes, broken, on_decode_error)
    prefix = f"{split.partition('[')[0]}/" if splits_of(found) else ""
    fingerprint = first.fingerprint(kept, prefix)
    paths, labels = [paths[index] for index in kept], None if labels is None else labels[kept]
    attributes: dict[str, Any] = {
        "num_classes": len(classes),
        "class_names": classes,
        "fingerprint": fingerprint,
        "value_range": tuple(float(level) for level in levels),
        "name": folder,
        "split": split,
    }
    logger.info(
        f"{folder}: {len(paths):,} arrays of {array_dtype} {'x'.join(map(str, shape))} in {len(classes) or 'no'} classes"
    )
    if images is not None:
        return ArraySource(images[kept] if broken else images, labels, **attributes)

    names = FileNames(paths)

    def read_example(index: int) -> tuple[np.ndarray, int | None]:
        try:
            image = read_array(os.path.join(folder, names[index]), shape, array_dtype)
        except ArrayFileError as error:  # it was readable when the run started
            raise InvalidDataError(f"{one_line(names[index])} in {folder} can no longer be read ({error})") from error
        return image, None if labels is None else int(labels[index])

    return LazySource(
        read_example,
        len(paths),
        image_size=shape[:2],
        channels=channels,
        dtype=array_dtype,
        num_threads=num_threads,
        **attributes,
    )


def open_first_reading(
    folder: str, *, image_size: ImageSize, channels: int, array_dtype: str, split: str, in_memory: bool | str, cache_dir: str
) -> ArrayReading | None:
    """The first reading of a set that `load_array_folder` would read on demand; None if it fits in memory.

    Arguments and errors: as for `load_array_folder`.
    """
    folder, found = _list_arrays(folder)
    paths, shape = choose_examples(folder, found, split)[0], (*height_width(image_size), channels)
    if fits_in_memory(in_memory, _num_bytes(len(paths), shape, array_dtype)):
        return None
    return ArrayReading(folder, paths, shape, array_dtype, None, cache_dir)


def _list_arrays(folder: str) -> tuple[str, list[str]]:
    """The folder's full name, and the paths of its arrays."""
    if not folder:
        raise InvalidArgumentError("`folder` is empty: name the folder of your arrays with `folder=PATH`")
    folder = storage.folder_name(folder)
    found, _ = find_images(folder, EXTENSIONS)
    if not found:
        raise InvalidDataError(f"no arrays in {folder}: searched it and its subfolders for {', '.join(EXTENSIONS)}")
    return folder, found


def _num_bytes(count: int, shape: tuple[int, int, int], dtype: str) -> int:
    return count * int(np.prod(shape)) * np.dtype(dtype).itemsize


def read_array(path: str, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """The image in a file: `dtype` [H, W, C].

    Raises:
      ArrayFileError: the file cannot be read, or holds another shape or type, or values that are not finite.
    """
    try:
        if path.endswith((".npy", ".npz")):
            with storage.as_path(path).open("rb") as file:
                array = _numpy_array(np.load(file, allow_pickle=False))
        else:
            with storage.as_path(path).open("rb") as file, Image.open(file, formats=("TIFF", "PNG")) as picture:
                array = np.array(picture)
    except MemoryError:
        raise
    except (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        # NumPy takes a file of any other format for a pickle, and recommends to load it although that could execute code.
        is_pickle = "allow_pickle" in str(error)
        raise ArrayFileError("not an array of numbers that NumPy wrote" if is_pickle else error_line(error)) from error
    array = array[..., None] if array.ndim == 2 else array
    if array.shape != shape:
        raise ArrayFileError(f"shape {'x'.join(map(str, array.shape))}, not {'x'.join(map(str, shape))}")
    if dtype == "float32" and np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
    if array.dtype.newbyteorder("=") != dtype:
        raise ArrayFileError(f"type {array.dtype}, not {dtype} (`array_dtype`)")
    if dtype == "float32" and not np.isfinite(array).all():
        raise ArrayFileError("values that are not finite")
    return np.ascontiguousarray(array, dtype)


def _numpy_array(loaded: np.ndarray | np.lib.npyio.NpzFile) -> np.ndarray:
    """The array of an .npy file, or the one called image or the only one of an .npz file."""
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        name = "image" if "image" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else ""
        if not name:
            raise ArrayFileError(f"{len(loaded.files)} arrays, none called image")
        return loaded[name]
