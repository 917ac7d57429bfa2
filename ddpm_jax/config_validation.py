"""Validates a config before anything is loaded or compiled."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import build, choices, condition_config, data_config, models
from ddpm_jax.data import condition, decode, folder_listing
from ddpm_jax.data.source import height_width
from ddpm_jax.diffusion import (
    loss_weighting,
    losses,
    parameterization,
    pixels,
    schedules,
    spacings,
    timestep_sampling,
    variances,
)
from ddpm_jax.evaluation import sample_files
from ddpm_jax.runtime.registry import is_custom
from ddpm_jax.runtime.trackers import check_names
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.training import best_step, learning_rate, optimizer
from ddpm_jax.user_messages import UsageError

LISTS = {  # field -> type of its elements; the flag parser checks the types of single values
    "ema.extra_decays": float,
    "ema.power_sigma_rel": float,
    "sampling.guidance_interval": float,
    "data.value_range": float,
    "train.init_new": str,
    "train.frozen": str,
    "sampling.shown_channels": int,
    "train.trackers": str,
    "evaluation.metrics": str,
    "evaluation.params": str,
    "evaluation.samplers": str,
    "evaluation.num_steps": int,
    "edit.images": str,
    "export.platforms": str,
    "visualize.samplers": str,
    "visualize.num_steps": int,
}
TYPE_NAMES = {int: "integers", float: "numbers", str: "strings"}
RANGES = {  # field -> (whether a number is in its range, description of the range)
    "data.condition_noise": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "sampling.condition_noise": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "model.label_dropout": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "optimizer.learning_rate": (lambda x: x > 0, "above 0"),
    "optimizer.clip_norm": (lambda x: x >= 0, "0 (no clipping) or more"),
    "ema.decay": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "sampling.guidance_scale": (lambda x: x >= 0, "0 or more"),
    "sampling.guidance_rescale": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "evaluation.ode_tolerance": (lambda x: 0 < x < 1, "above 0 and below 1"),
}
INFINITE = ("sampling.heun.churn_max",)  # fields in which infinity means no upper bound
SEEDS = ("seed", "sampling.seed")


PARTS = {  # choice -> the parts that are shipped; data sets and features have names beyond those
    choices.CONDITION: ("''", condition.PAIRS, *condition.CONDITIONS),
    choices.NETWORK: models.NETWORKS,
    choices.SCHEDULE: schedules.SCHEDULES,
    choices.LOSS: losses.LOSSES,
    choices.WEIGHTING: loss_weighting.WEIGHTINGS,
    choices.TIMESTEP_SAMPLER: timestep_sampling.TIMESTEP_SAMPLERS,
    choices.OPTIMIZER: optimizer.OPTIMIZERS,
    choices.LEARNING_RATE: learning_rate.SCHEDULES,
    choices.SAMPLER: SAMPLERS,
}


def check_config(config: ConfigDict) -> None:
    """Validates a resolved config.

    Raises:
      UsageError: one line that names the field.
    """
    check_lists(config)
    check_numbers(config)
    check_parts(config)
    check_guidance_interval(config)
    data, model, process, sampling = config.data, config.model, config.diffusion, config.sampling
    check_choice("model.dtype", model.dtype, build.DTYPES)
    check_choice("diffusion.prediction", process.prediction, parameterization.PREDICTIONS)
    check_choice("diffusion.variance", process.variance, variances.VARIANCES)
    check_names(config.train.trackers)
    check_choice("train.keep_best", config.train.keep_best, ("", best_step.AUTO, *best_step.TAGS))
    check_steps("sampling.checkpoint_step", [sampling.checkpoint_step], ("best",))
    check_steps("evaluation.checkpoint_steps", config.evaluation.checkpoint_steps, ("best", "all"))
    check_choice("sampling.spacing", sampling.spacing, spacings.SPACINGS)
    check_choice("sampling.format", sampling.format, sample_files.FORMATS)
    build.build_ema_tracker(config)  # raises, like the next line
    build.params_field(config)
    check_choice("data.in_memory", data.in_memory, data_config.IN_MEMORY)
    height_width(data.image_size)  # raises
    check_pixels(config)
    check_choice("data.on_decode_error", data.on_decode_error, folder_listing.ON_DECODE_ERROR)
    decode.parse_background(data.background)
    if data.value_range and not (len(data.value_range) == 2 and data.value_range[0] < data.value_range[1]):
        raise UsageError(
            f"config.data.value_range is {tuple(data.value_range)}: give the black and white levels, such as "
            "'(0,4095)', or () to detect them"
        )

    positive = {
        "data": ("num_threads", "prefetch"),
        "diffusion": ("num_timesteps",),
        "optimizer": ("accumulation_steps",),
        "train": ("num_steps", "batch_size", "log_every", "checkpoint_every", "max_to_keep"),
        "sampling": ("num_steps", "num_images"),
    }
    at_least_0 = {
        "data": ("num_classes", "num_workers"),
        "optimizer": ("warmup_steps", "skip_nonfinite"),
        "train": ("keep_period", "sample_every", "sample_num_steps", "eval_every", "eval_num_samples", "eval_num_heldout"),
        "sampling": ("num_intermediates", "batch_size"),
        "evaluation": ("max_features", "hutchinson_samples", "batch_size"),
    }
    for fields, holds, words in ((positive, lambda x: x > 0, "above 0"), (at_least_0, lambda x: x >= 0, "0 or more")):
        for section, names in fields.items():
            for name in names:
                if not holds(config[section][name]):
                    raise UsageError(f"config.{section}.{name} is {config[section][name]}: it must be {words}")
    build.build_model(config)  # raises, like the next three lines
    build.build_optimizer(config)
    build.build_learning_rate(config)
    build.build_timestep_sampler(config)
    condition_config.check_condition(config)
    if not model.class_conditional and sampling.label != -1:
        raise UsageError("config.sampling.label is set, but config.model.class_conditional is False")
    if isinstance(sampling.label, bool) or not isinstance(sampling.label, int | str):
        raise UsageError(f"config.sampling.label is {sampling.label!r}: give the number or the name of a class, or -1 for all")
    # A name is resolved when the data set is known (`data_config.complete`).
    if isinstance(sampling.label, int):
        data_config.check_label(config)
    if sampling.guidance_scale != 1 and not model.label_dropout:
        raise UsageError(
            f"config.sampling.guidance_scale is {sampling.guidance_scale:g}, but only a model trained with "
            "config.model.class_conditional or config.data.condition and with config.model.label_dropout above 0 supports "
            "guidance: set it to 1"
        )
    if sampling.guidance_scale != 1:
        build.build_guided_denoise_fn(config)  # raises
    if sampling.num_steps > process.num_timesteps:
        raise UsageError(
            f"config.sampling.num_steps is {sampling.num_steps}, but the chain has only {process.num_timesteps} steps, "
            f"config.diffusion.num_timesteps: set config.sampling.num_steps={process.num_timesteps} or fewer"
        )
    if sampling.num_intermediates > sampling.num_steps:
        raise UsageError(
            f"config.sampling.num_intermediates is {sampling.num_intermediates}, but there are only {sampling.num_steps} steps"
        )
    build.build_loss(config)  # raises


def check_pixels(config: ConfigDict) -> None:
    """Raises UsageError unless channels, type and range of the images and the channels to show fit together."""
    data = config.data
    check_choice("data.dtype", data.dtype, pixels.DTYPES)
    if data.channels < 1:
        raise UsageError(f"config.data.channels is {data.channels}: it must be above 0")
    if data.dtype == "float32" and not data.value_range:
        raise UsageError("config.data.value_range is (): floats need the values that become -1 and 1, such as '(0,1)'")
    if data.dtype == "uint16" and any(value != int(value) for value in data.value_range):
        raise UsageError(f"config.data.value_range is {tuple(data.value_range)}: it must be two integers for uint16")
    if data.condition and not build.pixel_format(config).is_picture(data.channels):
        raise UsageError(
            f"config.data.condition needs images of 8 bits and 1 or 3 channels, not {data.dtype} and {data.channels}"
        )
    shown = tuple(config.sampling.shown_channels)
    if shown and not (len(shown) in (1, 3) and all(0 <= channel < data.channels for channel in shown)):
        raise UsageError(
            f"config.sampling.shown_channels is {shown}: give one or three channels of 0..{data.channels - 1}, or ()"
        )


def check_parts(config: ConfigDict) -> None:
    """Raises UsageError unless every name of a part is that of a shipped part or module:function."""
    for choice, parts in PARTS.items():
        name = config[choice.section][choice.field]
        check_part(choice.path, name if name or choice is not choices.CONDITION else "''", parts)


def check_lists(config: ConfigDict) -> None:
    """Raises UsageError unless the elements of every list have the right type, which the flag parser does not check."""
    for field, kind in LISTS.items():
        section, _, name = field.partition(".")
        wrong = [x for x in config[section][name] if not isinstance(x, (int, float) if kind is float else kind)]
        if wrong:
            example = {int: "(1,2)", float: "(0.05,0.1)", str: "('a','b')"}[kind]
            raise UsageError(f"config.{field} holds {wrong[0]!r}: it must be a list of {TYPE_NAMES[kind]}, such as {example}")


def numbers(config: ConfigDict) -> Iterator[tuple[str, int | float]]:
    """Every number of a config, including those in lists: (field, value)."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{name}.{field}", x) for field, x in numbers(value))
        else:
            for x in value if isinstance(value, list | tuple) else [value]:
                if isinstance(x, int | float) and not isinstance(x, bool):
                    yield name, x


