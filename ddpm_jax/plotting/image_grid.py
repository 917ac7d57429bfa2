"""Image grids of samples, and strips of intermediate steps: uint8 arrays in, PNG files out."""

import io
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import open_atomic

# Grids are enlarged by integer factors, so that images are about this many pixels high.
VISIBLE_HEIGHT = 64
LONGEST_SIDE = 4096
MAX_IMAGES = 100  # in a grid; 50,000 would give 58,000 pixels per side
MAX_COLUMNS = 10  # in a grid whose rows are classes
MAX_ASPECT_RATIO = 4  # more elongated grids are laid out again without rows per class
GAP = 2  # pixels between images, before enlarging
BACKGROUND = 255
SMALLEST_FONT, LARGEST_FONT = 14, 48  # pixels; in between, a quarter of the row height
LONGEST_NAME = 24  # characters of a class name
LAST_LATIN = 0x24F  # last character of the font; names with others are replaced by the class index
PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk: its length, type and checksum


class GridPlan(NamedTuple):
    """Layout of a grid.

    Attributes:
      cells: int [rows, columns], image indices; -1 for an empty cell.
      row_classes: the class of each row; () if rows mix classes.
    """

    cells: np.ndarray
    row_classes: tuple[int, ...] = ()


def grid(images: np.ndarray, *, columns: int | None = None) -> np.ndarray:
    """Lay images out row by row.

    Args:
      images: uint8 [N, H, W, C], C = 1 or 3, N at least 1.
      columns: images per row, for all N images; by default a nearly square grid of at most the first 100.

    Returns:
      uint8 [H', W', C]; small images are enlarged by an integer factor.
    """
    if columns is None:
        images = images[:MAX_IMAGES]
    return draw_plan(_row_by_row(np.arange(len(images)), columns), lambda index: images[index], images.shape[1:])


def plan_grid(number: int, labels: np.ndarray | None) -> GridPlan:
    """Choose at most 100 of `number` images and lay them out in a nearly square grid.

    Classes get equally many images if possible, and rows of their own for at most ten classes with two or more images. If there
    are more than 100 classes, 100 evenly spaced ones are shown.

    Args:
      number: number of images, at least 1.
      labels: int [number], or None.
    """
    if labels is None:
        return _row_by_row(np.arange(min(number, MAX_IMAGES)))
    order = np.argsort(labels, kind="stable")
    classes, firsts, counts = np.unique(np.asarray(labels)[order], return_index=True, return_counts=True)
    if len(classes) == 1 or (number <= MAX_IMAGES and counts.min() == 1):
        return _row_by_row(np.arange(min(number, MAX_IMAGES)))
    each = max(1, MAX_IMAGES // len(classes))
    members = [order[first : first + min(count, each)] for first, count in zip(firsts, counts, strict=True)]
    if len(classes) <= MAX_COLUMNS:
        plan = _rows_of_classes(classes, members, crop=counts.min() > each)
        if max(plan.cells.shape) <= MAX_ASPECT_RATIO * min(plan.cells.shape):
            return plan
        return _row_by_row(np.sort(np.concatenate(members)))
    if len(members) > MAX_IMAGES:
        members = [members[i] for i in np.linspace(0, len(members) - 1, MAX_IMAGES).round().astype(int)]
    return _row_by_row(np.concatenate(members))


def draw_plan(
    plan: GridPlan, image_of: Callable[[int], np.ndarray], image_shape: Sequence[int], class_names: Sequence[str] = ()
) -> np.ndarray:
    """Draw a plan.

    Args:
      plan: from `plan_grid`.
      image_of: index -> uint8 [H, W, C].
      image_shape: (H, W, C).
      class_names: written next to the rows of classes; () for no text. Classes without a name get their index.

    Returns:
      uint8 [H', W', C].
    """
    height, width, channels = image_shape
    rows, columns = plan.cells.shape
    factor = max(1, round(VISIBLE_HEIGHT / height))
    while factor > 1 and factor * max(rows * (height + GAP), columns * (width + GAP)) > LONGEST_SIDE:
        factor -= 1
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), BACKGROUND, np.uint8)
    for (row, column), index in np.ndenumerate(plan.cells):
        if index >= 0:
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            canvas[top : top + height, left : left + width] = image_of(int(index))
    picture = canvas.repeat(factor, axis=0).repeat(factor, axis=1)
    if not (class_names and plan.row_classes):
        return picture
    return np.concatenate(
        [_row_names(plan, class_names, factor * (height + GAP), factor * GAP, picture.shape), picture], axis=1
    )


