"""Builds the components of a run from a ConfigDict. The modules that it imports do not read configs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax import choices, condition_config, cpu, models
from ddpm_jax.data.condition import Condition
from ddpm_jax.data.source import height_width
from ddpm_jax.diffusion import loss_weighting, losses, pixels, schedules, spacings, timestep_sampling
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.models import group_norm, layers, tpu_layers, training_layers
from ddpm_jax.runtime import registry
from ddpm_jax.runtime.mesh import images_per_batch
from ddpm_jax.samplers import check_custom_sampler, make_sampler
from ddpm_jax.samplers.batched import BatchedSampler
from ddpm_jax.samplers.guidance import Guidance, classifier_free_guidance, guided_timesteps
from ddpm_jax.samplers.inversion import ddim_inversion
from ddpm_jax.samplers.repaint import repaint
from ddpm_jax.samplers.sampler import Sampler, SamplerState
from ddpm_jax.training import device_grads, grad_groups, param_patterns, tree_norm
from ddpm_jax.training import optimizer as optimizers
from ddpm_jax.training.ema_tracker import EmaTracker
from ddpm_jax.training.learning_rate import make_learning_rate
from ddpm_jax.training.state import TrainState, create_state
from ddpm_jax.training.step import train_step
from ddpm_jax.user_messages import UsageError, config_errors

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STATE_FIELDS = {"ema": "ema_params", "raw": "params"}  # sampling.params -> field of the state; additional EMAs keep their name


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C)."""
    return (*height_width(config.data.image_size), config.data.channels)


def pixel_format(config: ConfigDict) -> pixels.PixelFormat:
    """Type and range of the images, 0..255 for uint8, else config.data.value_range or all levels; and how they are shown."""
    data, shown = config.data, tuple(config.sampling.shown_channels)
    if data.dtype == "uint8":  # gray files of more than 8 bits, which have a range, are read as uint8
        return pixels.PixelFormat(shown_channels=shown)
    return pixels.PixelFormat(data.dtype, *map(float, data.value_range or (0.0, 65535.0)), shown)


def build_condition(config: ConfigDict) -> Condition | None:
    """The condition images of the run; None if there are none. Raises as `condition_config.build_condition`."""
    return condition_config.build_condition(config, image_shape(config))


def _make(
    config: ConfigDict,
    choice: choices.Choice,
    make: Callable[..., Any],
    *args: Any,
    check_custom: Callable[[Any], None] = lambda made: None,
    **given: Any,
) -> Any:
    """`make(*args, **given, **options)` with the options of the chosen part, which the errors name.

    `check_custom` validates a part of the user's own.

    Raises:
      UsageError: `make` raises a ValueError, or the program itself provides one of the options.
    """
    options, section = choices.options_of(config, choice), choices.section_of(config, choice)
    if taken := sorted(options.keys() & given.keys()):
        raise UsageError(f"config.{section}.{taken[0]} is not an option, since the program provides it: leave it out")
    custom = registry.is_custom(args[0])
    with config_errors(choice.path if custom else choice.section, {option: f"{section}.{option}" for option in options}):
        made = make(*args, **given, **options)
        if custom:
            check_custom(made)
        return made


def build_model(config: ConfigDict, *, portable: bool = False) -> nn.Module:
    """The network, with the layer implementations of this platform, or with those that every platform has if `portable`.

    Raises:
      UsageError: an option of the network is invalid.
    """

    condition = build_condition(config)

    def make(*args: Any, **options: Any) -> nn.Module:
        network = models.make_network(*args, **options)
        if hasattr(network, "check"):
            network.check(image_shape(config))
        return network

    return _make(
        config,
        choices.NETWORK,
        make,
        config.model.name,
        out_channels=out_channels(config),
        num_classes=condition_config.num_labels(config),
        cond_channels=condition.shape[2] if condition else 0,
        cond_noise_level=bool(condition and condition.max_noise),
        dtype=DTYPES[config.model.dtype],
        layer_functions={} if portable else cpu.layer_functions(upsample_conv=layers.upsample_conv, norm=group_norm.linen_norm),
    )


