"""Derived from config.sampling: folder names, the identity of images, descriptions, warnings and cheaper settings."""

import math
import pathlib
import re
import shlex
from collections.abc import Collection
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, choices, user_messages
from ddpm_jax.diffusion import initial_noise
from ddpm_jax.evaluation.results import digest
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import distributed, registry, rng
from ddpm_jax.runtime.config_changes import flatten
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.sampling_conditions import SamplingInputs, sampling_inputs
from ddpm_jax.user_messages import UsageError

MAX_EXTRA_PULL = 0.1  # fraction by which the spacing may pull images further to mid-gray without a note
FEW_STEPS_DIVISOR = 10  # with T / 10 steps or fewer, fixed_large is known to leave noise in the images
# Fields of config.sampling that do not affect the images.
IGNORED = (
    *("num_images", "batch_size", "num_intermediates", "checkpoint_step", "format", "shown_channels"),
    *("condition_images", "condition_split"),
)
# Fields outside config.sampling that may differ from the training config and affect the images.
CHANGEABLE = ("diffusion.variance", "diffusion.clip_denoised", "model.dtype")
IMAGE_PARTS = (choices.NETWORK, choices.SCHEDULE, choices.SAMPLER)  # whose code determines the images
FORWARD_PASSES = 3  # cost of a training step per image, in network evaluations
QUICK_SAMPLERS = (
    ("dpmpp_2m", "logsnr"),
    ("ddim", "trailing"),
)  # (sampler, spacing); the first one that the schedule and prediction allow


# Names and identities.


def identity_of(config: ConfigDict, mode: str, step: int, params_sha256: str) -> dict[str, Any]:
    """All settings that determine the output of a mode; JSON-serializable."""
    return {
        "mode": mode,
        "step": step,
        "weights_sha256": params_sha256,
        "sampling": _image_fields(config),
        "diffusion": choices.used_fields(config, "diffusion"),
        **choices.custom_modules(config, *IMAGE_PARTS),
        "dtype": config.model.dtype,
    }


def cache_identity(
    config: ConfigDict, trained: dict[str, Any], step: int, params_sha256: str, class_counts: np.ndarray | None
) -> dict[str, Any]:
    """All settings that determine cached images: image i of two caches with equal identities is the same.

    Args:
      config: resolved config of this call.
      trained: config with which the checkpoint was trained; of the fields outside config.sampling only changed ones are listed.
      step: step of the checkpoint.
      params_sha256: hash of the parameters.
      class_counts: as for `data_config.sampling_labels`.
    """
    identity = (
        choices.custom_modules(config, *IMAGE_PARTS)
        | _image_fields(config)
        | {"step": step, "weights_sha256": params_sha256}
        | changed_fields(config, trained)
    )
    # Class counts matter only if the classes are not simply 0, 1, .., K-1, 0, 1, ..
    fixed = not config.model.class_conditional or config.sampling.label >= 0
    if fixed or class_counts is None or len(set(np.asarray(class_counts).tolist())) == 1:
        return identity
    return identity | {"class_counts": [int(count) for count in class_counts]}


def changed_fields(config: ConfigDict, trained: dict[str, Any]) -> dict[str, Any]:
    """Fields of `CHANGEABLE` that differ from the training config: dotted name -> value."""
    then = flatten(trained)
    now = {field: config[field.partition(".")[0]][field.partition(".")[2]] for field in CHANGEABLE}
    return {field: value for field, value in now.items() if then.get(field, value) != value}


def _image_fields(config: ConfigDict) -> dict[str, Any]:
    fields = {name: value for name, value in choices.used_fields(config, "sampling").items() if name not in IGNORED}
    if config.data.condition:
        return fields
    return {name: value for name, value in fields.items() if not name.startswith("condition_")}


def cache_name(config: ConfigDict, identity: dict[str, Any]) -> str:
    """Name of the cache folder."""
    name = run_name(config, identity["step"])
    for field in CHANGEABLE:
        if field in identity:
            name += f"-{field.partition('.')[2]}_{identity[field]}"
    return name + (f"-classes_{digest(identity['class_counts'])}" if "class_counts" in identity else "")


