"""Checks a network and an optimizer of the user's own before anything is loaded or compiled.

Their shapes are traced with the images of the config, once per command: for a large network this takes seconds.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax import build, choices, condition_config
from ddpm_jax.runtime import custom_parts
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.runtime.registry import is_custom
from ddpm_jax.training import optimizer as optimizers
from ddpm_jax.user_messages import config_errors

CALL = "__call__(self, x_t, time, cond, *, deterministic=True)"


def check_network(config: ConfigDict) -> None:
    """Validates the network and the optimizer of the config if they are the user's own.

    Raises:
      UsageError: the network or the optimizer fails, or returns something else than the program needs.
    """
    if not is_custom(config.model.name) and not is_custom(config.optimizer.name):
        return
    with config_errors(choices.NETWORK.path):
        params = _check_network(f"the network {config.model.name}", config)
    if is_custom(config.optimizer.name):
        with config_errors(choices.OPTIMIZER.path):
            optimizers.check_custom_optimizer(config.optimizer.name, build.build_optimizer(config), params)


def _check_network(part: str, config: ConfigDict) -> Any:
    """Raises InvalidArgumentError unless the network is as `ddpm_jax.models` describes it; the shapes of its parameters."""
    model, size, shape = build.build_model(config), custom_parts.BATCH_SIZE, build.image_shape(config)
    _check_call(part, model)
    x_t, key = custom_parts.array(size, *shape), custom_parts.keys(1)
    t = custom_parts.array(size, dtype=jnp.int32)
    example = condition_config.example_cond(config, build.build_condition(config))
    cond = jax.tree.map(lambda entry: custom_parts.array(size, *entry.shape[1:], dtype=entry.dtype), example)
    network_time = build.build_parameterization(config).network_time

    def init(key: jax.Array, x_t: jax.Array, t: jax.Array, cond: Any) -> Any:
        return model.init(key[0], x_t, network_time(t), cond)

    def apply_in_training(params: Any, key: jax.Array, x_t: jax.Array, t: jax.Array, cond: Any) -> Any:
        time, rngs = network_time(t), {"dropout": key[0]}
        return model.apply({"params": params}, x_t, time, cond, deterministic=False, rngs=rngs)

    def apply_in_sampling(params: Any, x_t: jax.Array, t: jax.Array, cond: Any) -> Any:
        return model.apply({"params": params}, x_t, network_time(t), cond)

    variables = custom_parts.trace(part, init, key, x_t, t, cond)
    if others := sorted(set(variables) - {"params"}):
        raise InvalidArgumentError(f"{part} has the variables {', '.join(others)}, but only params are trained and saved")
    params = variables.get("params")
    if not jax.tree.leaves(params):
        raise InvalidArgumentError(f"{part} has no parameters: nothing in it can be trained")
    required = custom_parts.array(size, *shape[:-1], build.out_channels(config))
    for found in (
        custom_parts.trace(f"{part} with deterministic=False", apply_in_training, params, key, x_t, t, cond),
        custom_parts.trace(part, apply_in_sampling, params, x_t, t, cond),
    ):
        custom_parts.check_result(part, found, required, "[B, H, W, out_channels]")
    return params


def _check_call(part: str, model: Any) -> None:
    parameters = inspect.signature(type(model).__call__).parameters
    found = parameters.get("deterministic")
    if found is None and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    if found is None or found.default is inspect.Parameter.empty:
        fault = "has no argument deterministic" if found is None else "has no default of the argument deterministic"
        raise InvalidArgumentError(f"{part} {fault}: {CALL} is required")
