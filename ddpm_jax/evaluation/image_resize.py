"""Resizes images to the size of a reference, by a named filter that is reported with the scores.

A resize that is not reported makes two scores differ: filters without antialiasing change an FID by several points (Parmar et
al. 2022, arXiv 2104.11222).
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")  # of Pillow; all of them antialias


class Resize(NamedTuple):
    """How images of another size are resized.

    Attributes:
      filter: one of `FILTERS`.
      size: height and width of the result; None for those of the reference.
    """

    filter: str
    size: int | None = None


def parse_resize(text: str) -> Resize | None:
    """FILTER or FILTER:SIZE; None if `text` is empty.

    Raises:
      InvalidArgumentError: another filter, or a size that is not an integer above 0.
    """
    if not text:
        return None
    name, colon, size = text.partition(":")
    if name not in FILTERS:
        raise InvalidArgumentError(f"`resize` is {text!r}: choose one of {', '.join(FILTERS)}, or with a size, bicubic:64")
    if colon and not (size.isdecimal() and int(size)):
        raise InvalidArgumentError(f"`resize` is {text!r}: the size after the colon must be an integer above 0, bicubic:64")
    return Resize(name, int(size) if colon else None)


def size_error(name: str, which: str, size: tuple[int, int], found: str) -> InvalidDataError:
    """The error for images of another size than `size`, (H, W)."""
    height, width = size
    return InvalidDataError(
        f"{which} in {name} are not {width}x{height}: {found}; give images of one size, or resize them, and report it with the "
        "scores: `resize=bicubic`"
    )


def describe(resize: Resize | None, count: int) -> str:
    """What was done to `count` images of other sizes, for the report."""
    return f"Pillow {resize.filter}, antialiased, after a central crop to the aspect ratio" if resize and count else "none"


def resized(image: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """Crop uint8 [H, W, C] centrally to the aspect ratio of `size`, (H', W'), and resize it: uint8 [H', W', C].

    For a square this is what `data.source.center_crop_and_resize` does, with any of `FILTERS`.
    """
    (height, width), (new_height, new_width) = image.shape[:2], size
    scale = min(height / new_height, width / new_width)
    rows, columns = max(1, min(height, round(new_height * scale))), max(1, min(width, round(new_width * scale)))
    top, left = (height - rows) // 2, (width - columns) // 2
    part = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    picture = Image.fromarray(part if part.shape[2] == 3 else part[:, :, 0])
    picture = picture.resize((new_width, new_height), Image.Resampling[name.upper()])
    return np.asarray(picture).reshape(new_height, new_width, image.shape[2])
