"""What is wrong with a config, found before anything is loaded or compiled."""

from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.data import decode, image_folder
from ddpm_jax.process import diffusion, losses, schedules, timesteps, weightings
from ddpm_jax.runtime.errors import UsageError
from ddpm_jax.samplers import SAMPLERS

LISTS = {  # field -> what its elements are; single values have their types checked where flags are parsed
    "model.ch_mult": int,
    "model.attn_resolutions": int,
    "ema.decays": float,
    "ema.power_stds": float,
    "sampling.churn_interval": float,
    "sampling.guidance_interval": float,
    "evaluation.metrics": str,
    "evaluation.checkpoint_steps": int,
    "evaluation.averages": str,
    "evaluation.samplers": str,
    "evaluation.num_steps": int,
    "edit.images": str,
}
WORDS = {int: "whole numbers", float: "numbers", str: "words"}


def check_config(config: ConfigDict) -> None:
    """Find out.

    Raises:
      UsageError: one line that names the field.
    """
    check_lists(config)
    data, model, process, sampling = config.data, config.model, config.diffusion, config.sampling
    check_choice("model.dtype", model.dtype, build.DTYPES)
    check_choice("diffusion.schedule", process.schedule, schedules.SCHEDULES)
    check_choice("diffusion.prediction", process.prediction, diffusion.PREDICTIONS)
    check_choice("diffusion.variance", process.variance, diffusion.VARIANCES)
    check_choice("diffusion.loss", process.loss, losses.LOSSES)
    check_choice("diffusion.weighting", process.weighting, weightings.WEIGHTINGS)
    check_choice("diffusion.timestep_sampler", process.timestep_sampler, timesteps.TIMESTEP_SAMPLERS)
    check_choice("sampling.sampler", sampling.sampler, SAMPLERS)
    check_choice("sampling.spacing", sampling.spacing, schedules.SPACINGS)
    check_choice("sampling.format", sampling.format, build.FORMATS)
    build.build_averaging(config)  # raises, as does the next
    build.weights_field(config)
    check_choice("data.in_memory", data.in_memory, build.IN_MEMORY)
    check_choice("data.channels", data.channels, (1, 3))
    check_choice("data.on_broken", data.on_broken, image_folder.ON_BROKEN)
    decode.parse_background(data.background)

    positive = {
        "data": ("image_size", "num_threads", "prefetch"),
        "model": ("ch", "num_res_blocks", "num_heads"),
        "diffusion": ("num_timesteps",),
        "optimizer": ("learning_rate", "accumulation_steps"),
        "train": ("num_steps", "batch_size", "log_every", "checkpoint_every", "keep_latest"),
        "sampling": ("num_steps", "num_images", "batch_size"),
        "evaluation": ("batch_size",),
    }
    at_least_0 = {
        "data": ("num_classes",),
        "optimizer": ("warmup_steps", "clip_norm"),
        "train": ("keep_every", "sample_every", "sample_num_steps", "evaluate_every"),
        "sampling": ("keep", "eta"),
        "evaluation": ("kept_features",),
    }
    for fields, holds, words in ((positive, lambda x: x > 0, "above 0"), (at_least_0, lambda x: x >= 0, "0 or more")):
        for section, names in fields.items():
            for name in names:
                if not holds(config[section][name]):
                    raise UsageError(f"config.{section}.{name} is {config[section][name]}: it must be {words}")
    for field, rate in (
        ("model.dropout", model.dropout),
        ("model.label_dropout", model.label_dropout),
        ("ema.decay", config.ema.decay),
    ):
        if not 0 <= rate < 1:
            raise UsageError(f"config.{field} is {rate}: it must be at least 0 and below 1")
    if model.ch % 4 or model.ch % min(32, model.ch // 4):
        raise UsageError(f"config.model.ch is {model.ch}: it must be a multiple of 4, and from 128 on a multiple of 32")
    if not model.ch_mult:
        raise UsageError("config.model.ch_mult is empty: it must hold one factor per level")
    halvings = len(model.ch_mult) - 1
    if data.image_size % 2**halvings:
        raise UsageError(
            f"config.data.image_size is {data.image_size}, which cannot be halved {halvings} times as the "
            f"{halvings + 1} levels of config.model.ch_mult ask: take a multiple of {2**halvings}, or fewer levels"
        )
    resolutions = [data.image_size // 2**level for level in range(halvings + 1)]
    if unmet := set(model.attn_resolutions) - set(resolutions):
        raise UsageError(
            f"config.model.attn_resolutions names {sorted(unmet)}, but images of {data.image_size} pixels pass "
            f"through {resolutions} only"
        )
    attending = [model.ch_mult[resolutions.index(resolution)] for resolution in model.attn_resolutions] + [model.ch_mult[-1]]
    if any(model.ch * factor % model.num_heads for factor in attending):
        raise UsageError(
            f"config.model.num_heads is {model.num_heads}, which does not divide the width of every attention: "
            f"{sorted({model.ch * factor for factor in attending})}"
        )
    if model.label_dropout and not model.class_conditional:
        raise UsageError("config.model.label_dropout drops classes, but config.model.class_conditional is False")
    if model.class_conditional and not data.num_classes:
        raise UsageError("config.model.class_conditional needs labels, but config.data.num_classes is 0")
    if not model.class_conditional and sampling.label != -1:
        raise UsageError("config.sampling.label asks for a class, but config.model.class_conditional is False")
    if not -1 <= sampling.label < max(1, data.num_classes):
        raise UsageError(f"config.sampling.label is {sampling.label}: the classes are 0..{data.num_classes - 1}, -1 for all")
    if sampling.guidance_scale != 1 and not model.label_dropout:
        raise UsageError(
            f"config.sampling.guidance_scale is {sampling.guidance_scale:g}, but only a model trained with "
            "config.model.class_conditional and config.model.label_dropout above 0 knows images without a class: set it to 1"
        )
    for field, neutral, reader in (("order", 2, "unipc"), ("churn", 0.0, "heun")):
        if sampling[field] != neutral and sampling.sampler != reader and reader not in config.evaluation.samplers:
            raise UsageError(f"config.sampling.{field} is {sampling[field]:g}, but only the sampler {reader} reads it")
    if sampling.keep > sampling.num_steps:
        raise UsageError(f"config.sampling.keep is {sampling.keep}, but there are only {sampling.num_steps} steps")
    try:
        losses.check_loss(
            build.build_schedule(config),
            prediction=process.prediction,
            loss=process.loss,
            variance=process.variance,
            weighting=build.build_weighting(config),
        )
    except ValueError as error:
        raise UsageError(f"config.diffusion: {error}") from error


def check_lists(config: ConfigDict) -> None:
    """Raise a UsageError unless every list holds what it should: flags tell a list from a number, not a 1 from an 'a'."""
    for field, kind in LISTS.items():
        section, _, name = field.partition(".")
        wrong = [x for x in config[section][name] if not isinstance(x, (int, float) if kind is float else kind)]
        if wrong:
            example = {int: "(1,2)", float: "(0.05,0.1)", str: "('a','b')"}[kind]
            raise UsageError(f"config.{field} holds {wrong[0]!r}: it must be a list of {WORDS[kind]}, such as {example}")


def check_choice(field: str, value: Any, choices: Any) -> None:
    """Raise a UsageError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise UsageError(f"config.{field} is {value!r}: choose one of {', '.join(str(choice) for choice in choices)}")
