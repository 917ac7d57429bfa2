"""Pictures to and from the page: data for display, and masks painted with a brush."""

from collections.abc import Sequence

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


def read_mask(layers: Sequence[np.ndarray] | None, size: Sequence[int]) -> np.ndarray:
    """The pixels of a model that are painted over by half or more: bool [H, W].

    Args:
      layers: of an editor, uint8 [h, w, 4] each; painted where they are not transparent. Cropped as the image below.
      size: (H, W).

    Raises:
      InvalidArgumentError: no pixel is painted, or all are.
    """
    (height, width), painted = size, np.zeros(tuple(size), bool)
    for layer in layers or ():
        array = np.asarray(layer)
        if array.ndim == 3 and array.shape[2] == 4:
            alpha = Image.fromarray(array[..., 3])
            scale = min(alpha.width / width, alpha.height / height)
            left, top = (alpha.width - width * scale) / 2, (alpha.height - height * scale) / 2
            box = (left, top, left + width * scale, top + height * scale)
            painted |= np.asarray(alpha.resize((width, height), Image.Resampling.BOX, box=box)) >= 128
    if not painted.any():
        raise InvalidArgumentError("no pixel is painted: paint over what is to be generated, or choose a half of the image")
    if painted.all():
        raise InvalidArgumentError("all pixels are painted: leave some, or use the tab Generate")
    return painted


def _rgb(picture: np.ndarray) -> np.ndarray:
    return np.broadcast_to(picture, (*picture.shape[:2], 3)).copy() if picture.shape[2] == 1 else picture
