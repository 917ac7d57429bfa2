"""What a sampler is, and the one `lax.scan` that runs any of them.

A sampler walks a chain of K steps from noise to an image. Step i = 0 .. K-1 stands at index K-1-i of its (respaced)
schedule. It sees the network only as `denoise_fn(x_t, t) -> model_output`, with t int32 [B] on the scale the network
was trained on. All its randomness comes from one key per image: image b of a batch is the same picture whatever
stands beside it.
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
    """A way back from noise. Built by `SAMPLERS[name]`.

    Attributes:
      schedule: the chain that is walked, one entry per step; its `timesteps` are what the network is given.
      step: (denoise_fn, x_t [B, H, W, C], memory, index int32, keys [B]) -> (x_prev, pred_xstart, memory).
      init_carry: x_T -> what a multistep method carries from step to step; nothing by default.
      extra_nfe: of the network, over all steps together, beyond one a step; below 0 where some steps need none.
      length: steps from noise to image, where they are not one for each entry of the schedule.
    """

    schedule: NoiseSchedule
    step: Callable[[DenoiseFn, jax.Array, Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array, Any]]
    init_carry: Callable[[jax.Array], Any] = lambda x_T: ()
    extra_nfe: int = 0
    length: int | None = None

    @property
    def num_steps(self) -> int:
        """K, the number of steps from noise to image."""
        return self.schedule.num_timesteps if self.length is None else self.length

    @property
    def evaluations(self) -> int:
        """Network evaluations per image, all steps together."""
        return self.num_steps + self.extra_nfe


@flax.struct.dataclass
class SamplerState:
    """Where a batch of images stands on its way: a pytree, batch first in every array that has a batch.

    Attributes:
      x: [B, H, W, C], the images so far; after the last step, samples of x_0.
      memory: the sampler's own.
      saved_x: [B, S, H, W, C], x_t before each kept step.
      saved_pred_xstart: [B, S, H, W, C], the guess of x_start at each kept step.
    """

    x: jax.Array
    memory: Any
    saved_x: jax.Array
    saved_pred_xstart: jax.Array


def per_image_noise(keys: jax.Array, purpose: int | jax.Array, shape: Sequence[int]) -> jax.Array:
    """Standard normal `[B, *shape]`, one independent draw per key; `purpose` 0 is x_T, i + 1 the noise of step i."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, purpose), shape))(keys)


def init_state(sampler: Sampler, keys: jax.Array, image_shape: Sequence[int], *, keep: int = 0) -> SamplerState:
    """Pure noise, with room for `keep` intermediate results.

    Args:
      sampler: built by `SAMPLERS[name]`.
      keys: [B], one per image.
      image_shape: (H, W, C).
      keep: how many intermediate results S `advance` will be asked to keep.
    """
    return init_state_from(sampler, per_image_noise(keys, 0, image_shape), keep=keep)


def init_state_from(sampler: Sampler, x: jax.Array, *, keep: int = 0) -> SamplerState:
    """As `start`, but from x [B, H, W, C], floating, in place of pure noise: an image to invert, or noise of one's own."""
    room = jnp.stack([x] * keep, axis=1) if keep else x[:, None][:, :0]
    return SamplerState(x=x, memory=sampler.init_carry(x), saved_x=room, saved_pred_xstart=room)


def init_state_sdedit(sampler: Sampler, keys: jax.Array, x_start: jax.Array, *, keep: int = 0) -> SamplerState:
    """As `start`, but from an image with as much noise as the first step of the chain expects. Meng et al. 2108.01073 (SDEdit).

    A chain that begins in the middle (`schedules.respace` to the lower part of one) keeps what that much noise has left of the
    image and generates the rest. A whole chain keeps something too where its first ᾱ is not 0: leading spacing of few steps
    starts well below T-1. To keep nothing, use `start`.

    Args:
      sampler: over such a chain.
      keys: [B], one per image.
      x_start: [B, H, W, C] in [-1, 1].
      keep: as in `start`.
    """
    t = jnp.full(x_start.shape[:1], sampler.schedule.num_timesteps - 1)
    noise = per_image_noise(keys, 0, x_start.shape[1:])
    return init_state_from(sampler, gaussian.q_sample(sampler.schedule, x_start, t, noise), keep=keep)


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
    """Take steps first_step .. first_step + count - 1 under one `lax.scan`.

    Args:
      sampler: built by `SAMPLERS[name]`.
      denoise_fn: (x_t [B, H, W, C], t int32 [B]) -> model output.
      state: from `start` or an earlier `advance`.
      keys: [B], the keys given to `start`; a sampler that draws no noise does not read them.
      first_step: number of the first step; may be traced, so that one compilation serves every stretch of a chain.
      count: how many steps.
      save_steps: the S step numbers whose x_t and pred_xstart are kept; the same in each call of a chain. Memory
        grows with S, not with the number of steps.
    """
    # Step number -> its place among the kept; S, one past the end, where it is not kept: such a write is dropped.
    slots = np.full(sampler.num_steps, len(save_steps), np.int32)
    slots[list(save_steps)] = np.arange(len(save_steps))

    def body(state: SamplerState, i: jax.Array) -> tuple[SamplerState, None]:
        index = sampler.num_steps - 1 - i
        x, pred_xstart, memory = sampler.step(denoise_fn, state.x, state.memory, index, keys)
        saved_x, saved_pred_xstart = state.saved_x, state.saved_pred_xstart
        if len(save_steps):
            slot = jnp.asarray(slots)[i]
            saved_x = saved_x.at[:, slot].set(state.x, mode="drop")
            saved_pred_xstart = saved_pred_xstart.at[:, slot].set(pred_xstart, mode="drop")
        return SamplerState(x=x, memory=memory, saved_x=saved_x, saved_pred_xstart=saved_pred_xstart), None

    steps = first_step + jnp.arange(count, dtype=jnp.int32)
    return jax.lax.scan(body, state, steps)[0]


def sample(
    sampler: Sampler, denoise_fn: DenoiseFn, keys: jax.Array, image_shape: Sequence[int], *, save_steps: Sequence[int] = ()
) -> SamplerState:
    """The whole way from noise to images, one per key. Arguments as in `start` and `advance`."""
    state = init_state(sampler, keys, image_shape, keep=len(save_steps))
    return run_steps(sampler, denoise_fn, state, keys, first_step=0, count=sampler.num_steps, save_steps=save_steps)