def out_channels(config: ConfigDict) -> int:
    """Number of channels of the network's output."""
    return config.data.channels * (1 + build_parameterization(config).learns_variance)


def build_parameterization(config: ConfigDict) -> Parameterization:
    """The meaning of the network output."""
    diffusion = config.diffusion
    scale = 1000 / diffusion.num_timesteps  # the time embedding expects 0..1000
    return Parameterization(diffusion.prediction, diffusion.variance, diffusion.clip_denoised, time_scale=scale)


def build_schedule(config: ConfigDict) -> schedules.NoiseSchedule:
    """The noise schedule of the training, T steps."""
    name, steps, zero = (config.diffusion[field] for field in ("schedule", "num_timesteps", "zero_terminal_snr"))
    return _make(config, choices.SCHEDULE, schedules.make_schedule, name, steps, zero_terminal_snr=zero)


def sampling_schedule(config: ConfigDict, strength: float = 1.0) -> schedules.NoiseSchedule:
    """The respaced schedule of config.sampling, restricted to the lowest fraction `strength` in 0..1 of its steps."""
    trained, sampling = build_schedule(config), config.sampling
    with config_errors("sampling"):
        timesteps = spacings.spaced_timesteps(trained.num_timesteps, sampling.num_steps, sampling.spacing, schedule=trained)
        lower = timesteps[: max(1, round(strength * len(timesteps)))]
        return schedules.respace(trained, lower, from_noise=len(lower) == len(timesteps))


def build_weighting(config: ConfigDict) -> loss_weighting.Weighting | None:
    """The weight of the squared error at each t; None for weight 1."""
    name, chain = config.diffusion.weighting, build_schedule(config)
    check = functools.partial(loss_weighting.check_custom_weighting, name, schedule=chain)
    weighting = _make(config, choices.WEIGHTING, loss_weighting.make_weighting, name, check_custom=check)
    return loss_weighting.trained_at_zero_snr(weighting) if config.diffusion.zero_terminal_snr else weighting


def build_timestep_sampler(config: ConfigDict) -> timestep_sampling.TimestepSampler:
    """The distribution of t in training."""
    name, steps = config.diffusion.timestep_sampler, config.diffusion.num_timesteps
    return _make(config, choices.TIMESTEP_SAMPLER, timestep_sampling.make_timestep_sampler, name, steps)


def build_loss(config: ConfigDict) -> losses.LossFn:
    """The training loss, checked against the schedule, the parameterization and the weighting."""
    name, weighting = config.diffusion.loss, build_weighting(config)
    means = {"schedule": build_schedule(config), "parameterization": build_parameterization(config)}
    check = functools.partial(losses.check_custom_loss, name, image_shape=image_shape(config), **means)
    loss = _make(config, choices.LOSS, losses.make_loss, name, weighting=weighting, check_custom=check)
    with config_errors("diffusion"):
        losses.check_loss(**means, loss=name, weighting=weighting)
    return loss


def build_sampler(config: ConfigDict, *, strength: float = 1.0) -> Sampler:
    """The sampler of config.sampling over its respaced schedule, or the lowest fraction `strength` of it."""
    name, args = config.sampling.sampler, (sampling_schedule(config, strength), build_parameterization(config))
    check = functools.partial(check_custom_sampler, name, image_shape=image_shape(config), out_channels=out_channels(config))
    return _make(config, choices.SAMPLER, make_sampler, name, *args, trained=build_schedule(config), check_custom=check)


def build_inpainting_sampler(config: ConfigDict) -> Sampler:
    """The sampler of config.sampling with RePaint resampling."""
    with config_errors("sampling.sampler"):
        return repaint(build_sampler(config), jump_length=config.edit.jump_length, resampling=config.edit.resampling)


def build_inversion(config: ConfigDict) -> Sampler:
    """DDIM inversion: from an image to the latent that the ddim of config.sampling maps to it."""
    with config_errors("edit"):
        predict_x0 = build_parameterization(config).denoise
        return ddim_inversion(sampling_schedule(config), predict_x0, num_fixed_point_iters=config.edit.inversion_iters)