def grid_of_classes(images: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] = ()) -> np.ndarray:
    """As `grid`, of images uint8 [N, H, W, C] and their labels int [N] or None, with the names next to rows of classes."""
    return draw_plan(plan_grid(len(images), labels), lambda index: images[index], images.shape[1:], class_names)


def strip(stages: np.ndarray) -> np.ndarray:
    """One row per chain, with intermediate steps from left to right: uint8 [N, S, H, W, C] -> uint8 [H', W', C]."""
    number, count = stages.shape[:2]
    return grid(stages.reshape(number * count, *stages.shape[2:]), columns=count)


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, C], C = 1 (gray) or 3 (RGB), atomically."""
    with open_atomic(path, sync=False) as out:  # a set has many thousands; `is_whole_png` finds a part
        out.write(png_bytes(image))


def png_bytes(image: np.ndarray) -> bytes:
    """The PNG file of an image, uint8 [H, W, C], C = 1 (gray) or 3 (RGB)."""
    png = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, format="PNG")
    return png.getvalue()


def read_png(path: pathlib.Path) -> np.ndarray:
    """uint8 [H, W, C] from a file of `save_png`."""
    with path.open("rb") as file, Image.open(file) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def is_whole_png(path: pathlib.Path) -> bool:
    """Whether the file starts and ends like a PNG file; a system crash may leave a truncated file."""
    if storage.is_remote(path):  # an object is written as a whole
        return True
    try:
        with path.open("rb") as file:
            begins = file.read(len(PNG_BEGIN)) == PNG_BEGIN
            file.seek(-len(PNG_END), os.SEEK_END)
            return begins and file.read() == PNG_END
    except OSError:
        return False


def readable_name(class_names: Sequence[str], label: int) -> str:
    """The class name, truncated; the class index if the name is empty or has characters that the font lacks."""
    name = class_names[label] if label < len(class_names) else ""
    if not name or any(ord(letter) > LAST_LATIN for letter in name):
        return str(label)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."


def _row_by_row(indices: np.ndarray, columns: int | None = None) -> GridPlan:
    columns = min(len(indices), columns or math.ceil(math.sqrt(len(indices))))
    cells = np.full((math.ceil(len(indices) / columns), columns), -1)
    cells.flat[: len(indices)] = indices
    return GridPlan(cells)


def _rows_of_classes(classes: np.ndarray, members: list[np.ndarray], *, crop: bool) -> GridPlan:
    """Rows of one class each, in the number of columns that makes the grid most square; with `crop`, full rows only."""
    most = max(len(indices) for indices in members)

    def layout(columns: int) -> GridPlan:
        high = most // columns if crop else math.ceil(most / columns)  # rows per class
        cells = np.full((len(classes), high * columns), -1)
        for row, indices in zip(cells, members, strict=True):
            row[: min(len(indices), high * columns)] = indices[: high * columns]
        cells, row_classes = cells.reshape(-1, columns), np.repeat(classes, high)
        filled = cells[:, 0] >= 0  # a smaller class may need fewer rows
        return GridPlan(cells[filled], tuple(row_classes[filled].tolist()))

    def cost(plan: GridPlan) -> float:
        rows, columns = plan.cells.shape
        return max(rows, columns) / min(rows, columns) + np.mean(plan.cells < 0)

    return min((layout(columns) for columns in range(1, min(most, MAX_COLUMNS) + 1)), key=cost)


def _row_names(plan: GridPlan, class_names: Sequence[str], pitch: int, gap: int, shape: Sequence[int]) -> np.ndarray:
    """uint8 [H, margin, C]: the name of each class, right-aligned next to its first row."""
    size = min(max(SMALLEST_FONT, pitch // 4), LARGEST_FONT)
    font = ImageFont.load_default(size=size)
    names = {label: readable_name(class_names, label) for label in plan.row_classes}
    margin = math.ceil(max(font.getlength(name) for name in names.values())) + size
    canvas = Image.new("L", (margin, shape[0]), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for row, label in enumerate(plan.row_classes):
        if row == 0 or plan.row_classes[row - 1] != label:
            pen.text((margin - size // 2, row * pitch + (pitch + gap) / 2), names[label], fill=0, font=font, anchor="rm")
    return np.repeat(np.asarray(canvas)[..., None], shape[2], axis=2)
