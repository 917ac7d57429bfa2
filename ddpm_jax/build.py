"""The one translator: a ConfigDict in, the parts of a run out. Below this file nobody reads a config."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax.data import decode, image_folder
from ddpm_jax.data.source import ImageSource
from ddpm_jax.models.unet import UNet
from ddpm_jax.process import diffusion, losses, schedules
from ddpm_jax.runtime.errors import UsageError
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.samplers.bound import BoundMeter
from ddpm_jax.samplers.generate import Generator
from ddpm_jax.samplers.sampler import Sampler
from ddpm_jax.training import optimizer as optimizers
from ddpm_jax.training.state import TrainState, create_state
from ddpm_jax.training.step import train_step

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
WEIGHTS = {"ema": "ema_params", "raw": "params"}  # -> field of the state
IN_MEMORY = {"always": True, "never": False, "auto": "auto"}


def check_config(config: ConfigDict) -> None:
    """Find what is wrong before anything is loaded or compiled.

    Raises:
      UsageError: one line that names the field.
    """
    data, model, process, sampling = config.data, config.model, config.diffusion, config.sampling
    check_choice("model.dtype", model.dtype, DTYPES)
    check_choice("diffusion.schedule", process.schedule, schedules.SCHEDULES)
    check_choice("diffusion.prediction", process.prediction, diffusion.PREDICTIONS)
    check_choice("diffusion.variance", process.variance, diffusion.VARIANCES)
    check_choice("diffusion.loss", process.loss, losses.LOSSES)
    check_choice("sampling.sampler", sampling.sampler, SAMPLERS)
    check_choice("sampling.spacing", sampling.spacing, schedules.SPACINGS)
    check_choice("sampling.weights", sampling.weights, WEIGHTS)
    check_choice("data.in_memory", data.in_memory, IN_MEMORY)
    check_choice("data.channels", data.channels, (1, 3))
    check_choice("data.on_broken", data.on_broken, image_folder.ON_BROKEN)
    decode.parse_background(data.background)

    positive = {
        "data": ("image_size", "num_threads", "prefetch"),
        "model": ("ch", "num_res_blocks"),
        "diffusion": ("num_timesteps",),
        "optimizer": ("learning_rate", "accumulation_steps"),
        "train": ("num_steps", "batch_size", "log_every", "checkpoint_every", "keep_latest"),
        "sampling": ("num_steps", "num_images", "batch_size"),
    }
    at_least_0 = {
        "data": ("num_classes",),
        "optimizer": ("warmup_steps", "clip_norm"),
        "train": ("keep_every", "sample_every", "evaluate_every"),
        "sampling": ("keep", "eta"),
    }
    for fields, holds, words in ((positive, lambda x: x > 0, "above 0"), (at_least_0, lambda x: x >= 0, "0 or more")):
        for section, names in fields.items():
            for name in names:
                if not holds(config[section][name]):
                    raise UsageError(f"config.{section}.{name} is {config[section][name]}: it must be {words}")
    for field, rate in (("model.dropout", model.dropout), ("ema.decay", config.ema.decay)):
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
    if model.class_conditional and not data.num_classes:
        raise UsageError("config.model.class_conditional needs labels, but config.data.num_classes is 0")
    if not model.class_conditional and sampling.label != -1:
        raise UsageError("config.sampling.label asks for a class, but config.model.class_conditional is False")
    if not -1 <= sampling.label < max(1, data.num_classes):
        raise UsageError(f"config.sampling.label is {sampling.label}: the classes are 0..{data.num_classes - 1}, -1 for all")
    if sampling.keep > sampling.num_steps:
        raise UsageError(f"config.sampling.keep is {sampling.keep}, but there are only {sampling.num_steps} steps")


def check_choice(field: str, value: Any, choices: Any) -> None:
    """Raise a UsageError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise UsageError(f"config.{field} is {value!r}: choose one of {', '.join(str(choice) for choice in choices)}")