def build_optimizer(config: ConfigDict, norm_fn: Callable[[Any], jax.Array] = optax.tree.norm) -> optax.GradientTransformation:
    """The optimizer for learning rate 1, with gradient clipping by `norm_fn`."""
    given = {field: config.optimizer[field] for field in ("clip_norm", "skip_nonfinite")} | {"norm_fn": norm_fn}
    given["frozen"] = tuple(config.train.frozen)
    return _make(config, choices.OPTIMIZER, optimizers.make_optimizer, config.optimizer.name, **given)


def build_learning_rate(config: ConfigDict) -> Callable[[int], np.float32]:
    """Step -> learning rate, on the host."""
    name, rate, warmup = (config.optimizer[field] for field in ("schedule", "learning_rate", "warmup_steps"))
    return _make(config, choices.LEARNING_RATE, make_learning_rate, name, rate, config.train.num_steps, warmup_steps=warmup)


def build_ema_tracker(config: ConfigDict) -> EmaTracker:
    """The additional EMAs of the parameters."""
    options = {name: tuple(config.ema[name]) for name in ("extra_decays", "power_sigma_rel")}
    for name, values in options.items():
        with config_errors(f"ema.{name}"):
            EmaTracker(**{name: values})
    return EmaTracker(**options)


def params_field(config: ConfigDict) -> str | None:
    """The checkpoint field of config.sampling.params; None if they must be computed from other fields."""
    name = config.sampling.params
    if name in STATE_FIELDS:
        return STATE_FIELDS[name]
    with config_errors(f"sampling.params is {name!r}"):
        return build_ema_tracker(config).resolve(name)


def build_denoise_fn(config: ConfigDict, *, portable: bool = False) -> Callable[[Any, Any], DenoiseFn]:
    """(params, cond) -> denoise_fn(x_t, t) -> model output, for sampling; cond as in `condition_config`."""
    model, parameterization = build_model(config, portable=portable), build_parameterization(config)

    def make_denoise_fn(params: Any, cond: Any) -> DenoiseFn:
        return lambda x_t, t: model.apply({"params": params}, x_t, parameterization.network_time(t), cond)

    return make_denoise_fn