def run_name(config: ConfigDict, step: int, *, chains: str = "", options: dict[str, str] | None = None) -> str:
    """Folder name with the sampling settings, without the number of images.

    Args:
      config: resolved.
      step: of the checkpoint.
      chains: of several samplers: their name, instead of that of config.sampling with its steps and label.
      options: of several samplers: their `nondefault_options`.
    """
    sampling = config.sampling
    name = f"step_{step}-{chains or f'{_short_value(sampling.sampler)}-{sampling.num_steps}'}-seed_{sampling.seed}"
    for field, value in (nondefault_options(config) if options is None else options).items():
        name += f"-{value}" if field == "spacing" else f"-{field}_{value}"
    if sampling.params != "ema":
        name += f"-{sampling.params}"
    if sampling.label != -1 and not chains:
        name += f"-label_{sampling.label}"
    if sampling.condition_noise:
        name += f"-condition_noise_{sampling.condition_noise:g}"
    return name


def folder_name(config: ConfigDict, step: int) -> str:
    """`run_name` with the number of images and of saved intermediate steps."""
    sampling = config.sampling
    keep = f"-keep_{sampling.num_intermediates}" if sampling.num_intermediates else ""
    return f"{run_name(config, step)}-{sampling.num_images}_images{keep}"


# Descriptions.


def describe_sampling(config: ConfigDict) -> str:
    """The sampler, its steps and its nondefault options, as text."""
    sampling, options = config.sampling, nondefault_options(config)
    start = f"{sampling.sampler} in {sampling.num_steps} steps"
    return ", ".join([start, *(f"{field} {value}" for field, value in options.items())])


def sampler_label(config: ConfigDict) -> str:
    """The sampler with its nondefault options, for a table."""
    sampling, options = config.sampling, nondefault_options(config)
    shown = [f"{field}={value}" for field, value in options.items() if field != "spacing"]
    return " ".join([f"{sampling.sampler} {sampling.num_steps} {sampling.spacing}", *shown])


def nondefault_options(config: ConfigDict) -> dict[str, str]:
    """Other options that affect the images and differ from their defaults: name -> short value."""
    sampling = config.sampling
    found = {name: _short_value(value) for name, value in options_of_sampler(config).items()}
    if sampling.spacing != "leading":
        found["spacing"] = sampling.spacing
    if sampling.guidance_scale != 1:
        low, high = sampling.guidance_interval
        found["guidance"] = f"{sampling.guidance_scale:g}" + (f"_{low:g}_{high:g}" if (low, high) != (0, 1) else "")
        if sampling.guidance_rescale:
            found["rescale"] = f"{sampling.guidance_rescale:g}"
    return found


def options_of_sampler(config: ConfigDict) -> dict[str, Any]:
    """The options of the chosen sampler that differ from their defaults: name -> value."""
    defaults = registry.defaults(registry.find(config.sampling.sampler, SAMPLERS, "sampler"))
    options = choices.options_of(config, choices.SAMPLER)
    return {name: value for name, value in options.items() if value != defaults.get(name)}


def _short_value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def sampling_warnings(config: ConfigDict) -> list[str]:
    """Warnings about settings that are known to degrade the images."""
    diffusion, sampling = config.diffusion, config.sampling
    steps, trained = sampling.num_steps, diffusion.num_timesteps
    notes = []
    if sampling.sampler == "ancestral" and diffusion.variance == "fixed_large" and steps <= trained // FEW_STEPS_DIVISOR:
        notes.append(
            f"ancestral sampling in {steps:,} of {trained:,} steps with fixed_large leaves noise in the images (published for "
            "CIFAR-10: FID 367 in 10 steps, 33 in 50, 10 in 100, 3.2 in 1,000): use more steps, or ddim or dpmpp_2m"
        )
    dimension = math.prod(build.image_shape(config))
    chain, whole = build.sampling_schedule(config), build.build_schedule(config)
    pull, least = (initial_noise.pull_to_gray(schedule, dimension) for schedule in (chain, whole))
    if pull > least + MAX_EXTRA_PULL:
        notes.append(
            f"spacing {sampling.spacing} starts from pure noise at t={chain.timesteps[-1]}, where x_t still contains some "
            f"signal: brightness and colors are pulled up to {pull:.0%} of the way to mid-gray, with "
            f"sampling.spacing=trailing {least:.0%} (docs/colors.md)"
        )
    return notes


