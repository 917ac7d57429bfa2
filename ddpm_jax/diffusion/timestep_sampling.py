"""Which t to train on: for each image of a batch one t, and the weight that keeps the loss unbiased.

The loss is a mean over all t, E_t[L_t] with t uniform. Any other draw with probabilities p(t) > 0 has the same mean, if
the loss of each image is multiplied by

    w = 1 / (T p(t))                                                                (24)  IDDPM 2102.09672, eq. 18

Three ways to draw:

    uniform          each image by itself, DDPM's algorithm 1.
    low_discrepancy  each t is uniform, but together the batch's t are spread evenly: image i gets u_i = (u + i / B) mod 1
                     and t = floor(T u_i), with a single u. 2107.00630, appendix I.1. Each t falls on B/T images,
                     rounded up or down, so the loss varies less from batch to batch.
    second_moment    p(t) ∝ sqrt(E[L_t²]), estimated from the last 10 losses at each t, with .001 of uniform mixed in;
                     uniform until every t has 10. IDDPM section 3.3. For the bound, whose terms differ a
                     thousandfold between t: without it, the loss vlb is too noisy to train.

All are pure functions of a state, which is a pytree: saved and restored with the rest of a run, it goes on to the bit.
Draws and updates are of the global batch. Nothing depends on how it is spread over devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

HISTORY = 10  # losses kept at each t
UNIFORM_FRACTION = 0.001  # of all draws


@dataclasses.dataclass(frozen=True)
class TimestepSampler:
    """A way to draw t. Built by `make_timestep_sampler`.

    Attributes:
      init: () -> state, a pytree of arrays; () where nothing is remembered.
      draw: (state, key, batch_size) -> t int32 [B], weights float32 [B]. The batch size is static.
      update: (state, t [B], losses [B]) -> state. The losses are those before weights, of the whole batch, in its order.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, Array, int], tuple[Array, Array]]
    update: Callable[[Any, Array, Array], Any]


class LossHistory(NamedTuple):
    """State of second_moment.

    Attributes:
      losses: float32 [T, 10], the last losses at each t, in no order that matters.
      counts: int32 [T], how many there have been.
    """

    losses: Array
    counts: Array


def make_timestep_sampler(name: str, num_timesteps: int) -> TimestepSampler:
    """The way to draw t called `name`, a key of TIMESTEP_SAMPLERS, for a chain of T steps.

    Raises:
      ValueError: unknown name, or T < 1.
    """
    if name not in TIMESTEP_SAMPLERS:
        raise ValueError(f"unknown timestep sampler {name!r}: choose one of {', '.join(TIMESTEP_SAMPLERS)}")
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps is {num_timesteps}: a diffusion process has at least 1 step")
    return TIMESTEP_SAMPLERS[name](num_timesteps)


def _uniform(num_timesteps: int) -> TimestepSampler:
    def draw(state: tuple, key: Array, batch_size: int) -> tuple[Array, Array]:
        return jax.random.randint(key, (batch_size,), 0, num_timesteps), jnp.ones(batch_size)

    return TimestepSampler(init=tuple, draw=draw, update=_stateless_update)


def _low_discrepancy(num_timesteps: int) -> TimestepSampler:
    def draw(state: tuple, key: Array, batch_size: int) -> tuple[Array, Array]:
        # In whole numbers, u = r / (T B): each t is exactly as probable as any other.
        grid = num_timesteps * batch_size
        if grid > 2**30:
            raise ValueError(
                f"{num_timesteps} timesteps and a batch of {batch_size} are more than low_discrepancy can count: "
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
        by_loss = _loss_proportional_probs(state)
        mix_key, uniform_key, loss_key = jax.random.split(key, 3)
        # The uniform share has draws of its own: in one table with the rest it would be lost in float32's rounding.
        from_uniform = jax.random.bernoulli(mix_key, UNIFORM_FRACTION, (batch_size,))
        uniform = jax.random.randint(uniform_key, (batch_size,), 0, num_timesteps)
        t = jnp.where(from_uniform, uniform, jax.random.choice(loss_key, num_timesteps, (batch_size,), p=by_loss))
        p = (1 - UNIFORM_FRACTION) * by_loss[t] + UNIFORM_FRACTION / num_timesteps
        return t, 1 / (num_timesteps * p)

    def update(state: LossHistory, t: Array, losses: Array) -> LossHistory:
        # Losses enter in the order of the batch, but all at once: `rank` is how many of the same t come before.
        order = jnp.argsort(t, stable=True)
        t, losses = t[order], losses[order].astype(jnp.float32)
        first, after = (jnp.searchsorted(t, t, side=side).astype(jnp.int32) for side in ("left", "right"))
        rank = jnp.arange(t.shape[0], dtype=jnp.int32) - first
        slot = (state.counts.at[t].get(mode="clip") + rank) % HISTORY
        # Of more than 10 at one t only the last 10 stay, so that no place is written twice.
        place = jnp.where(after - first - rank > HISTORY, num_timesteps, t)
        return LossHistory(
            losses=state.losses.at[place, slot].set(losses, mode="drop"), counts=state.counts.at[t].add(1, mode="drop")
        )

    return TimestepSampler(init=init, draw=draw, update=update)


def _loss_proportional_probs(state: LossHistory) -> Array:
    """p(t) of second_moment without its uniform share, float32 [T]: uniform until every t has its history."""
    uniform = jnp.full(state.counts.shape, 1 / state.counts.shape[0], jnp.float32)
    root = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
    total = jnp.sum(root)
    ready = jnp.all(state.counts >= HISTORY) & (total > 0)
    return jnp.where(ready, root / jnp.where(ready, total, 1.0), uniform)


def second_moment_probabilities(state: LossHistory) -> Array:
    """p(t) with which second_moment draws, float32 [T]. IDDPM 2102.09672, eq. 18."""
    return (1 - UNIFORM_FRACTION) * _loss_proportional_probs(state) + UNIFORM_FRACTION / state.counts.shape[0]


TIMESTEP_SAMPLERS: dict[str, Callable[[int], TimestepSampler]] = {
    "uniform": _uniform,
    "low_discrepancy": _low_discrepancy,
    "second_moment": _second_moment,
}