def check_numbers(config: ConfigDict) -> None:
    """Raises UsageError unless every number is finite and in its range, and every seed has 32 bits."""
    for field, x in numbers(config):
        holds, words = RANGES.get(field, (lambda x: True, ""))
        if field not in INFINITE and not math.isfinite(x):
            raise UsageError(f"config.{field} is {x}: it must be a finite number{words and ', ' + words}")
        if not holds(x):
            raise UsageError(f"config.{field} is {x}: it must be {words}")
        # JAX uses only the lowest 32 bits: seeds that differ only above them would give the same images.
        if field in SEEDS and not (isinstance(x, int) and 0 <= x < 2**32):
            raise UsageError(f"config.{field} is {x}: it must be an integer from 0 to {2**32 - 1}")


def check_guidance_interval(config: ConfigDict) -> None:
    """Raises UsageError unless it is two numbers from 0 to 1 in ascending order."""
    pair = tuple(config.sampling.guidance_interval)
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
        raise UsageError(
            f"config.sampling.guidance_interval is {pair}: it must be two numbers from 0 to 1, the lower one first, such as "
            "(0.2,0.8)"
        )


def check_steps(field: str, steps: Iterable[Any], names: tuple[str, ...]) -> None:
    """Raises UsageError unless each is a step, -1 or one of `names`."""
    for step in steps:
        number = int(step) if str(step).removeprefix("-").isdecimal() else -2
        if number < -1 and step not in names:
            raise UsageError(f"config.{field} is {step!r}: give a step, -1 for the latest, or {' or '.join(map(repr, names))}")


def check_choice(field: str, value: Any, values: Any) -> None:
    """Raises a UsageError that lists the choices unless `value` is one of them."""
    if value not in values:
        raise UsageError(f"config.{field} is {value!r}: choose one of {', '.join(str(choice) for choice in values)}")


def check_part(field: str, name: Any, registry: Any) -> None:
    """Raises a UsageError that lists the choices unless `name` is one of them or module:function."""
    if not is_custom(str(name)) and name not in registry:
        listed = ", ".join(registry)
        raise UsageError(f"config.{field} is {name!r}: choose one of {listed}, or module:function for one of your own")
