"""Loads the data set of config.data, and completes the fields that depend on it: classes and the range of gray levels."""

import difflib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import choices
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data import load
from ddpm_jax.data.class_sequence import class_sequence
from ddpm_jax.data.condition import PAIRS
from ddpm_jax.data.folder_listing import class_prefixes
from ddpm_jax.data.image_pairs import load_pairs
from ddpm_jax.data.source import ImageSource, height_width
from ddpm_jax.runtime import run_record, workdir
from ddpm_jax.user_messages import UsageError, UserError

logger = logging.getLogger(__name__)

IN_MEMORY: dict[str, bool | str] = {
    "always": True,
    "never": False,
    "auto": "auto",
}  # data.in_memory -> argument of `load.load_source`


def load_source(config: ConfigDict) -> ImageSource:
    """Load the data set of config.data. Reading and preparing a large set is logged.

    Raises:
      UsageError: the size, channels or number of classes of the images differ from the config.
      InvalidArgumentError, InvalidDataError, FileAccessError, UnavailableError: the set is missing or cannot be read.
    """
    data = config.data
    source = load.load_source(
        data.name,
        data.split,
        data_dir=data.data_dir,
        image_size=_given_size(data.image_size),
        channels=data.channels,
        array_dtype=data.dtype,
        in_memory=IN_MEMORY[data.in_memory],
        num_threads=data.num_threads,
        cache_dir=data.cache_dir,
        options=choices.options_of(config, choices.DATA),
        background=data.background,
        on_decode_error=data.on_decode_error,
        levels=tuple(data.value_range),
    )
    if tuple(source.image_shape) != (*height_width(data.image_size), data.channels):
        height, width, channels = source.image_shape
        size = height if height == width else f"'({height},{width})'"
        raise UsageError(
            f"{data.name} has images of {height}x{width} pixels and {channels} channels: set "
            f"config.data.image_size={size} and config.data.channels={channels}"
        )
    if source.dtype != data.dtype:
        raise UsageError(f"{data.name} has images of {source.dtype}: set config.data.dtype={source.dtype}")
    if config.model.class_conditional and not source.num_classes == data.num_classes > 0:
        raise UsageError(_wrong_number(config, source))
    if data.condition == PAIRS:
        return load_pairs(
            source,
            data.pairs.condition_dir,
            image_size=data.image_size,
            channels=data.pairs.condition_channels or data.channels,
            background=data.background,
            in_memory=IN_MEMORY[data.in_memory],
            num_threads=data.num_threads,
            cache_dir=data.cache_dir,
        )
    return source


def _given_size(image_size: Any) -> int | tuple[int, int]:
    """The size as the functions that load sets get it: one number for a square, so that simple ones need no case."""
    height, width = height_width(image_size)
    return height if height == width else (height, width)


def _wrong_number(config: ConfigDict, source: ImageSource) -> str:
    """The error if config.data.num_classes of a class-conditional model does not match the data set."""
    data = config.data
    if source.num_classes:
        return (
            f"config.data.num_classes is {data.num_classes}, but {source.name} has {source.num_classes} classes: set "
            f"--config.data.num_classes={source.num_classes}"
        )
    without = f"config.model.class_conditional needs classes, and {source.name} has none"
    if data.name == "image_folder":
        return f"{without}: {class_prefixes(source)}; or set --config.model.class_conditional=False"
    return f"{without}: set --config.model.class_conditional=False, or choose another config.data.name"


def complete(config: ConfigDict, identity: Mapping[str, Any] | None) -> None:
    """Completes the config with facts of the data set: the detected range of gray levels, the label of a class name.

    Args:
      config: data.value_range, if empty, and sampling.label, if a name, are replaced.
      identity: of the set, from `identity_of` or a workdir's data.json; None if unknown.

    Raises:
      UsageError: config.sampling.label is not the name of a class.
    """
    if identity is None:
        identity = {"class_names": [], "value_range": []}
    if not config.data.value_range and identity.get("value_range"):
        config.data.value_range = tuple(float(level) for level in identity["value_range"])
    label, names = config.sampling.label, list(identity["class_names"])
    if not isinstance(label, str) or not config.model.class_conditional:
        return
    if label.removeprefix("-").isdecimal():
        # Always the label, even if folders are named 1, 2, 3 and have the labels 0, 1, 2.
        _set_label(config, int(label))
        check_label(config)
    elif label in names:
        _set_label(config, names.index(label))
    elif not names:
        raise UsageError(
            f"config.sampling.label is {label!r}, but the workdir has no class names: use a number, "
            f"0..{config.data.num_classes - 1}"
        )
    else:
        close = difflib.get_close_matches(label, names, n=1)
        known = f"did you mean {close[0]!r}? The classes are" if close else "the classes are"
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise UsageError(f"config.sampling.label is {label!r}: {known} {', '.join(names[:20])}{more}")


def _set_label(config: ConfigDict, label: int) -> None:
    with config.ignore_type():  # a copy of a config without references has the type of the name
        config.sampling.label = label


def check_label(config: ConfigDict) -> None:
    """Raise a UsageError unless config.sampling.label, a number, is a class or -1."""
    label, number = config.sampling.label, config.data.num_classes
    if not -1 <= label < max(1, number):
        raise UsageError(f"config.sampling.label is {label}: the classes are 0..{number - 1}, -1 for all")


def sampling_labels(config: ConfigDict, class_counts: np.ndarray | None = None) -> np.ndarray | None:
    """int32 [num_images], the class of each image to generate; None for an unconditional model.

    Args:
      config: resolved.
      class_counts: int [K], the proportions of the classes; None for equal ones. config.sampling.label takes precedence.
    """
    if not config.model.class_conditional:
        return None
    if config.sampling.label >= 0:
        return np.full(config.sampling.num_images, config.sampling.label, np.int32)
    if class_counts is not None:
        return class_sequence(class_counts, config.sampling.num_images)
    return np.arange(config.sampling.num_images, dtype=np.int32) % config.data.num_classes


def edit_labels(config: ConfigDict, count: int, own: np.ndarray | None) -> np.ndarray | None:
    """int32 [count], classes of images to edit: config.sampling.label, their own, or no class; None for an unconditional model.

    Raises:
      UsageError: the class is unknown, and the model was not trained without one.
    """
    if not config.model.class_conditional:
        return None
    if config.sampling.label >= 0:
        return np.full(count, config.sampling.label, np.int32)
    if own is not None:
        return np.asarray(own, np.int32)
    if config.model.label_dropout:
        return np.full(count, config.data.num_classes, np.int32)
    raise UsageError(
        "config.sampling.label is missing: this model draws a class, and image files do not say theirs; "
        f"choose one of 0..{config.data.num_classes - 1}"
    )


def check_trained_on(run_folder: pathlib.Path, new: Mapping[str, Any], has_classes: bool) -> None:
    """Compare the set with the one that the run was trained on so far.

    Raises:
      UserError: a class-conditional run was trained on other classes.
    """
    old = workdir.read_data_identity(run_folder) if run_record.latest_saved_step(run_folder) is not None else None
    if old is None:
        return
    classes = data_identity.class_changes(old, new)
    if has_classes and classes:
        raise UserError(
            f"{run_folder} was trained on other classes than {new['name']} has: {classes}. Put them back, or choose another "
            "--workdir for a new run"
        )
    if changed := data_identity.content_changes(old, new):
        changed += f"; classes {classes}" if classes else ""  # which this model does not use
        logger.warning(
            f"warning: {new['name']} has changed since the run was trained on it: {changed}; training continues with these"
        )
