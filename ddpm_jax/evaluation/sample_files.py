"""Output folder of --mode=sample: chunks during generation, then images.npz or PNG files, and a grid.

At most two batches of images are in memory. Each format can be converted to the others, so changing --config.sampling.format of
a finished folder generates no images.
"""

import functools
import itertools
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.diffusion import conditioning, pixels
from ddpm_jax.evaluation.sample_cache import SampleCache
from ddpm_jax.plotting import condition_grid, image_grid
from ddpm_jax.runtime import npz, storage
from ddpm_jax.runtime.errors import InvalidDataError
from ddpm_jax.samplers.batched import GeneratedBatch

OUTPUTS = ("images.npz", "png", "grid.png", "x_t.png", "pred_xstart.png")  # not in an output folder without a manifest
STAGES = ("x_t", "pred_xstart")
# The name of the images in images.npz: guided-diffusion's evaluator reads no other. Earlier versions wrote "images".
IMAGES, FORMER = "arr_0", "images"
FORMATS = {"npz": ("npz",), "png": ("png",), "both": ("npz", "png")}  # sampling.format -> files to write
CHAINS_SHOWN = 8  # rows of a filmstrip
STAGES_SHOWN = 16  # columns of a filmstrip
KEPT_IMAGES = 64  # intermediate steps are saved for the first images only: S steps take S times the memory of an image
READ_IMAGES = 64  # images read at once


