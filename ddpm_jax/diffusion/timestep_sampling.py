"""Sampling of training timesteps: one t for each image of a batch, and the weight that keeps the loss unbiased.

The loss is a mean over all t, E_t[L_t] with t uniform. Sampling with any other probabilities p(t) > 0 has the same mean if
the loss of each image is multiplied by

    w = 1 / (T p(t))                                                                (24)  IDDPM 2102.09672, eq. 18

Three timestep samplers:

    uniform          independent for each image, DDPM's algorithm 1.
    low_discrepancy  each t is uniform, and the batch is stratified: image i gets u_i = (u + i / B) mod 1 and
                     t = floor(T u_i), with one u per batch. 2107.00630, appendix I.1. Each t occurs B/T times, rounded
                     up or down, so the loss varies less between batches.
    second_moment    p(t) ∝ sqrt(E[L_t²]), estimated from the last 10 losses at each t, with .001 of uniform mixed in;
                     uniform until every t has 10. IDDPM section 3.3. For the bound, whose terms differ a thousandfold
                     between t: without it, the loss vlb is too noisy to train.

All are pure functions of a state, a pytree that is saved with the run for an exact resume. They act on the global batch and
do not depend on how it is sharded.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.runtime import custom_parts, registry

Array = jax.Array

HISTORY = 10  # losses kept at each t
UNIFORM_FRACTION = 0.001  # of the mixture in second_moment


@dataclasses.dataclass(frozen=True)
class TimestepSampler:
    """A distribution of t. Built by `make_timestep_sampler`.

    Attributes:
      init: () -> state, a pytree of arrays; () if stateless.
      draw: (state, key, batch_size) -> t int32 [B], weights float32 [B]. The batch size is static.
      update: (state, t [B], losses [B]) -> state. The losses are unweighted, of the global batch in its order.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, Array, int], tuple[Array, Array]]
    update: Callable[[Any, Array, Array], Any]


class LossHistory(NamedTuple):
    """State of second_moment.

    Attributes:
      losses: float32 [T, 10], the last losses at each t, in any order.
      counts: int32 [T], number of losses so far.
    """

    losses: Array
    counts: Array


def make_timestep_sampler(name: str, num_timesteps: int, /, **options: Any) -> TimestepSampler:
    """The timestep sampler called `name` for a chain of T steps.

    Args:
      name: a key of TIMESTEP_SAMPLERS, or module:function for a function `(T, **options)` -> TimestepSampler.
      num_timesteps: T.
      options: options of the timestep sampler.

    Raises:
      ValueError: unknown name or option, T < 1, or a function of the user's own that returns something else.
    """
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps is {num_timesteps}: a diffusion process has at least 1 step")
    made = registry.make(name, TIMESTEP_SAMPLERS, "timestep sampler", num_timesteps, options=options)
    if registry.is_custom(name):
        _check_custom(f"the timestep sampler {name}", made)
    return made


def _check_custom(part: str, made: Any) -> None:
    """Raises InvalidArgumentError unless `made` is a TimestepSampler whose functions return what they must."""
    custom_parts.check_type(part, made, TimestepSampler)
    size, key = custom_parts.BATCH_SIZE, jax.eval_shape(lambda: jax.random.key(0))
    state = custom_parts.trace(f"init of {part}", made.init)
    drawn = custom_parts.trace(f"draw of {part}", lambda state, key: made.draw(state, key, size), state, key)
    t, weights = custom_parts.array(size, dtype=jnp.int32), custom_parts.array(size)
    custom_parts.check_result(f"draw of {part}", drawn, (t, weights), "t and the weight of each image")
    updated = custom_parts.trace(f"update of {part}", made.update, state, t, custom_parts.array(size))
    custom_parts.check_result(f"update of {part}", updated, state, "a state like that of init")


def _uniform(num_timesteps: int) -> TimestepSampler:
    def draw(state: tuple, key: Array, batch_size: int) -> tuple[Array, Array]:
        return jax.random.randint(key, (batch_size,), 0, num_timesteps), jnp.ones(batch_size)

    return TimestepSampler(init=tuple, draw=draw, update=_stateless_update)


