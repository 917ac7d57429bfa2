"""What the network of a config is conditioned on: labels, condition images, both or nothing.

Without condition images the condition is the labels, int32 [B], or None. With them (config.data.condition) it is a dictionary
of "image", float32 [B, h, w, C] in [-1, 1], "label" of a class-conditional model, and "noise_level" of one that is trained
with config.data.condition_noise.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import choices
from ddpm_jax.data import condition as conditions
from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion import conditioning
from ddpm_jax.runtime import rng
from ddpm_jax.user_messages import UsageError, config_errors

CHUNK = 1024  # condition images that get their noise at once


def num_labels(config: ConfigDict) -> int:
    """Number of labels that the network knows, with the null label; 0 for one without classes."""
    return config.data.num_classes + (config.model.label_dropout > 0) if config.model.class_conditional else 0


def build_condition(config: ConfigDict, image_shape: Sequence[int]) -> Condition | None:
    """The condition images of config.data for images [H, W, C]; None if there are none.

    Raises:
      UsageError: an option is invalid.
    """
    if not config.data.condition:
        return None
    options, section = choices.options_of(config, choices.CONDITION), choices.section_of(config, choices.CONDITION)
    with config_errors("data.condition", {option: f"{section}.{option}" for option in options}):
        noise = config.data.condition_noise
        return conditions.make_condition(config.data.condition, image_shape, max_noise=noise, **options)


def check_condition(config: ConfigDict) -> None:
    """Raise a UsageError that names the field if those about condition images do not agree."""
    data, sampling = config.data, config.sampling
    if not data.condition:
        for section, field, unset in (("data", "condition_noise", 0), ("sampling", "condition_images", "")):
            if config[section][field] != unset:
                raise UsageError(
                    f"config.{section}.{field} is set, but config.data.condition is '': the model has no condition"
                )
    if sampling.condition_noise > data.condition_noise:
        raise UsageError(
            f"config.sampling.condition_noise is {sampling.condition_noise:g}: the model is trained with levels from 0 to "
            f"config.data.condition_noise, which is {data.condition_noise:g}"
        )
    if sampling.condition_samples < 1:
        raise UsageError(f"config.sampling.condition_samples is {sampling.condition_samples}: it must be above 0")
    if config.model.label_dropout and not (config.model.class_conditional or data.condition):
        raise UsageError(
            "config.model.label_dropout drops classes or condition images, but config.model.class_conditional is False and "
            "config.data.condition is ''"
        )


def null_cond(config: ConfigDict, condition: Condition | None) -> Any:
    """The condition of classifier-free guidance that means "none": the null label, and an image of zeros, mid-gray."""
    label = np.int32(config.data.num_classes)
    if condition is None:
        return label
    null: dict[str, Any] = {"image": np.zeros(condition.shape, np.float32)}
    if num_labels(config):
        null["label"] = label
    if condition.max_noise:
        null["noise_level"] = np.float32(0)
    return null


def example_cond(config: ConfigDict, condition: Condition | None) -> Any:
    """A condition of one image, to initialize a network; None for an unconditional one."""
    if condition is None and not num_labels(config):
        return None
    return jax.tree.map(lambda entry: jnp.zeros((1, *entry.shape), entry.dtype), null_cond(config, condition))


def training_batch(config: ConfigDict, condition: Condition | None, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    """The batch of a data set for `training.step.train_step`: "image", and "cond" for a conditional network."""
    if condition is None:
        return {"image": batch["image"]} | ({"cond": batch["label"]} if num_labels(config) else {})
    cond = {"label": batch["label"]} if num_labels(config) else {}
    return {"image": batch["image"], "cond": cond | ({"image": batch["condition"]} if condition.of_images is None else {})}


def training_cond_fn(condition: Condition | None) -> Callable[..., Any] | None:
    """The `cond_fn` of `training.step.train_step`; None without condition images."""
    if condition is None:
        return None

    def cond_fn(cond: dict[str, jax.Array], images: jax.Array, flip: jax.Array | None, key: jax.Array) -> dict[str, jax.Array]:
        if condition.of_images is not None:
            found = condition.of_images(images)
        else:
            found = cond["image"] if flip is None else jnp.where(flip, cond["image"][:, :, ::-1], cond["image"])
        return cond | conditioning.augmented(found, condition.max_noise, key)

    return cond_fn


def network_cond(
    config: ConfigDict,
    condition: Condition | None,
    images: np.ndarray | None,
    labels: np.ndarray | None,
    *,
    first_image: int = 0,
) -> Any:
    """The condition of a network outside of training, with the noise level config.sampling.condition_noise.

    Args:
      config: resolved.
      condition: from `build_condition`; None: the condition is the labels.
      images: condition images, uint8 [N, h, w, C] of the condition's shape.
      labels: int32 [N], or None.
      first_image: index of the first image; the noise of an image depends on config.sampling.seed and its index.

    Returns:
      A pytree of NumPy arrays [N, ...], or None.
    """
    if condition is None or images is None:
        return labels
    level = config.sampling.condition_noise if condition.max_noise else None
    key = rng.purpose_key(config.sampling.seed, "condition")
    parts = [
        _float_condition(images[first : first + CHUNK], level, key, first_image + first)
        for first in range(0, len(images), CHUNK)
    ]
    found = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return found if labels is None else found | {"label": labels}


def _float_condition(images: np.ndarray, level: float | None, key: jax.Array, first_image: int) -> dict[str, np.ndarray]:
    if not level:
        found = conditioning.augmented(jnp.asarray(images), 0.0, key)
        zeros = {} if level is None else {"noise_level": jnp.zeros(len(images), jnp.float32)}
        return jax.device_get(found | zeros)
    indices = jnp.arange(first_image, first_image + len(images), dtype=jnp.int32)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(indices)
    return jax.device_get(conditioning.at_level(jnp.asarray(images), level, keys))


def batch_cond(
    config: ConfigDict, condition: Condition | None, batch: Mapping[str, np.ndarray], *, first_image: int = 0
) -> Any:
    """`network_cond` of a batch of a data set, whose images are real: the condition images are theirs."""
    labels = batch["label"] if config.model.class_conditional else None
    images = None if condition is None else conditions.batch_conditions(condition, batch)
    return network_cond(config, condition, images, labels, first_image=first_image)
