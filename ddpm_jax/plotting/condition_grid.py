"""A grid of images generated from condition images: condition | samples | original."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ddpm_jax.plotting import image_grid

MAX_SHOWN = 48  # generated images in a grid
CONVERTED = {1: "L", 3: "RGB"}  # channels -> Pillow's mode


def draw(images: np.ndarray, conditions: np.ndarray, originals: np.ndarray | None = None) -> np.ndarray:
    """The first `MAX_SHOWN` images; consecutive ones of the same condition image are shown side by side.

    Args:
      images: uint8 [N, H, W, C], C = 1 or 3.
      conditions: uint8 [M, h, w, C'], M >= N; shown enlarged, by pixels.
      originals: uint8 [M, H, W, C], or None.

    Returns:
      uint8 [H', W', C].
    """
    images = images[:MAX_SHOWN]
    groups: list[list[int]] = []
    for index in range(len(images)):
        if groups and np.array_equal(conditions[index], conditions[groups[-1][0]]):
            groups[-1].append(index)
        else:
            groups.append([index])
    blank = np.full(images.shape[1:], image_grid.BACKGROUND, np.uint8)
    width = max(map(len, groups))  # the last group may be incomplete
    rows = []
    for members in groups:
        row = [shown(conditions[members[0]], images.shape[1:]), *images[members], *[blank] * (width - len(members))]
        rows.append(row + ([] if originals is None else [originals[members[0]]]))
    columns = max(1, round(math.sqrt(len(rows) / len(rows[0]))))  # of groups, for a nearly square grid
    cells = []
    for first in range(0, len(rows), columns):
        line = rows[first : first + columns]
        line += [[blank] * len(rows[0])] * (columns - len(line))
        cells += [cell for row in line for cell in (*row, blank)][:-1]
    return image_grid.grid(np.stack(cells), columns=columns * (len(rows[0]) + 1) - 1)


def shown(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A condition image, uint8 [h, w, C'], with each pixel enlarged: uint8 [H, W, C], `shape`.

    Images of neither one nor three channels show their first one.
    """
    height, width, channels = shape
    picture = Image.fromarray(image if image.shape[-1] == 3 else np.ascontiguousarray(image[..., 0]))
    picture = picture.resize((width, height), Image.Resampling.NEAREST).convert(CONVERTED[channels])
    return np.asarray(picture).reshape(height, width, channels)
