"""Derived from config.visualize for format html: what the recorded chains are conditioned on, classes or condition images."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, condition_config, data_config
from ddpm_jax.data import condition as conditions
from ddpm_jax.data.source import ImageSource
from ddpm_jax.evaluation.recorded_chains import MAX_ROWS
from ddpm_jax.plotting import image_grid
from ddpm_jax.sampling_conditions import AUTO, load_named_split


class Rows(NamedTuple):
    """The chains of one seed: one for each class or condition image; a single one for a model with neither.

    Attributes:
      kind: class, condition image, or "".
      names: [R], for the reader.
      labels: int32 [R], or None.
      images: condition images, uint8 [R, h, w, C], or None.
    """

    kind: str
    names: list[str]
    labels: np.ndarray | None = None
    images: np.ndarray | None = None


def page_split(config: ConfigDict) -> str:
    """The split of the page's real images: that of the training, unless config.sampling.condition_split names another."""
    named = config.sampling.condition_split if config.data.condition else AUTO
    return config.data.split if named == AUTO else named


def load_page_source(config: ConfigDict) -> ImageSource:
    """The data set of the page's real images; raises as `data_config.load_source`."""
    split = page_split(config)
    return data_config.load_source(config) if split == config.data.split else load_named_split(config, split)


def find_rows(config: ConfigDict, batch: Mapping[str, np.ndarray], names: Sequence[str]) -> Rows:
    """The first classes, or the condition images of the first real images; at most MAX_ROWS.

    Args:
      config: resolved.
      batch: of a data set, the real images of the page.
      names: of all classes.
    """
    condition, batch = build.build_condition(config), {name: array[:MAX_ROWS] for name, array in batch.items()}
    if condition is None and not config.model.class_conditional:
        return Rows("", [""])
    if condition is None:
        return Rows("class", list(names[:MAX_ROWS]), np.arange(min(len(names), MAX_ROWS), dtype=np.int32))
    images, labels = conditions.batch_conditions(condition, batch), batch.get("label") if names else None
    known = dict(enumerate(names))  # the data set of a network without classes may have more
    classes = [""] * len(images) if labels is None else [f", class {known.get(label, label)}" for label in labels.tolist()]
    titles = [f"image {index}{name}" for index, name in enumerate(classes, 1)]
    return Rows("condition image", titles, labels if config.model.class_conditional else None, images)


def first_image_cond(config: ConfigDict, rows: Rows, seeds: Sequence[int], *, count: int) -> Any:
    """The condition of image 0 of --mode=sample for each seed and each of the first rows: a pytree of [S * count, ...]."""
    condition, found = build.build_condition(config), []
    for seed in seeds:
        case = config.copy_and_resolve_references()
        case.sampling.seed = seed  # of the noise in the condition image
        for row in range(count):
            images, labels = jax.tree.map(lambda array, row=row: array[row : row + 1], (rows.images, rows.labels))
            found.append(condition_config.network_cond(case, condition, images, labels))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *found)


def rows_of_page(rows: Rows) -> dict[str, Any]:
    """What the page shows of the rows, and the flags of --mode=sample for each of them, null if there are none."""
    count = len(rows.names)
    labels = [""] * count if rows.labels is None else [f" --config.sampling.label={label}" for label in rows.labels.tolist()]
    found: list[dict[str, str | None]] = [
        {"name": name, "flags": flags} for name, flags in zip(rows.names, labels, strict=True)
    ]
    for index, image in enumerate([] if rows.images is None else rows.images):
        file, is_picture = f"condition_{index + 1}.png", image.shape[-1] in (1, 3)
        png = image_grid.png_bytes(image if is_picture else image[..., :1])
        found[index] |= {"file": file, "picture": f"data:image/png;base64,{base64.b64encode(png).decode()}"}
        found[index]["flags"] = f" --config.sampling.condition_images={file}{labels[index]}" if is_picture else None
    return {"kind": rows.kind, "list": found}
