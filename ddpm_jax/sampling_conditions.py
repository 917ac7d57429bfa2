"""The condition of each image to generate: its label, and its condition image from the data set or from files.

Image i depends on the seed and i only, whatever the number of images, and so does its condition: the condition images of a
split are taken in one fixed random order of it, those of a folder in the order of the file names.
"""

import hashlib
import logging
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, condition_config, data_config
from ddpm_jax.data import condition as conditions
from ddpm_jax.data import decode, example_order, folder_listing, identity
from ddpm_jax.data.condition import Condition
from ddpm_jax.data.source import ImageSource, NoSuchSplit, center_crop_and_resize
from ddpm_jax.runtime import paths, storage
from ddpm_jax.user_messages import UsageError, UserError

logger = logging.getLogger(__name__)

AUTO = "auto"
AUTO_SPLITS = ("test", "validation", "val", "valid")  # tried in this order, as for held-out images
ORDER_SEED = 0  # of the order of a split; the seed of the noise has no part in it


class ConditionImages(NamedTuple):
    """Condition images of a data set or of files.

    Attributes:
      images: uint8 [N, h, w, C].
      originals: uint8 [N, H, W, C], the images that they were made of; None if unknown.
      labels: int32 [N], the labels of the originals; None if unknown.
      description: where they are from.
      identity: what they are, JSON-serializable, the same for every N.
    """

    images: np.ndarray
    originals: np.ndarray | None
    labels: np.ndarray | None
    description: str
    identity: dict[str, Any]


class SamplingInputs(NamedTuple):
    """The conditions of N images to generate.

    Attributes:
      cond: for the network, a pytree of arrays [N, ...], or None.
      labels: int32 [N], or None.
      given: the condition images; None for a model without them.
      identity: that of `given`; {} for None.
    """

    cond: Any
    labels: np.ndarray | None
    given: ConditionImages | None = None
    identity: dict[str, Any] = {}  # noqa: RUF012 - never changed


def sampling_inputs(
    config: ConfigDict, class_counts: np.ndarray | None = None, *, given: ConditionImages | None = None
) -> SamplingInputs:
    """The conditions of the config.sampling.num_images images to generate.

    Args:
      config: resolved.
      class_counts: as for `data_config.sampling_labels`; not used with condition images of a data set, which have labels.
      given: condition images; by default those of config.sampling.

    Raises:
      ExpectedError: condition images cannot be read.
    """
    condition = build.build_condition(config)
    if condition is None:
        labels = data_config.sampling_labels(config, class_counts)
        return SamplingInputs(labels, labels)
    if given is None:
        given = read_conditions(config, condition, config.sampling.num_images)
        logger.info(f"condition images: {given.description}")
    labels = data_config.sampling_labels(config, class_counts)
    if labels is not None and given.labels is not None and config.sampling.label < 0:
        labels = given.labels
    cond = condition_config.network_cond(config, condition, given.images, labels)
    return SamplingInputs(cond, labels, given, given.identity)


def read_conditions(config: ConfigDict, condition: Condition, number: int) -> ConditionImages:
    """The condition images of `number` images to generate, as config.sampling names them.

    Each is used for config.sampling.condition_samples images in turn; all are used again if there are too few.

    Raises:
      ExpectedError: they cannot be read.
    """
    sampling = config.sampling
    turn = np.arange(number) // sampling.condition_samples
    if sampling.condition_images:
        return _of_files(paths.expand(sampling.condition_images), condition, turn, config.data.background)
    source, note = _find_split(config)
    order = example_order.batch_indices(0, num_examples=len(source), batch_size=int(turn[-1]) + 1, seed=ORDER_SEED)
    batch = source.batch(order)
    images = conditions.batch_conditions(condition, batch)[turn]
    name = f"{source.name} {source.split}"
    fingerprint = source.fingerprint or hashlib.sha256(images).hexdigest()
    labels = batch["label"][turn] if "label" in batch else None
    found = {"conditions": name, "conditions_sha256": fingerprint}
    return ConditionImages(images, batch["image"][turn], labels, name + note, found)


def _find_split(config: ConfigDict) -> tuple[ImageSource, str]:
    """The split of config.sampling.condition_split, and a note if it was trained on."""
    named, trained, held_out = config.sampling.condition_split, config.data.split, config.evaluation.heldout_split
    if named == AUTO and held_out:
        named = held_out
    for split in AUTO_SPLITS if named == AUTO else (named,):
        try:
            source = load_split(config, split) if named == AUTO else load_named_split(config, named)
        except NoSuchSplit:
            continue
        return source, " (the model was trained on it)" if split == trained else ""
    return load_split(config, trained), " (no split is held out: the model was trained on these images)"


def load_named_split(config: ConfigDict, split: str) -> ImageSource:
    """`load_split` of a split that config.sampling.condition_split names: a UsageError if there is none."""
    try:
        return load_split(config, split)
    except NoSuchSplit as error:
        raise UsageError(f"config.sampling.condition_split names {split!r}: {error}") from error


def load_split(config: ConfigDict, split: str) -> ImageSource:
    """Load a split of config.data; raises as `data_config.load_source`."""
    other = config.copy_and_resolve_references()
    other.data.split = split
    return data_config.load_source(other)


def _of_files(path: pathlib.Path, condition: Condition, turn: np.ndarray, background: str) -> ConditionImages:
    """The condition images of a file or of all files of a folder, resized to the shape of the condition."""
    height, width, channels = condition.shape
    if channels not in (1, 3):
        raise UsageError(f"config.sampling.condition_images: condition images of {channels} channels are not read from files")
    if path.is_dir():
        names = folder_listing.find_images(str(path))[0]
        if not names:
            raise UserError(f"config.sampling.condition_images: no images in {path}")
    else:
        path, names = path.parent, [path.name]
    used, digests = [names[index % len(names)] for index in range(int(turn[-1]) + 1)], []
    found = {}
    for name in names:
        file, color = os.path.join(path, name), decode.parse_background(background)
        try:
            digests.append((name, hashlib.sha256(storage.read_file(file)).digest()))
            if name in used:
                found[name] = center_crop_and_resize(decode.read_image(file, color, ()), (height, width), channels)
        except (OSError, decode.ImageDecodeError) as error:
            raise UserError(f"config.sampling.condition_images: cannot read the image {file}: {error}") from error
    images = np.stack([found[name] for name in used])[turn]
    digest = identity.files_fingerprint(digests)
    where = f"{len(names):,} files of {path}"
    return ConditionImages(images, None, None, where, {"conditions": "files", "conditions_sha256": digest})
