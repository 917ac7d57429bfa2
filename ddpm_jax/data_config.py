"""Config fields that depend on the data set: number and names of classes, and the range of gray levels."""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data.class_sequence import class_sequence
from ddpm_jax.data.folder_listing import class_prefixes
from ddpm_jax.data.source import ImageSource
from ddpm_jax.user_messages import UsageError


def wrong_number(config: ConfigDict, source: ImageSource) -> str:
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
        config.sampling.label = int(label)
    elif label in names:
        config.sampling.label = names.index(label)
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
