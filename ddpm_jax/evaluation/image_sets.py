"""Sets of images that exist, made by any program: a folder, a zip, a NumPy file or a TFDS set.

All images of a set have one size; images of other sizes are refused, or resized as `image_resize` describes.
"""

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ddpm_jax.data import prepared
from ddpm_jax.data.decode import ImageDecodeError
from ddpm_jax.data.folder_listing import EXTENSIONS, check_reading, list_images
from ddpm_jax.data.image_zip import ImageZip
from ddpm_jax.data.source import Batch
from ddpm_jax.evaluation.array_images import ArrayImages
from ddpm_jax.evaluation.image_files import FileImages, Reading
from ddpm_jax.evaluation.image_resize import describe, resized, size_error
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line

TFDS = "tfds:"


class ImageSet:
    """Images of one size: an `ImageSource` without labels, which is read in order.

    Attributes:
      name: the path, or tfds:NAME.
      image_shape: (H, W, C), C = 1 (gray) or 3 (RGB). C may be raised to 3: gray images then have three equal channels.
      resize: what was done to images of other sizes; "none" if nothing.
      broken: number of files that cannot be read and are left out.
      value_range: (black, white) of gray files of more than 8 bits; () without such files.
    """

    split, num_classes, fingerprint, dtype = "", 0, "", "uint8"
    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int, int],
        read: Callable[[np.ndarray], Iterable[np.ndarray]],
        *,
        resize: str = "none",
        broken: int = 0,
        levels: Sequence[float] = (),
    ):
        self.name, self._read, self.resize, self.broken, self.value_range = name, read, resize, broken, tuple(levels)
        self._count, self.image_shape = shape[0], shape[1:]

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.image_shape[2]

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: np.ndarray) -> Batch:
        """{"image": uint8 [n, H, W, C]} at consecutive indices [n]."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        for row, image in enumerate(self._read(indices)):
            images[row] = image  # gray is repeated
        return {"image": images}


def open_set(name: str, reading: Reading) -> ImageSet:
    """Open a set, and read every file of it once.

    Args:
      name: path of a folder (images at any depth, or a prepared set), of a zip of images, or of a .npz or .npy file (see
        `ArrayImages`); or tfds:NAME or tfds:NAME@SPLIT, by default of the split train.
      reading: how its files are read.

    Raises:
      InvalidArgumentError, FileAccessError, UnavailableError: there is no such set.
      InvalidDataError: a file is broken (on_decode_error "error"), or none can be read; images of different sizes.
    """
    check_reading(reading.on_decode_error)
    if not reading.size and reading.resize and reading.resize.size:
        reading = dataclasses.replace(reading, size=(reading.resize.size,) * 2)
    if name.startswith(TFDS):
        return _open_tfds(name, reading)
    path = storage.as_path(name)
    if (path / prepared.DESCRIPTION).exists():
        source = prepared.load_prepared("all", folder=name, in_memory=False)
        shape = (len(source), *source.image_shape)
        return _of_arrays(name, shape, lambda indices: source.batch(indices)["image"], reading)
    if path.is_dir():
        names = list_images(name)
        return _of_files(name, FileImages(name, names, lambda index: _file_content(path / names[index]), reading), reading)
    if not path.exists():
        raise FileAccessError(f"{name} does not exist: give a folder, a zip, an .npz or .npy file, or tfds:NAME")
    if not path.is_file():
        raise InvalidDataError(f"{name} is not a file: give a folder, a zip, an .npz or an .npy file")
    if is_image_zip(path):
        archive = ImageZip(name)
        if not archive.names:
            raise InvalidDataError(f"no images in {name}: their names must end in {', '.join(EXTENSIONS)}")
        return _of_files(name, FileImages(name, archive.names, archive.content, reading), reading)
    if path.suffix.lower() in EXTENSIONS:
        raise InvalidDataError(f"{name} is one image: give the folder of the images")
    arrays = ArrayImages(path)
    return _of_arrays(name, arrays.shape, arrays.read, reading)


def is_image_zip(path: pathlib.Path) -> bool:
    """Whether a file is a zip archive of other files than NumPy's arrays."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        with storage.open_zip(path) as archive:
            return not any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return path.suffix.lower() == ".zip"


def _file_content(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ImageDecodeError(error_line(error)) from error


def _of_files(name: str, files: FileImages, reading: Reading) -> ImageSet:
    resize = describe(reading.resize, files.num_resized)
    return ImageSet(name, files.shape, files.read, resize=resize, broken=files.broken, levels=files.levels)


def _open_tfds(name: str, reading: Reading) -> ImageSet:
    from ddpm_jax.data import tfds  # imported lazily: takes seconds

    set_name, _, split = name.removeprefix(TFDS).partition("@")
    count, channels, read = tfds.open_images(set_name, split or "train", reading.data_dir)
    own = read([0])[0].shape[:2]
    size = reading.size or own

    def read_some(indices: np.ndarray) -> list[np.ndarray]:
        found = zip(indices.tolist(), read(indices.tolist()), strict=True)
        return [_fitted(name, f"image {index:,}", image, size, reading) for index, image in found]

    read_some(np.arange(1))  # raises at once if the images of the set have another size
    return ImageSet(name, (count, *size, channels), read_some, resize=describe(reading.resize, size != own))


def _of_arrays(
    name: str, shape: tuple[int, int, int, int], read: Callable[[np.ndarray], Iterable[np.ndarray]], reading: Reading
) -> ImageSet:
    count, height, width, channels = shape
    size = reading.size or (height, width)
    if size == (height, width):
        return ImageSet(name, shape, read)

    def read_some(indices: np.ndarray) -> list[np.ndarray]:
        return [_fitted(name, f"all {count:,} images", image, size, reading) for image in read(indices)]

    read_some(np.arange(1))  # raises at once without `resize`
    return ImageSet(name, (count, *size, channels), read_some, resize=describe(reading.resize, count))


def _fitted(name: str, which: str, image: np.ndarray, size: tuple[int, int], reading: Reading) -> np.ndarray:
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[:2] == size:
        return image
    if not reading.resize:
        raise size_error(name, which, size, f"{image.shape[1]}x{image.shape[0]}")
    return resized(image, size, reading.resize.filter)