def as_dict(config: ConfigDict | None) -> dict[str, Any]:
    """The config as plain dictionaries; empty for None."""
    return {} if config is None else config.to_dict()


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C)."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def build_model(config: ConfigDict) -> UNet:
    """The network."""
    model = config.model
    return UNet(
        out_channels=config.data.channels,
        ch=model.ch,
        ch_mult=tuple(model.ch_mult),
        num_res_blocks=model.num_res_blocks,
        attn_resolutions=tuple(model.attn_resolutions),
        dropout=model.dropout,
        num_classes=config.data.num_classes if model.class_conditional else 0,
        dtype=DTYPES[model.dtype],
        remat=model.remat,
    )


def build_schedule(config: ConfigDict) -> schedules.NoiseSchedule:
    """The chain of T steps that the network is trained on."""
    try:
        return schedules.make_schedule(config.diffusion.schedule, config.diffusion.num_timesteps)
    except ValueError as error:
        raise UsageError(f"config.diffusion: {error}") from error


def build_sampler(config: ConfigDict) -> Sampler:
    """The sampler that config.sampling names, over its respaced chain."""
    process, sampling = config.diffusion, config.sampling
    try:
        timesteps = schedules.spaced_timesteps(process.num_timesteps, sampling.num_steps, sampling.spacing)
        return SAMPLERS[sampling.sampler](
            schedules.respace(build_schedule(config), timesteps),
            prediction=process.prediction,
            variance=process.variance,
            clip_denoised=process.clip_denoised,
            eta=sampling.eta,
        )
    except ValueError as error:
        raise UsageError(f"config.sampling: {error}") from error


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam, with its warm-up and clipping."""
    return optimizers.make_optimizer(
        config.optimizer.learning_rate, warmup_steps=config.optimizer.warmup_steps, clip_norm=config.optimizer.clip_norm
    )


def build_learning_rate(config: ConfigDict) -> optax.Schedule:
    """Step -> learning rate, the optimizer's own."""
    return optimizers.warmup_schedule(config.optimizer.learning_rate, config.optimizer.warmup_steps)


def build_source(config: ConfigDict, report: Callable[[str], None] = print) -> ImageSource:
    """The images that config.data names. Reading and preparing a large set is told to `report`.

    Raises:
      PersonError: the set is not there and cannot be prepared.
      UsageError: it is there, but not as the config says.
    """
    data = config.data
    if data.name == "digits":
        from ddpm_jax.data import digits  # scikit-learn takes a second to import

        source = digits.load_digits(data.split)
    elif data.name == "image_folder":
        source = image_folder.load_image_folder(
            data.data_dir,
            image_size=data.image_size,
            channels=data.channels,
            split=data.split,
            background=data.background,
            on_broken=data.on_broken,
            in_memory=IN_MEMORY[data.in_memory],
            num_threads=data.num_threads,
            report=report,
        )
    else:
        from ddpm_jax.data import tfds

        source = tfds.load_tfds(
            data.name,
            data.split,
            data_dir=data.data_dir,
            image_size=data.image_size,
            channels=data.channels,
            in_memory=IN_MEMORY[data.in_memory],
            num_threads=data.num_threads,
            report=report,
        )
    if (source.image_size, source.channels) != (data.image_size, data.channels):
        raise UsageError(
            f"{data.name} holds images of {source.image_size} pixels and {source.channels} channels: set "
            f"config.data.image_size={source.image_size} and config.data.channels={source.channels}"
        )
    if config.model.class_conditional and source.num_classes != data.num_classes:
        raise UsageError(f"{data.name} has {source.num_classes} classes, but config.data.num_classes is {data.num_classes}")
    return source


def _network_time(config: ConfigDict, t: jax.Array) -> jax.Array:
    """t of a chain of any length on the scale 0..1000 that the time embedding is made for."""
    return t if config.diffusion.num_timesteps == 1000 else t * (1000 / config.diffusion.num_timesteps)


