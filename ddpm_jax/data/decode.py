"""Decodes an image file of any common format to 8-bit gray or RGB.

Color profiles are not applied: values are used as stored in the file, as in published data sets.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ddpm_jax.data.value_range import DeepLevels, find_range
from ddpm_jax.data.value_range import to_uint8 as levels_to_uint8
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, error_line

# Only these are tried, whatever the file name: Pillow would pass others, such as EPS, to external programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class ImageDecodeError(ValueError):
    """A file cannot be decoded as an image. The message is the reason, in a few words."""


def read_image(file: str | BinaryIO, background: tuple[int, int, int], value_range: Sequence[float] = ()) -> np.ndarray:
    """The image in a file, upright: uint8 [H, W] (gray) or [H, W, 3] (RGB). See `open_image` and `to_uint8`.

    Raises:
      ImageDecodeError: as those two.
    """
    with open_image(file) as picture:
        return to_uint8(picture, background, value_range)


def open_image(file: str | BinaryIO) -> Image.Image:
    """Decodes the first frame of an image file and rotates it according to EXIF. Thread-safe.

    Args:
      file: its path, or its bytes as a binary file.

    Raises:
      FileAccessError: a bucket does not answer.
      ImageDecodeError: the file is empty, truncated, damaged, not an image, or has more pixels than twice
        `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        if isinstance(file, str) and storage.is_remote(file):
            file = io.BytesIO(storage.read_file(file))
        picture = Image.open(file, formats=FORMATS)
    except FileAccessError:  # of the bucket, not of the file
        raise
    except MemoryError:  # not a fault of the file
        raise
    except Exception as error:  # decoders raise exceptions of many types
        raise ImageDecodeError(_reason(error, file)) from error
    try:
        picture.load()
    except MemoryError:
        picture.close()
        raise
    except Exception as error:
        picture.close()
        raise ImageDecodeError(_reason(error, file)) from error
    # Damaged EXIF metadata does not make an image unreadable: it is then not rotated.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def is_deep(picture: Image.Image) -> bool:
    """Whether the image is gray with more than 8 bits, which requires a range in `to_uint8`."""
    return picture.mode == "F" or picture.mode.startswith("I")


def measure_deep(picture: Image.Image) -> DeepLevels:
    """The levels of a deep image.

    Raises:
      ImageDecodeError: a level is not finite.
    """
    values = np.asarray(picture)
    least, most = float(values.min()), float(values.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ImageDecodeError(f"gray levels from {least:g} to {most:g}: they must be finite")
    return DeepLevels(least, most, picture.mode == "F")


def to_uint8(picture: Image.Image, background: tuple[int, int, int], value_range: Sequence[float] = ()) -> np.ndarray:
    """Converts an image of any Pillow mode to uint8 [H, W] (gray) or [H, W, 3] (RGB).

      - transparency, by channel, palette or color key: composited over `background`;
      - CMYK and other color spaces: RGB by Pillow's plain conversion;
      - gray of 16 bits, 32 bits or floats (modes I;16, I, F): `value_range` to 0..255, rounded and clipped;
      - color of 16 bits: the high byte, which is all that Pillow reads, within one level of rounding.

    Args:
      picture: from `open_image`.
      background: RGB, 0..255.
      value_range: (black, white) of deep gray, common to a whole set (`value_range.py`); by default the result of
        `find_range` for this file alone.

    Raises:
      ImageDecodeError: the mode cannot be converted.
    """
    try:
        return (
            _decode_high_bit_depth_gray(picture, background, value_range)
            if is_deep(picture)
            else _decode_8bit(picture, background)
        )
    except ImageDecodeError:
        raise
    except ValueError as error:  # Pillow cannot convert this mode, such as LAB, to RGB
        raise ImageDecodeError(f"damaged: {error_line(error)}") from error


def parse_background(name: str) -> tuple[int, int, int]:
    """A color by name or #rrggbb, as RGB 0..255.

    Raises:
      InvalidArgumentError: unknown or transparent color.
    """
    try:
        color = ImageColor.getrgb(name)
    except ValueError:
        color = ()
    if len(color) != 3:
        raise InvalidArgumentError(f"`background` is {name!r}: give a color name, such as white, or #rrggbb")
    return color


def _decode_8bit(picture: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """Decodes images of at most 8 bits per channel."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGB", picture.size, background)
        canvas.paste(picture, mask=picture)
        picture = canvas
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    return np.asarray(picture)


def _decode_high_bit_depth_gray(
    picture: Image.Image, background: tuple[int, int, int], value_range: Sequence[float]
) -> np.ndarray:
    """Decodes gray of more than 8 bits: uint8 [H, W], or [H, W, 3] if one level means transparent."""
    measured = measure_deep(picture)  # rejects NaN
    try:
        low, high = value_range or find_range([measured])
    except ValueError as error:
        raise ImageDecodeError(str(error)) from error
    values = np.asarray(picture)
    levels = levels_to_uint8(values, (low, high))
    key = picture.info.get("transparency")
    if key is None:
        return levels
    return np.where((values == key)[..., None], np.array(background, np.uint8), levels[..., None])


def _reason(error: Exception, file: str | BinaryIO) -> str:
    """The reason why a file cannot be read, on one line."""
    if isinstance(error, ImageDecodeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if _size(file) else "empty file"
    return error_line(error) if isinstance(error, OSError) and str(error) else f"damaged: {error_line(error)}"


def _size(file: str | BinaryIO) -> int:
    return os.path.getsize(file) if isinstance(file, str) else file.seek(0, os.SEEK_END)
