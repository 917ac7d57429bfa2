"""Pictures: grids of samples and strips that show stages of a chain side by side. uint8 arrays in, PNG files out."""

import math
import pathlib

import numpy as np
from PIL import Image

# A picture is enlarged by whole factors, pixel by pixel, until its images are this many pixels high.
VISIBLE_HEIGHT = 64
LONGEST_SIDE = 4096
GAP = 2  # pixels between images, before they are enlarged
BACKGROUND = 255


def grid(images: np.ndarray, *, columns: int | None = None) -> np.ndarray:
    """Lay images out row by row.

    Args:
      images: uint8 [N, H, W, C], C = 1 or 3, N at least 1.
      columns: images per row; by default about as many as there are rows.

    Returns:
      uint8 [H', W', C], enlarged by a whole factor so that small images can be seen.
    """
    number, height, width, channels = images.shape
    columns = min(number, columns or math.ceil(math.sqrt(number)))
    rows = math.ceil(number / columns)
    factor = max(1, round(VISIBLE_HEIGHT / height))
    while factor > 1 and factor * max(rows * (height + GAP), columns * (width + GAP)) > LONGEST_SIDE:
        factor -= 1
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + (i // columns) * (height + GAP), GAP + (i % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas.repeat(factor, axis=0).repeat(factor, axis=1)


def grid_of_classes(images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """As `grid`; where there are equally many images of several classes, a row of it is of one class.

    Args:
      images: uint8 [N, H, W, C].
      labels: int [N], or None.
    """
    if labels is None:
        return grid(images)
    _, counts = np.unique(labels, return_counts=True)
    each = int(counts[0])
    if len(counts) == 1 or each == 1 or (counts != each).any() or len(counts) > 4 * each:
        return grid(images)
    return grid(images[np.argsort(labels, kind="stable")], columns=each)


def strip(stages: np.ndarray) -> np.ndarray:
    """One row per chain, its stages from left to right: uint8 [N, S, H, W, C] -> uint8 [H', W', C]."""
    number, count = stages.shape[:2]
    return grid(stages.reshape(number * count, *stages.shape[2:]), columns=count)


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, C], C = 1 (grey) or 3 (RGB); appears whole or not at all."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    partial = path.with_name(path.name + ".partial")
    picture.save(partial, format="PNG")
    partial.replace(path)