def build_denoise_fn(config: ConfigDict) -> Callable[[Any, jax.Array | None], Callable[[jax.Array, jax.Array], jax.Array]]:
    """(params, labels int32 [B] or None) -> denoise_fn(x_t, t) -> model output: the network as a sampler sees it."""
    model = build_model(config)

    def make_denoise_fn(params: Any, labels: jax.Array | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda x_t, t: model.apply({"params": params}, x_t, _network_time(config, t), labels)

    return make_denoise_fn


def build_init(config: ConfigDict) -> Callable[[jax.Array], TrainState]:
    """key -> the state at step 0; pure."""
    model, optimizer = build_model(config), build_optimizer(config)

    def init_params(key: jax.Array) -> Any:
        labels = jnp.zeros(1, jnp.int32) if model.num_classes else None
        return model.init(key, jnp.zeros((1, *image_shape(config))), jnp.zeros(1, jnp.int32), labels)["params"]

    return functools.partial(create_state, init_params, optimizer)


def build_train_step(config: ConfigDict) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch, key) -> (state, metrics); pure, not yet jitted."""
    model = build_model(config)

    def apply_fn(params: Any, x_t: jax.Array, t: jax.Array, labels: jax.Array | None, dropout_key: jax.Array) -> jax.Array:
        labels = labels if model.num_classes else None
        time = _network_time(config, t)
        return model.apply({"params": params}, x_t, time, labels, deterministic=False, rngs={"dropout": dropout_key})

    return functools.partial(
        train_step,
        apply_fn=apply_fn,
        schedule=build_schedule(config),
        optimizer=build_optimizer(config),
        prediction=config.diffusion.prediction,
        loss=config.diffusion.loss,
        ema_decay=config.ema.decay,
        random_flip=config.data.random_flip,
        accumulation_steps=config.optimizer.accumulation_steps,
        unroll=jax.default_backend() == "cpu",
    )


def build_generator(config: ConfigDict, mesh: Mesh, kept_steps: np.ndarray | None = None) -> Generator:
    """The driver that draws images as config.sampling says.

    Args:
      config: resolved.
      mesh: whose devices draw.
      kept_steps: int [S], 0..num_steps-1: before which of the sampler's steps x_t is kept; by default config.sampling.keep
        of them, evenly spread, pure noise first.
    """
    sampler, sampling = build_sampler(config), config.sampling
    if kept_steps is None:
        kept_steps = np.linspace(0, sampler.num_steps - 1, sampling.keep).round().astype(int) if sampling.keep else ()
    return Generator(
        sampler,
        build_denoise_fn(config),
        mesh,
        image_shape=image_shape(config),
        batch_size=min(sampling.batch_size, sampling.num_images),
        kept_steps=tuple(int(step) for step in kept_steps),
    )


def build_bound_meter(config: ConfigDict, mesh: Mesh) -> BoundMeter:
    """The driver that measures the variational bound as config.evaluation says."""
    try:
        return BoundMeter(
            build_schedule(config),
            build_denoise_fn(config),
            mesh,
            prediction=config.diffusion.prediction,
            variance=config.diffusion.variance,
            clip_denoised=config.diffusion.clip_denoised,
            batch_size=config.evaluation.batch_size,
            timesteps_per_image=config.evaluation.bound_timesteps,
        )
    except ValueError as error:
        raise UsageError(f"config.evaluation.bound_timesteps: {error}") from error


def sampling_labels(config: ConfigDict) -> np.ndarray | None:
    """int32 [num_images], the class of each image to draw; None for an unconditional model."""
    if not config.model.class_conditional:
        return None
    if config.sampling.label >= 0:
        return np.full(config.sampling.num_images, config.sampling.label, np.int32)
    return np.arange(config.sampling.num_images, dtype=np.int32) % config.data.num_classes
