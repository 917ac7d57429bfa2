"""One image file, of whatever kind people have, as 8-bit grey or RGB.

Colour profiles are not applied: values are taken as they stand in the file, as every published data set takes them.
"""

import contextlib
import os

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ddpm_jax.runtime.errors import UsageError

# Only these are tried, whatever a file is called: Pillow would hand others, such as EPS, to programs outside.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class BrokenImage(Exception):
    """A file that is no readable image. The message is the reason, in a few words."""


def read_image(path: str, background: tuple[int, int, int]) -> np.ndarray:
    """The picture in a file, upright: uint8 [H, W] (grey) or [H, W, 3] (RGB).

    Whatever Pillow's mode, this becomes of it:
      - transparency, by channel, palette or colour key: laid over `background`;
      - CMYK and other colours: RGB by Pillow's plain conversion;
      - grey of 16 bits (modes I;16, I): 0..65535 to 0..255, rounded, so that 65535 becomes 255;
      - grey of floats (F): 0..1 or else 0..65535 to 0..255, rounded;
      - colour of 16 bits: the high byte, which is all that Pillow reads, within one level of rounding;
      - animations: their first frame;
      - EXIF orientation: applied, as every viewer does.

    Args:
      path: of the file.
      background: RGB, 0..255.

    Raises:
      BrokenImage: empty, cut off, damaged, no image, more pixels than Pillow takes for honest (twice
        `PIL.Image.MAX_IMAGE_PIXELS`), or of a kind that cannot be shown as above. Safe to call from many threads.
    """
    try:
        picture = Image.open(path, formats=FORMATS)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # decoders have no exception of their own for what they cannot read
        raise BrokenImage(_reason(error, path)) from error
    with picture:
        try:
            picture.load()
        except MemoryError:
            raise
        except Exception as error:
            raise BrokenImage(_reason(error, path)) from error
        # Damaged camera notes do not make a picture unreadable: it is then taken as it lies.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(picture, in_place=True)
        try:
            deep = picture.mode == "F" or picture.mode.startswith("I")
            return _deep_grey(picture, background) if deep else _shallow(picture, background)
        except ValueError as error:  # Pillow has no way from this mode, such as LAB, to RGB
            raise BrokenImage(_reason(error, path)) from error


def parse_background(name: str) -> tuple[int, int, int]:
    """A colour by name or #rrggbb, as RGB 0..255.

    Raises:
      UsageError: no such colour, or one that is itself transparent.
    """
    try:
        colour = ImageColor.getrgb(name)
    except ValueError:
        colour = ()
    if len(colour) != 3:
        raise UsageError(f"config.data.background is {name!r}: give a colour's name, such as white, or #rrggbb")
    return colour


def _shallow(picture: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
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


def _deep_grey(picture: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """Grey of more than 8 bits; uint8 [H, W], or [H, W, 3] where one level stands for transparent."""
    values = np.asarray(picture).astype(np.float32)  # exact up to 2**24
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 65535):  # NaN too
        raise BrokenImage(f"grey levels from {least:g} to {most:g}, not within 0..65535")
    # A float picture whose levels do not exceed 1 is on the scale 0..1: on the other it would be all black.
    scale = 255 if picture.mode == "F" and most <= 1 else 1 / 257
    levels = np.rint(values * np.float32(scale)).astype(np.uint8)
    key = picture.info.get("transparency")
    if key is None:
        return levels
    return np.where((values == key)[..., None], np.array(background, np.uint8), levels[..., None])


def _reason(error: Exception, path: str) -> str:
    """Why a file cannot be read, without a line break."""
    if isinstance(error, BrokenImage):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if os.path.getsize(path) else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    words = " ".join(str(error).split())[:100]
    return words if isinstance(error, OSError) and words else f"damaged: {words or type(error).__name__}"