def _low_discrepancy(num_timesteps: int) -> TimestepSampler:
    def draw(state: tuple, key: Array, batch_size: int) -> tuple[Array, Array]:
        # Integer arithmetic with u = r / (T B): all t are exactly equally probable.
        grid = num_timesteps * batch_size
        if grid > 2**30:
            raise ValueError(
                f"{num_timesteps} timesteps and a batch of {batch_size} are too many for low_discrepancy: "
                "choose the timestep sampler uniform"
            )
        offset = jax.random.randint(key, (), 0, grid)
        places = (offset + num_timesteps * jnp.arange(batch_size, dtype=jnp.int32)) % grid
        return places // batch_size, jnp.ones(batch_size)

    return TimestepSampler(init=tuple, draw=draw, update=_stateless_update)


def _stateless_update(state: tuple, t: Array, losses: Array) -> tuple:
    return state


def _second_moment(num_timesteps: int) -> TimestepSampler:
    def init() -> LossHistory:
        return LossHistory(jnp.zeros((num_timesteps, HISTORY), jnp.float32), jnp.zeros(num_timesteps, jnp.int32))

    def draw(state: LossHistory, key: Array, batch_size: int) -> tuple[Array, Array]:
        loss_probs = _loss_proportional_probs(state)
        mix_key, uniform_key, loss_key = jax.random.split(key, 3)
        # The uniform part is sampled separately: added to the probabilities, it would vanish in float32 rounding.
        from_uniform = jax.random.bernoulli(mix_key, UNIFORM_FRACTION, (batch_size,))
        uniform = jax.random.randint(uniform_key, (batch_size,), 0, num_timesteps)
        t = jnp.where(from_uniform, uniform, jax.random.choice(loss_key, num_timesteps, (batch_size,), p=loss_probs))
        p = (1 - UNIFORM_FRACTION) * loss_probs[t] + UNIFORM_FRACTION / num_timesteps
        return t, 1 / (num_timesteps * p)

    def update(state: LossHistory, t: Array, losses: Array) -> LossHistory:
        # Losses are written in batch order, all at once: `rank` is the number of earlier losses at the same t.
        order = jnp.argsort(t, stable=True)
        t, losses = t[order], losses[order].astype(jnp.float32)
        first, after = (jnp.searchsorted(t, t, side=side).astype(jnp.int32) for side in ("left", "right"))
        rank = jnp.arange(t.shape[0], dtype=jnp.int32) - first
        slot = (state.counts.at[t].get(mode="clip") + rank) % HISTORY
        # If one t has more than 10, only the last 10 are written, so that no slot is written twice.
        row = jnp.where(after - first - rank > HISTORY, num_timesteps, t)
        return LossHistory(
            losses=state.losses.at[row, slot].set(losses, mode="drop"), counts=state.counts.at[t].add(1, mode="drop")
        )

    return TimestepSampler(init=init, draw=draw, update=update)


def _loss_proportional_probs(state: LossHistory) -> Array:
    """p(t) of second_moment without its uniform part, float32 [T]; uniform until every t has a full history."""
    uniform = jnp.full(state.counts.shape, 1 / state.counts.shape[0], jnp.float32)
    root = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
    total = jnp.sum(root)
    ready = jnp.all(state.counts >= HISTORY) & (total > 0)
    return jnp.where(ready, root / jnp.where(ready, total, 1.0), uniform)


def second_moment_probabilities(state: LossHistory) -> Array:
    """p(t) of second_moment, float32 [T]. IDDPM 2102.09672, eq. 18."""
    return (1 - UNIFORM_FRACTION) * _loss_proportional_probs(state) + UNIFORM_FRACTION / state.counts.shape[0]


TIMESTEP_SAMPLERS: dict[str, Callable[..., TimestepSampler]] = {
    "uniform": _uniform,
    "low_discrepancy": _low_discrepancy,
    "second_moment": _second_moment,
}