# Cheaper settings.


def few_images(config: ConfigDict) -> ConfigDict:
    """The config with at most as many images as a grid shows."""
    config = config.copy_and_resolve_references()
    config.sampling.num_images = min(config.sampling.num_images, image_grid.MAX_IMAGES)
    return config


def quick_config(config: ConfigDict) -> ConfigDict:
    """As `few_images`, with config.train.sample_num_steps solver steps if config.sampling takes more evaluations.

    Raises:
      UsageError: the sampler of config.sampling cannot be built.
    """
    full, steps = few_images(config), config.train.sample_num_steps
    if not steps or build.build_sampler(full).nfe <= steps:
        return full
    for sampler, spacing in QUICK_SAMPLERS:
        quick = full.copy_and_resolve_references()
        quick.sampling.update(sampler=sampler, spacing=spacing, num_steps=min(steps, config.diffusion.num_timesteps))
        quick.sampling.num_intermediates = min(quick.sampling.num_intermediates, quick.sampling.num_steps)
        try:
            build.build_sampler(quick)
        except UsageError:
            continue
        return quick
    return full


def cost_in_steps(config: ConfigDict) -> float:
    """Cost of generating the images of config.sampling, in training steps."""
    sampling = config.sampling
    evaluations = build.build_sampler(config).nfe * (1 if sampling.guidance_scale == 1 else 2)
    return evaluations * sampling.num_images / (FORWARD_PASSES * config.train.batch_size)


def changed_flags(config: ConfigDict, other: ConfigDict) -> list[str]:
    """The flags that change config.sampling to that of `other`."""
    sampling = other.sampling
    return [f"--config.sampling.{name}={sampling[name]}" for name in sampling if sampling[name] != config.sampling[name]]


def flags_for_run(config: ConfigDict, recorded: dict[str, Any], without: Collection[str]) -> str:
    """The flags with which a mode generates the images of `config` from a run, each after a space.

    Args:
      config: resolved.
      recorded: config of the run, whose fields need no flag.
      without: fields of config.sampling that get none.
    """
    wanted = flatten({"sampling": _image_fields(config) | {"checkpoint_step": config.sampling.checkpoint_step}})
    changed = {field: value for field, value in wanted.items() if value != flatten(recorded).get(field)}
    changed = {field: value for field, value in changed.items() if field.removeprefix("sampling.") not in without}
    changed |= changed_fields(config, recorded)
    texts = {field: tuple(value) if isinstance(value, list) else value for field, value in changed.items()}
    return "".join(f" --config.{field}={shlex.quote(str(value).replace(', ', ','))}" for field, value in texts.items())


def sample_command(run_folder: pathlib.Path, *flags: str) -> str:
    """The command line that generates images from this run, ready to paste."""
    folder = user_messages.short_path(str(run_folder))
    return shlex.join([*user_messages.program_command(), f"--workdir={folder}", "--mode=sample", *flags])


# Generation.


def generate(config: ConfigDict, sampler: BatchedSampler, params: Any, inputs: SamplingInputs | None = None) -> GeneratedBatch:
    """Generate config.sampling.num_images images, with a progress line; `inputs`, their conditions, are read by default."""
    inputs = sampling_inputs(config) if inputs is None else inputs
    key, number = rng.purpose_key(config.sampling.seed, "sample"), config.sampling.num_images
    with distributed.show_progress(number) as report:
        return sampler.generate_all(params, key, num_images=number, cond=inputs.cond, report=report)