def build_guided_denoise_fn(config: ConfigDict, *, portable: bool = False) -> Callable[[Any, Any], DenoiseFn]:
    """As `build_denoise_fn`, with the guidance of config.sampling."""
    make_denoise_fn, sampling = build_denoise_fn(config, portable=portable), config.sampling
    if sampling.guidance_scale == 1:
        return make_denoise_fn
    with config_errors("sampling"):
        first_t, last_t = guided_timesteps(sampling.guidance_interval, config.diffusion.num_timesteps)
        guidance = Guidance(
            scale=sampling.guidance_scale,
            first_t=first_t,
            last_t=last_t,
            rescale=sampling.guidance_rescale,
            num_channels=config.data.channels,
        )
        null_cond = condition_config.null_cond(config, build_condition(config))

    def make_guided(params: Any, cond: Any) -> DenoiseFn:
        def network(x_t: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
            return make_denoise_fn(params, cond)(x_t, t)

        return classifier_free_guidance(network, cond, null_cond, guidance)

    return make_guided


def build_init(config: ConfigDict) -> Callable[..., TrainState]:
    """(key, given) -> initial TrainState; a pure function. `given`: path -> parameter, instead of its initial value."""
    model, optimizer, condition = build_model(config), build_optimizer(config), build_condition(config)

    def init_params(key: jax.Array) -> Any:
        cond = condition_config.example_cond(config, condition)
        return model.init(key, jnp.zeros((1, *image_shape(config))), jnp.zeros(1, jnp.int32), cond)["params"]

    timestep_sampler_state, averaging = build_timestep_sampler(config).init(), build_ema_tracker(config)

    def init(key: jax.Array, given: Mapping[str, Any] | None = None) -> TrainState:
        def start(key: jax.Array) -> Any:
            return param_patterns.replace(init_params(key), given or {})

        return create_state(start, optimizer, key, timestep_sampler_state=timestep_sampler_state, averaging=averaging)

    return init


def build_train_step(config: ConfigDict, mesh: Mesh) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch of a data source, key, learning rate) -> (state, metrics), for arrays on the mesh; pure, not jitted."""
    model = training_layers.for_training(build_model(config, portable=not cpu.is_mesh_of_cpus(mesh)), mesh)
    parameterization, condition, norm_fn = build_parameterization(config), build_condition(config), tree_norm.for_mesh(mesh)
    apply, frozen = tpu_layers.for_mesh(model.apply, mesh), tuple(config.train.frozen)

    def apply_fn(params: Any, x_t: jax.Array, t: jax.Array, cond: Any, dropout_key: jax.Array) -> jax.Array:
        params, time, rngs = {"params": params}, parameterization.network_time(t), {"dropout": dropout_key}
        return apply(params, x_t, time, cond, deterministic=False, rngs=rngs)

    take_step = functools.partial(
        train_step,
        apply_fn=apply_fn,
        schedule=build_schedule(config),
        parameterization=parameterization,
        optimizer=build_optimizer(config, norm_fn),
        loss_fn=build_loss(config),
        ema_decay=config.ema.decay,
        random_flip=config.data.random_flip,
        skip_nonfinite=config.optimizer.skip_nonfinite,
        find_frozen=functools.partial(param_patterns.match_frozen, patterns=frozen) if frozen else None,
        timestep_sampler=build_timestep_sampler(config),
        cond_dropout=config.model.label_dropout,
        null_cond=condition_config.null_cond(config, condition),
        cond_fn=condition_config.training_cond_fn(condition),
        averaging=build_ema_tracker(config),
        pixel_format=pixel_format(config),
        accumulation_steps=config.optimizer.accumulation_steps,
        group_grads=grad_groups.is_useful(mesh),
        norm_fn=norm_fn,
        **device_grads.train_step_options(mesh),
        **cpu.train_step_options(mesh, stochastic=getattr(model, "stochastic", True)),
    )

    def step(
        state: TrainState, batch: dict[str, jax.Array], key: jax.Array, learning_rate: jax.typing.ArrayLike
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        return take_step(state, condition_config.training_batch(config, condition, batch), key, learning_rate)

    return step


def build_batched_sampler(
    config: ConfigDict,
    mesh: Mesh,
    save_steps: Sequence[int] | np.ndarray | None = None,
    *,
    sampler: Sampler | None = None,
    begin: Callable[[jax.Array, Any], SamplerState] | None = None,
    finish: Callable[[jax.Array], jax.Array] | None = None,
    num_images: int | None = None,
) -> BatchedSampler:
    """The batched sampler of config.sampling.

    Args:
      config: resolved config.
      mesh: devices to generate on.
      save_steps: int [S], 0..num_steps-1: x_t is saved before these steps. Default: config.sampling.num_intermediates evenly
        spaced steps, starting with pure noise.
      sampler: replaces the sampler of config.sampling.
      begin, finish: as for `BatchedSampler`; by default the images have the type and range of the data.
      num_images: number of images to generate, which limits the batch size; by default config.sampling.num_images.

    Raises:
      UsageError: a field of config.sampling is invalid.
    """
    sampling = config.sampling
    sampler = build_sampler(config) if sampler is None else sampler
    if save_steps is None:
        save_steps = np.linspace(0, sampler.num_steps - 1, sampling.num_intermediates).round().astype(int)
    return BatchedSampler(
        sampler,
        build_guided_denoise_fn(config, portable=not cpu.is_mesh_of_cpus(mesh)),
        mesh,
        image_shape=image_shape(config),
        batch_size=min(images_per_batch(sampling.batch_size), num_images or sampling.num_images),
        save_steps=tuple(int(step) for step in save_steps),
        begin=begin,
        finish=finish or pixel_format(config).to_data,
    )