class SampleFolder:
    """Images 0 .. num_images-1 with the same settings in a folder, and the files made from them.

    Args:
      folder: folder with a manifest that matches `identity`, the settings that determine the images.
      image_shape: (H, W, C).
      labels: int32 [num_images], or None.
      class_names: names of label 0, 1, ...; () if unknown.
      formats: any of "npz" and "png"; always npz for images that are not pictures, whose PNG files are for display.
      keeps_stages: whether x_t and pred_xstart of the first images are saved.
      conditions: condition images, uint8 [num_images, h, w, C'], or None; images.npz and the grid have them too.
      originals: uint8 [num_images, H, W, C], what they were made of, for the grid; None if unknown.
      pixel_format: type and range of the images, and the channels that pictures show.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        identity: dict[str, Any],
        *,
        num_images: int,
        image_shape: Sequence[int],
        labels: np.ndarray | None,
        class_names: Sequence[str],
        formats: Sequence[str],
        keeps_stages: bool = False,
        conditions: np.ndarray | None = None,
        originals: np.ndarray | None = None,
        pixel_format: pixels.PixelFormat = pixels.UINT8,
    ):
        self.folder = folder
        self._cache = SampleCache(folder, identity)
        self._shape = (num_images, *image_shape)
        self._labels, self._class_names = labels, tuple(class_names)
        self._exact_pngs = pixel_format.is_picture(image_shape[-1])
        self._formats, self._keeps_stages = formats if self._exact_pngs else (*formats, "npz"), keeps_stages
        self._conditions, self._originals = conditions, originals
        self._pixel_format = pixel_format
        self._npz = folder / "images.npz"
        shown = () if self._exact_pngs else pixel_format.shown_channels
        self._png = folder / ("png-channels_" + "_".join(map(str, shown)) if shown else "png")

    def missing(self) -> list[range]:
        """The indices of the missing images, as ranges in ascending order."""
        return [] if self._finished_source() else self._cache.missing(self._shape[0])

    def write(self, first: int, batch: GeneratedBatch) -> None:
        """Write images first, first + 1, ...; PNG files are written immediately.

        Raises:
          FileAccessError: the chunk cannot be written.
          OSError: a PNG file cannot be written.
        """
        kept = {}
        if self._keeps_stages and first < KEPT_IMAGES:
            some = jax.tree.map(lambda array: array[: KEPT_IMAGES - first], batch)
            kept = trajectory_images(some, self._pixel_format)
        self._cache.write(first, batch.images, conditioning.labels_of(batch.cond), **kept)
        if "png" in self._formats:
            self._write_pngs(first, batch.images, frozenset())

    def finish(self) -> None:
        """Write all output files from the images, grid.png last, and remove the chunks.

        Raises:
          InvalidDataError: images are missing.
          OSError: a file cannot be written.
        """
        stages = self._stages()
        if "png" in self._formats and not self._has_pngs():
            existing, first = self._valid_pngs(), 0
            for images in self._batches():
                self._write_pngs(first, images, existing)
                first += len(images)
        if "npz" in self._formats and npz.shape_of(self._npz, IMAGES) != self._shape:
            npz.write(self._npz, {IMAGES: self._rows(), **self._class_arrays(), **stages})
        for name, pictures in stages.items():
            image_grid.save_png(self.folder / f"{name}.png", chain_strip(self._shown(pictures)))
        image_grid.save_png(self.folder / "grid.png", self._grid())
        self._cache.clear()

    def contents(self) -> list[str]:
        """Names of the files in the folder; the PNG folder with its number of files."""
        names = sorted(file.name for file in self.folder.iterdir() if not file.name.startswith("."))
        return [f"{name}/ ({self._shape[0]:,} files)" if name == self._png.name else name for name in names]

    def _finished_source(self) -> Callable[[], Iterator[np.ndarray]] | None:
        """A function that reads all images from complete output files; None if there are none."""
        for name in (IMAGES, FORMER):
            if npz.shape_of(self._npz, name) == self._shape:
                return functools.partial(npz.rows, self._npz, name, READ_IMAGES)
        return self._read_pngs if self._exact_pngs and self._has_pngs() else None

    def _batches(self) -> Iterator[np.ndarray]:
        source = self._finished_source()
        return source() if source else self._cache.batches(self._shape[0], READ_IMAGES)

    def _rows(self) -> npz.Rows:
        return npz.Rows(self._shape, np.dtype(self._pixel_format.dtype), self._batches())

    def _class_arrays(self) -> dict[str, np.ndarray]:
        conditions = {} if self._conditions is None else {"conditions": self._conditions}
        if self._labels is None:
            return conditions
        names = {"label_names": np.array(self._class_names)} if self._class_names else {}
        return {"labels": self._labels, **names, **conditions}

    def _stages(self) -> dict[str, np.ndarray]:
        """Intermediate steps of the first n images: name -> uint8 [n, S + 1, H, W, C]; empty if none were saved."""
        if not self._keeps_stages:
            return {}
        number = min(KEPT_IMAGES, self._shape[0])
        if npz.shape_of(self._npz, STAGES[0]):
            return {name: np.concatenate(list(npz.rows(self._npz, name, READ_IMAGES))) for name in STAGES}
        if self._cache.missing(number):
            return {}  # a finished folder of PNG files, which already has the filmstrips
        return {name: self._cache.rows(name, number) for name in STAGES}

    def _grid(self) -> np.ndarray:
        if self._conditions is not None:
            first_images = itertools.islice(itertools.chain.from_iterable(self._batches()), condition_grid.MAX_SHOWN)
            return condition_grid.draw(np.stack(list(first_images)), self._conditions, self._originals)
        plan = image_grid.plan_grid(self._shape[0], self._labels)
        wanted, shown, first = set(plan.cells[plan.cells >= 0].tolist()), {}, 0
        for images in self._batches():
            shown |= {first + i: self._shown(image).copy() for i, image in enumerate(images) if first + i in wanted}
            first += len(images)
            if len(shown) == len(wanted):
                break
        shape = next(iter(shown.values())).shape
        return image_grid.draw_plan(plan, shown.__getitem__, shape, row_names(self._labels, self._class_names))

    def _shown(self, images: np.ndarray) -> np.ndarray:
        return self._pixel_format.shown(images)

    # PNG files.

    @functools.cached_property
    def _png_names(self) -> list[str]:
        names = [f"{index:08d}" for index in range(self._shape[0])]
        if self._labels is None:
            return [f"{name}.png" for name in names]
        shown = {label: class_file_name(self._class_names, label) for label in np.unique(self._labels).tolist()}
        return [f"{name}-{shown[label]}.png" for name, label in zip(names, self._labels.tolist(), strict=True)]

    def _valid_pngs(self) -> frozenset[str]:
        if not self._png.is_dir():
            return frozenset()
        return frozenset(file.name for file in self._png.iterdir() if file.suffix == ".png" and image_grid.is_whole_png(file))

    def _has_pngs(self) -> bool:
        return self._png.is_dir() and self._valid_pngs() >= set(self._png_names)

    def _write_pngs(self, first: int, images: np.ndarray, existing: frozenset[str]) -> None:
        storage.make_folder(self._png, parents=False)
        for name, image in zip(self._png_names[first : first + len(images)], images, strict=True):
            if name not in existing:
                image_grid.save_png(self._png / name, image if self._exact_pngs else self._shown(image))

    def _read_pngs(self) -> Iterator[np.ndarray]:
        names = self._png_names
        for first in range(0, len(names), READ_IMAGES):
            yield np.stack([self._read_png(self._png / name) for name in names[first : first + READ_IMAGES]])

    def _read_png(self, file: pathlib.Path) -> np.ndarray:
        try:
            image = image_grid.read_png(file)
            if image.shape != self._shape[1:]:
                raise ValueError(f"image of shape {image.shape}, not {self._shape[1:]}")
        except (OSError, SyntaxError, ValueError, zlib.error) as error:  # Pillow raises any of these
            raise InvalidDataError(f"{file} is damaged ({error}): remove it and run the same command again") from error
        return image


def trajectory_images(generated: GeneratedBatch, pixel_format: pixels.PixelFormat = pixels.UINT8) -> dict[str, np.ndarray]:
    """The saved steps followed by the final image: name -> [N, S + 1, H, W, C]; empty if none were saved."""
    if not generated.saved_x.shape[1]:
        return {}
    final = generated.images[:, None]
    stages = dict(zip(STAGES, (generated.saved_x, generated.saved_pred_xstart), strict=True))
    return {name: np.concatenate([np.asarray(pixel_format.to_data(x)), final], axis=1) for name, x in stages.items()}


def pictures_of(
    generated: GeneratedBatch,
    class_names: Sequence[str],
    conditions: np.ndarray | None = None,
    originals: np.ndarray | None = None,
    *,
    pixel_format: pixels.PixelFormat = pixels.UINT8,
) -> dict[str, np.ndarray]:
    """A grid of the images, and filmstrips of the saved steps: suffix of the file name -> uint8 [H', W', C].

    The other arguments are as for `SampleFolder`.
    """
    labels = conditioning.labels_of(generated.cond)
    shown = pixel_format.shown
    if conditions is not None:
        pictures = {"": condition_grid.draw(generated.images, conditions, originals)}
    else:
        pictures = {"": image_grid.grid_of_classes(shown(generated.images), labels, row_names(labels, class_names))}
    stages = trajectory_images(generated, pixel_format)
    return pictures | {f"-{name}": chain_strip(shown(images)) for name, images in stages.items()}


def chain_strip(stages: np.ndarray) -> np.ndarray:
    """A filmstrip of a few chains with evenly spaced stages: uint8 [N, S, H, W, C] -> uint8 [H', W', C]."""
    count = stages.shape[1]
    shown = np.linspace(0, count - 1, min(count, STAGES_SHOWN)).round().astype(int)
    return image_grid.strip(stages[:CHAINS_SHOWN, shown])


def row_names(labels: np.ndarray | None, class_names: Sequence[str]) -> tuple[str, ...]:
    """Row labels of a grid: class names, or numbers if there are none; () without classes."""
    if labels is None:
        return ()
    return tuple(class_names) or tuple(str(label) for label in range(int(np.max(labels)) + 1))


def class_file_name(class_names: Sequence[str], label: int) -> str:
    """The class name in a form that suits file names; its number if it has no name."""
    name = class_names[label] if label < len(class_names) else ""
    return re.sub(r"[^\w.+-]+", "_", name)[:60].strip("._") or str(label)
