"""One image file, of whatever kind people have, as 8-bit gray or RGB.

Colour profiles are not applied: values are taken as they stand in the file, as every published data set takes them.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ddpm_jax.data.value_range import DeepLevels, find_range
from ddpm_jax.data.value_range import to_uint8 as levels_to_uint8
from ddpm_jax.runtime.errors import InvalidArgumentError, error_line

# Only these are tried, whatever a file is called: Pillow would hand others, such as EPS, to programs outside.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class ImageDecodeError(ValueError):
    """A file that is no readable image. The message is the reason, in a few words."""


def read_image(file: str | BinaryIO, background: tuple[int, int, int], value_range: Sequence[float] = ()) -> np.ndarray:
    """The picture in a file, upright: uint8 [H, W] (gray) or [H, W, 3] (RGB). See `open_image` and `to_uint8`.

    Raises:
      BrokenImage: as those two.
    """
    with open_image(file) as picture:
        return to_uint8(picture, background, value_range)


def open_image(file: str | BinaryIO) -> Image.Image:
    """The picture in a file, decoded and upright (EXIF), its first frame. Safe to call from many threads.

    Args:
      file: its path, or its bytes as a binary file.

    Raises:
      BrokenImage: empty, cut off, damaged, no image, or more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        picture = Image.open(file, formats=FORMATS)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # decoders have no exception of their own for what they cannot read
        raise ImageDecodeError(_reason(error, file)) from error
    try:
        picture.load()
    except MemoryError:
        picture.close()
        raise
    except Exception as error:
        picture.close()
        raise ImageDecodeError(_reason(error, file)) from error
    # Damaged EXIF metadata does not make a picture unreadable: it is then taken without a rotation.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def is_deep(picture: Image.Image) -> bool:
    """Whether it is gray of more than 8 bits: only then does `to_uint8` need a range."""
    return picture.mode == "F" or picture.mode.startswith("I")


def measure_deep(picture: Image.Image) -> DeepLevels:
    """The levels of a deep picture.

    Raises:
      BrokenImage: some are not finite.
    """
    values = np.asarray(picture)
    least, most = float(values.min()), float(values.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ImageDecodeError(f"gray levels from {least:g} to {most:g}: they must be finite")
    return DeepLevels(least, most, picture.mode == "F")


def to_uint8(picture: Image.Image, background: tuple[int, int, int], value_range: Sequence[float] = ()) -> np.ndarray:
    """uint8 [H, W] (gray) or [H, W, 3] (RGB) of a picture of any of Pillow's modes.

      - transparency, by channel, palette or color key: over `background`;
      - CMYK and other colors: RGB by Pillow's plain conversion;
      - gray of 16 bits, 32 bits or floats (modes I;16, I, F): `value_range` to 0..255, rounded and clipped;
      - color of 16 bits: the high byte, which is all that Pillow reads, within one level of rounding.

    Args:
      picture: from `open_image`.
      background: RGB, 0..255.
      value_range: (black, white) of deep gray. It belongs to a set, not to a file (`value_range.py`); by default
        the range that `find_range` finds for this file alone.

    Raises:
      BrokenImage: of a kind that cannot be shown as above.
    """
    try:
        return (
            _decode_high_bit_depth_gray(picture, background, value_range)
            if is_deep(picture)
            else _decode_8bit(picture, background)
        )
    except ImageDecodeError:
        raise
    except ValueError as error:  # Pillow has no way from this mode, such as LAB, to RGB
        raise ImageDecodeError(f"damaged: {error_line(error)}") from error


def parse_background(name: str) -> tuple[int, int, int]:
    """A colour by name or #rrggbb, as RGB 0..255.

    Raises:
      InvalidArgumentError: no such colour, or one that is itself transparent.
    """
    try:
        colour = ImageColor.getrgb(name)
    except ValueError:
        colour = ()
    if len(colour) != 3:
        raise InvalidArgumentError(f"`background` is {name!r}: give a colour's name, such as white, or #rrggbb")
    return colour


def _decode_8bit(picture: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """Pictures of at most 8 bits a channel, as Pillow holds them."""
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
    """Gray of more than 8 bits; uint8 [H, W], or [H, W, 3] where one level stands for transparent."""
    measured = measure_deep(picture)  # refuses NaN, which has no level
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
    """Why a file cannot be read, without a line break."""
    if isinstance(error, ImageDecodeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if _size(file) else "empty file"
    return error_line(error) if isinstance(error, OSError) and str(error) else f"damaged: {error_line(error)}"


def _size(file: str | BinaryIO) -> int:
    return os.path.getsize(file) if isinstance(file, str) else file.seek(0, os.SEEK_END)
