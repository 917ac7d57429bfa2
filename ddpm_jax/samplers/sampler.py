"""The sampler interface, and the `lax.scan` that runs any sampler.

A sampler takes K steps from noise to an image. Step i = 0 .. K-1 starts at index K-1-i of its (respaced) schedule. It calls
the network only as `denoise_fn(x_t, t) -> model_output`, with t int32 [B] in the training chain. All its randomness comes
from one key per image, so an image does not depend on the rest of its batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import gaussian
from ddpm_jax.diffusion.parameterization import DenoiseFn
from ddpm_jax.diffusion.schedules import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler. Built by `SAMPLERS[name]`.

    Attributes:
      schedule: the sampling chain; its `timesteps` are the network's t.
      step: (denoise_fn, x_t [B, H, W, C], carry, index int32, keys [B]) -> (x_prev, pred_xstart, carry); index counts down
        from num_steps - 1 to 0.
      init_carry: x_T -> the initial carry of a multistep method; () by default.
      extra_nfe: network evaluations of all steps beyond one per step; negative if some steps need none.
      total_steps: number of steps if it is not one per index of the schedule.
    """

    schedule: NoiseSchedule
    step: Callable[[DenoiseFn, jax.Array, Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array, Any]]
    init_carry: Callable[[jax.Array], Any] = lambda x_T: ()
    extra_nfe: int = 0
    total_steps: int | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps from noise to image."""
        return self.schedule.num_timesteps if self.total_steps is None else self.total_steps

    @property
    def nfe(self) -> int:
        """Number of network evaluations per image."""
        return self.num_steps + self.extra_nfe


@flax.struct.dataclass
class SamplerState:
    """State of a batch during sampling: a pytree whose arrays have the batch as leading axis.

    Attributes:
      x: [B, H, W, C], x_t; after the last step, samples of x_0.
      carry: the sampler's carry.
      saved_x: [B, S, H, W, C], x_t before each saved step.
      saved_pred_xstart: [B, S, H, W, C], pred_xstart at each saved step.
    """

    x: jax.Array
    carry: Any
    saved_x: jax.Array
    saved_pred_xstart: jax.Array


class GivenNoise:
    """Replaces the keys of a step by its noise, for programs that get the noise as an argument.

    Attributes:
      noise: standard normal [B, H, W, C].
      draws: how often the step has taken noise; a second time, it would be the same.
    """

    def __init__(self, noise: jax.Array):
        self.noise, self.draws = noise, 0


def per_image_noise(keys: jax.Array | GivenNoise, purpose: int | jax.Array, shape: Sequence[int]) -> jax.Array:
    """Standard normal `[B, *shape]`, independent for each key; `purpose` 0 is x_T, i + 1 the noise of step i."""
    if isinstance(keys, GivenNoise):
        keys.draws += 1
        return keys.noise
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, purpose), shape))(keys)


def init_state(sampler: Sampler, keys: jax.Array, image_shape: Sequence[int], *, num_saved: int = 0) -> SamplerState:
    """The initial state: pure noise.

    Args:
      sampler: built by `SAMPLERS[name]`.
      keys: [B], one per image.
      image_shape: (H, W, C).
      num_saved: S, the number of `save_steps` of `run_steps`.
    """
    return init_state_from(sampler, per_image_noise(keys, 0, image_shape), num_saved=num_saved)


def init_state_from(sampler: Sampler, x: jax.Array, *, num_saved: int = 0) -> SamplerState:
    """As `init_state`, but from a given x [B, H, W, C], floating: an image to invert, or given noise."""
    buffer = jnp.stack([x] * num_saved, axis=1) if num_saved else x[:, None][:, :0]
    return SamplerState(x=x, carry=sampler.init_carry(x), saved_x=buffer, saved_pred_xstart=buffer)


def init_state_sdedit(sampler: Sampler, keys: jax.Array, x_start: jax.Array) -> SamplerState:
    """As `init_state`, but from an image noised to the first level of the chain. Meng et al. 2108.01073 (SDEdit).

    Use a chain that starts at an intermediate t (`schedules.respace` to small t). A chain from T-1 also preserves some of the
    image unless its last ᾱ is 0, and more so with leading spacing of few steps, which starts well below T-1.

    Args:
      sampler: over such a chain.
      keys: [B], one per image.
      x_start: [B, H, W, C] in [-1, 1].
    """
    t = jnp.full(x_start.shape[:1], sampler.schedule.num_timesteps - 1)
    noise = per_image_noise(keys, 0, x_start.shape[1:])
    return init_state_from(sampler, gaussian.q_sample(sampler.schedule, x_start, t, noise))


def run_steps(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    state: SamplerState,
    keys: jax.Array | None,
    *,
    first_step: int | jax.Array,
    count: int,
    save_steps: Sequence[int] = (),
) -> SamplerState:
    """Take steps first_step .. first_step + count - 1 under one `lax.scan`, without those beyond the last of the chain.

    Args:
      sampler: built by `SAMPLERS[name]`.
      denoise_fn: (x_t [B, H, W, C], t int32 [B]) -> model output.
      state: from `init_state` or an earlier `run_steps`.
      keys: [B], the keys of `init_state`; ignored by deterministic samplers.
      first_step: number of the first step; may be traced, so that one compilation serves all chunks.
      count: number of steps; the last chunk of a chain may have fewer.
      save_steps: the S step numbers whose x_t and pred_xstart are saved; the same in each call of a chain. Memory
        grows with S, not with the number of steps.
    """
    chosen = {"first_step": first_step, "count": count, "save_steps": save_steps}
    return _scan(sampler, denoise_fn, (state, None), keys, **chosen)[0]


def run_steps_with_prediction(
    sampler: Sampler, denoise_fn: DenoiseFn, state: SamplerState, keys: jax.Array | None, **chosen: Any
) -> tuple[SamplerState, jax.Array]:
    """As `run_steps`, and pred_xstart [B, H, W, C] of the last step taken."""
    return _scan(sampler, denoise_fn, (state, jnp.zeros_like(state.x)), keys, **chosen)


def _scan(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    start: tuple[SamplerState, jax.Array | None],
    keys: jax.Array | None,
    *,
    first_step: int | jax.Array,
    count: int,
    save_steps: Sequence[int] = (),
) -> tuple[SamplerState, Any]:
    """The scan of `run_steps`, from a state and an array for the last pred_xstart; None if it is not needed."""
    # Step number -> slot; S, one past the end, for steps that are not saved: such a write is dropped.
    slots = np.full(sampler.num_steps, len(save_steps), np.int32)
    slots[list(save_steps)] = np.arange(len(save_steps))

    def take(carry: tuple[SamplerState, Any], i: jax.Array) -> tuple[SamplerState, Any]:
        state, last = carry
        index = sampler.num_steps - 1 - i
        x, pred_xstart, solver_carry = sampler.step(denoise_fn, state.x, state.carry, index, keys)
        saved_x, saved_pred_xstart = state.saved_x, state.saved_pred_xstart
        if len(save_steps):
            slot = jnp.asarray(slots)[i]
            saved_x = saved_x.at[:, slot].set(state.x, mode="drop")
            saved_pred_xstart = saved_pred_xstart.at[:, slot].set(pred_xstart, mode="drop")
        taken = SamplerState(x=x, carry=solver_carry, saved_x=saved_x, saved_pred_xstart=saved_pred_xstart)
        return taken, None if last is None else pred_xstart

    def body(carry: tuple[SamplerState, Any], i: jax.Array) -> tuple[tuple[SamplerState, Any], None]:
        if sampler.num_steps % count == 0:
            return take(carry, i), None
        return jax.lax.cond(i < sampler.num_steps, take, lambda carry, i: carry, carry, i), None

    steps = first_step + jnp.arange(count, dtype=jnp.int32)
    return jax.lax.scan(body, start, steps)[0]


def sample(
    sampler: Sampler, denoise_fn: DenoiseFn, keys: jax.Array, image_shape: Sequence[int], *, save_steps: Sequence[int] = ()
) -> SamplerState:
    """Run all steps from noise to images, one image per key. Arguments as in `init_state` and `run_steps`."""
    state = init_state(sampler, keys, image_shape, num_saved=len(save_steps))
    return run_steps(sampler, denoise_fn, state, keys, first_step=0, count=sampler.num_steps, save_steps=save_steps)
