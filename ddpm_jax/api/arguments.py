"""Arguments of the Python interface: each sets a field of the config, and errors name the argument."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import choices, config_file, data_config
from ddpm_jax.cli import inpaint
from ddpm_jax.diffusion import pixels
from ddpm_jax.runtime import registry
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.user_messages import UsageError, did_you_mean

Label = int | str | Sequence[int] | np.ndarray | jax.Array | None  # one label or name for all images, one each, or None
# Fields that no argument sets.
_NOT_ARGUMENTS = {
    "sampling": ("params", "checkpoint_step", "format", "shown_channels", "num_intermediates", "condition_images"),
    "edit": ("images", "split", "start_index", "num_images", "mask"),
    "evaluation": ("params", "checkpoint_steps"),
}


def argument_names(config: ConfigDict, sections: Sequence[str] = ("sampling",)) -> dict[str, str]:
    """The arguments of a call: dotted name of a field -> name of the argument that sets it.

    Args:
      config: resolved.
      sections: sections of the config; of two fields with the same name, the argument sets the one in the earlier section.
    """
    found: dict[str, str] = {}
    for section in sections:
        for name, value in config[section].items():
            is_field = not isinstance(value, ConfigDict) and name not in _NOT_ARGUMENTS[section]
            if is_field and name not in found.values():
                found[f"{section}.{name}"] = name
    section = choices.section_of(config, choices.SAMPLER)
    options = [*_sampler_options(config.sampling.sampler), *choices.options_of(config, choices.SAMPLER)]
    return found | {f"{section}.{name}": name for name in options if name not in found.values()}


def configure(
    config: ConfigDict, arguments: Mapping[str, Any], sections: Sequence[str] = ("sampling",)
) -> tuple[ConfigDict, dict[str, str]]:
    """A copy of the config with the arguments of a call, and the names of all its arguments for error messages.

    Args:
      config: of the run; not changed.
      arguments: name -> value: fields of the sections, and options of the sampler; None keeps the value of the config.
      sections: as for `argument_names`.

    Raises:
      ValueError: there is no such argument, or its value has the wrong type; the message names the argument.
    """
    given = {name: _plain(value) for name, value in arguments.items() if value is not None}
    case = config.copy_and_resolve_references()
    if "sampler" in given:
        if not isinstance(given["sampler"], str):
            raise InvalidArgumentError(f"sampler is {given['sampler']!r}: it must be a name")
        case.sampling.sampler = given["sampler"]
    names = argument_names(case, sections)
    fields = {name: field for field, name in names.items()}
    for name, value in given.items():
        if name not in fields:
            options = ", ".join(_sampler_options(case.sampling.sampler)) or "none"
            hint = did_you_mean(name, list(fields))
            raise InvalidArgumentError(
                f"{name} is neither an argument nor an option of the sampler {case.sampling.sampler} (its options: {options})"
                + (f"; {hint}" if hint else "")
            )
        _set(case, fields[name], name, value)
    return case, names


def _set(config: ConfigDict, field: str, name: str, value: Any) -> None:
    path, _, last = field.rpartition(".")
    section, _, part = path.partition(".")
    if field == "sampling.label":  # a number or a name: `data_config.complete` and the validation check it
        with config.ignore_type():
            config.sampling.label = value
        return
    with config.unlocked():
        if part and part not in config[section]:
            config[section][part] = ConfigDict()
        fields = config[section][part] if part else config[section]
        if last not in fields:
            fields[last] = value
    if isinstance(fields[last], tuple) and np.ndim(value) == 0:
        value = (value,)  # metrics="frechet"
    try:
        config_file.set_fields(fields, {last: value})
    except InvalidArgumentError as error:
        raise InvalidArgumentError(str(error).replace(last, name, 1)) from error


def _sampler_options(name: str) -> Iterator[str]:
    """The names of the options of a sampler; none if there is no such sampler, which the validation reports."""
    try:
        yield from registry.defaults(registry.find(name, SAMPLERS, "sampler"))
    except InvalidArgumentError:
        return


def _plain(value: Any) -> Any:
    """A scalar of NumPy or JAX as a Python number, since config fields have Python types."""
    return value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0 else value


def one_label(label: Any) -> Any:
    """The label or class name for all images; None if `label` has one for each image."""
    return label if isinstance(label, str) or np.ndim(label) == 0 else None


def check_images(
    images: Any, shape: Sequence[int], name: str, *, batched: bool = True, pixel_format: pixels.PixelFormat = pixels.UINT8
) -> np.ndarray:
    """Images of a call as an array of the data's type: [N, H, W, C], or [H, W, C] if not `batched`.

    Args:
      images: array-like.
      shape: (H, W, C) of the model.
      name: name of the argument.
      batched: whether there is an axis N.
      pixel_format: type of the data; floats of other sizes become float32.

    Raises:
      ValueError: the shape or dtype is wrong, or there are no images.
    """
    array, dtype = np.asarray(images), pixel_format.dtype
    if dtype == "float32" and np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
    matches = array.shape[1:] == tuple(shape) and len(array) > 0 if batched and array.ndim else array.shape == tuple(shape)
    if array.dtype != dtype or not matches:
        wanted = ", ".join(map(str, (["N"] if batched else []) + list(shape)))
        raise InvalidArgumentError(
            f"{name} has dtype {array.dtype} and shape {list(array.shape)}: it must be {dtype} [{wanted}], "
            f"{'levels' if pixel_format.num_levels else 'values'} {pixel_format.low:g}..{pixel_format.high:g}"
        )
    return array


def check_noisy(
    x_t: jax.Array, t: jax.Array | int, shape: tuple[int, int, int], num_timesteps: int
) -> tuple[jax.Array, jax.Array]:
    """The arguments of `Run.denoise` as arrays: x_t floating [B, H, W, C], and t int32 [B], from one int or B of them.

    Raises:
      ValueError: the shape or dtype is wrong, or t is not in 0..num_timesteps-1.
    """
    x_t, t, last = jnp.asarray(x_t), jnp.asarray(t), num_timesteps - 1
    if x_t.shape[1:] != shape or not jnp.issubdtype(x_t.dtype, jnp.floating):
        wanted = ", ".join(map(str, ("B", *shape)))
        raise InvalidArgumentError(f"x_t is {x_t.dtype} of shape {list(x_t.shape)}: it must be floating [{wanted}]")
    if not jnp.issubdtype(t.dtype, jnp.integer) or t.shape not in ((), x_t.shape[:1]):
        raise InvalidArgumentError(f"t is {t.dtype} of shape {list(t.shape)}: it must be an int, or {len(x_t)} of them")
    if not isinstance(t, jax.core.Tracer) and (jnp.min(t) < 0 or jnp.max(t) > last):
        wrong = int(t[(t < 0) | (t > last)][0]) if t.ndim else int(t)
        raise InvalidArgumentError(f"t contains {wrong}: it must be in 0..{last}")
    return x_t, jnp.broadcast_to(t, x_t.shape[:1]).astype(jnp.int32)


def check_labels(label: Any, count: int, config: ConfigDict) -> np.ndarray | None:
    """Labels of a call that are given one by one: int32 [count]; None if `label` is one label, a name or None.

    Args:
      label: an array-like with a label for each image, or anything else.
      count: number of images.
      config: resolved.

    Raises:
      ValueError: the shape is wrong, a label is out of range, or the model has no classes.
    """
    if label is None or isinstance(label, str) or np.ndim(label) == 0:
        return None
    labels, classes = np.asarray(label), config.data.num_classes
    if not config.model.class_conditional:
        raise InvalidArgumentError("label is given, but the model has no classes: leave it out")
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidArgumentError(
            f"label has dtype {labels.dtype} and shape {list(labels.shape)}: it must be one label, or {count} integers"
        )
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise InvalidArgumentError(f"label contains {wrong}: the classes are 0..{classes - 1}")
    return labels.astype(np.int32)


def image_labels(config: ConfigDict, count: int, given: np.ndarray | None) -> np.ndarray | None:
    """Labels of images that a call starts from or measures: int32 [count], or None for an unconditional model.

    Args:
      config: resolved, with the label of the call.
      count: number of images.
      given: the labels of `check_labels`; they take precedence.

    Raises:
      ValueError: there is no label, and the model was not trained without labels.
    """
    if given is not None:
        return given
    try:
        return data_config.edit_labels(config, count, None)
    except UsageError as error:
        last = config.data.num_classes - 1
        raise InvalidArgumentError(f"label is missing: this model needs a class, a name or one of 0..{last}") from error


def saved_steps(steps: int | Sequence[int], num_steps: int) -> np.ndarray:
    """The numbers of the steps to save: int [S]."""
    if np.ndim(steps) == 0:
        if not isinstance(steps, int | np.integer) or not 1 <= steps <= num_steps:
            raise InvalidArgumentError(f"steps is {steps!r}: it must be a number of steps from 1 to {num_steps}, or a list")
        return np.linspace(0, num_steps - 1, int(steps)).round().astype(int)
    chosen = np.asarray(steps)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer) or len(np.unique(chosen)) != len(chosen):
        raise InvalidArgumentError(f"steps is {steps!r}: it must be a list of different integers")
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= num_steps:
        raise InvalidArgumentError(f"steps is {steps!r}: the steps of this call are 0..{num_steps - 1}")
    return chosen.astype(int)


def check_mask(mask: np.ndarray | str, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of a call: bool [H, W, 1] or [N, H, W, 1]."""
    if isinstance(mask, str):
        if mask not in inpaint.NAMED_MASKS:
            raise InvalidArgumentError(f"mask is {mask!r}: choose one of {', '.join(inpaint.NAMED_MASKS)}, or give an array")
        return inpaint.named_mask(mask, shape[1:3])
    array = np.asarray(mask)
    if array.dtype != bool or array.shape not in (shape[1:3], shape[:3]):
        height_width = ", ".join(map(str, shape[1:3]))
        raise InvalidArgumentError(
            f"mask has dtype {array.dtype} and shape {list(array.shape)}: it must be bool [{height_width}], or "
            f"[{shape[0]}, {height_width}], True where pixels are generated"
        )
    if array.all() or not array.any():
        raise InvalidArgumentError(f"mask is all {bool(array.all())}: True pixels are generated, False pixels are kept")
    return array[..., None]
