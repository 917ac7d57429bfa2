"""Pictures to and from the page: data for display, uploads as data, and masks painted with a brush."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ddpm_jax.diffusion import pixels
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime.errors import InvalidArgumentError

EDITOR_SIZE = 384  # pixels, about, of an image to paint on


def show(pixel_format: pixels.PixelFormat, x: np.ndarray) -> np.ndarray:
    """Images of [-1, 1], float [..., H, W, C], as pictures: uint8 [..., H, W, 1 or 3]."""
    return pixel_format.shown(np.asarray(pixel_format.to_data(jnp.asarray(x))))


def grid(pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [N, H, W, C] in a nearly square grid: uint8 [H', W', 3]."""
    return _rgb(image_grid.grid(pictures, columns=None))


def rows(pictures: Sequence[np.ndarray], names: Sequence[str] = ()) -> np.ndarray:
    """Rows of pictures, uint8 [n, H, W, C] each, with names at the left: uint8 [H', W', 3]."""
    every = np.concatenate(list(pictures))
    cells = np.full((len(pictures), max(map(len, pictures))), -1)
    start = 0
    for cell, row in zip(cells, pictures, strict=True):
        cell[: len(row)] = np.arange(start, start + len(row))
        start += len(row)
    plan = image_grid.GridPlan(cells, tuple(range(len(pictures))) if names else ())
    return _rgb(image_grid.draw_plan(plan, lambda index: every[index], every.shape[1:], names))


def enlarge(picture: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, C] in blocks of whole pixels, about `EDITOR_SIZE` high: uint8 [H', W', 3]."""
    factor = max(1, round(EDITOR_SIZE / max(picture.shape[:2])))
    return _rgb(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def read_upload(picture: Any, shape: Sequence[int], pixel_format: pixels.PixelFormat) -> np.ndarray:
    """A picture of the page as data of a model: [H, W, C] of its type.

    An enlarged picture of the page gives the same pixels again; others are center-cropped and resized.

    Args:
      picture: uint8 [h, w], [h, w, 3] or [h, w, 4]; transparent pixels become white.
      shape: (H, W, C) of the model.
      pixel_format: of the model.

    Raises:
      InvalidArgumentError: there is no picture, or the images of the model are not gray or RGB.
    """
    if picture is None:
        raise InvalidArgumentError("the image is missing: load one from the data set, or upload one")
    height, width, channels = shape
    if channels not in (1, 3):
        raise InvalidArgumentError(f"the images of this model have {channels} channels: use those of its data set")
    image = Image.fromarray(np.asarray(picture, np.uint8))
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = _crop_and_resize(image.convert("L" if channels == 1 else "RGB"), (height, width))
    array = np.asarray(image).reshape(shape)
    return array if pixel_format.dtype == "uint8" else np.asarray(pixel_format.to_data(pixels.from_uint8(jnp.asarray(array))))


def read_mask(layers: Sequence[np.ndarray] | None, size: Sequence[int]) -> np.ndarray:
    """The pixels of a model that are painted over by half or more: bool [H, W].

    Args:
      layers: of an editor, uint8 [h, w, 4] each; painted where they are not transparent.
      size: (H, W).

    Raises:
      InvalidArgumentError: no pixel is painted, or all are.
    """
    painted = np.zeros(tuple(size), bool)
    for layer in layers or ():
        array = np.asarray(layer)
        if array.ndim == 3 and array.shape[2] == 4:
            painted |= np.asarray(_crop_and_resize(Image.fromarray(array[..., 3]), size, Image.Resampling.BOX)) >= 128
    if not painted.any():
        raise InvalidArgumentError("no pixel is painted: paint over what is to be generated, or choose a half of the image")
    if painted.all():
        raise InvalidArgumentError("all pixels are painted: leave some, or use the tab Generate")
    return painted


def _crop_and_resize(image: Image.Image, size: Sequence[int], resample: Image.Resampling | None = None) -> Image.Image:
    """The center of an image in (H, W) = `size`; by default, blocks of whole pixels are averaged."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    if resample is None:
        resample = Image.Resampling.BOX if scale.is_integer() else Image.Resampling.BICUBIC
    return image.resize((width, height), resample, box=(left, top, left + width * scale, top + height * scale))


def _rgb(picture: np.ndarray) -> np.ndarray:
    return np.broadcast_to(picture, (*picture.shape[:2], 3)).copy() if picture.shape[2] == 1 else picture
