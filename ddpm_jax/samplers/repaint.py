"""RePaint: fill in what is missing of an image, with a network that was never told of masks. Lugmayr et al. 2201.09865.

A step down from entry k of the chain to the next, k-1, takes the missing pixels from any sampler and the known ones, m,
from the image x_0 with as much noise as entry k-1 has:

    x_{k-1} = m (sqrt(ᾱ_{k-1}) x_0 + sqrt(1 - ᾱ_{k-1}) z) + (1 - m) step(x_k)                                  eq. 8

Each half is right by itself, but the known one was drawn without looking at the other. So the walk goes back up now and then,

    x_{k+1} = sqrt(α_{k+1}) x_k + sqrt(β_{k+1}) z                                                              eq. 1

and down again, in which the network brings both halves together: `jump_length` steps up, `resampling` times down through
each stretch in all (algorithm 1; section 4.2). Steps up ask the network nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.samplers.sampler import Sampler, SamplerState, init_state, per_image_noise


class InpaintingInputs(NamedTuple):
    """What is known of each image of a batch; the memory of the sampler.

    Attributes:
      x_start: [B, H, W, C] in [-1, 1]; anything where the mask is 0.
      mask: [B, H, W, 1], 1 where the image is known and 0 where it is missing.
    """

    x_start: jax.Array
    mask: jax.Array


def resampling_schedule(num_steps: int, jump_length: int, resampling: int) -> list[tuple[int, bool]]:
    """The moves from noise to image: (entry that one sets out from, whether down), the last one from entry 0 down.

    Args:
      num_steps: K entries of the chain, K-1 being the noisiest.
      jump_length: 1 or more.
      resampling: 1 or more; 1 goes straight down.
    """
    jumps = {} if resampling == 1 else dict.fromkeys(range(0, num_steps - jump_length, jump_length), resampling - 1)
    moves, entry = [], num_steps - 1
    while entry > 0:
        moves.append((entry, True))
        entry -= 1
        if jumps.get(entry, 0):
            jumps[entry] -= 1
            moves += [(entry + up, False) for up in range(jump_length)]
            entry += jump_length
    return [*moves, (0, True)]


def default_jump_length(num_steps: int) -> int:
    """num_steps / 25, at least 1: the paper's 10 in a chain of 250 (section 4.2), for chains of other lengths.

    In a shorter chain 10 steps back take away so much of what was filled in that the next ones start from nearly nothing.
    """
    return max(1, round(num_steps / 25))


def repaint(inner: Sampler, *, jump_length: int = 0, resampling: int = 10) -> Sampler:
    """Wrap a sampler. A walk begins with `start_filling`.

    Args:
      inner: one that asks the network once a step and remembers nothing between steps: ancestral or ddim.
      jump_length: steps up at a time, 1 or more; 0 for `default_jump_length`.
      resampling: how often so many steps are taken down, 1 or more; 1 never goes up.

    Raises:
      ValueError: one of them out of range, or another sampler.
    """
    if jump_length < 0 or resampling < 1:
        raise ValueError(f"jump_length is {jump_length} and resampling {resampling}: they must be 0 or more and 1 or more")
    jump_length = jump_length or default_jump_length(inner.num_steps)
    remembers = jax.tree.leaves(jax.eval_shape(inner.init_carry, jnp.zeros((1, 1, 1, 1))))
    if remembers or inner.extra_nfe:
        raise ValueError(
            "inpainting goes back and forth in the chain, which only ancestral and ddim can follow: set sampler=ddim"
        )
    schedule = inner.schedule
    moves = resampling_schedule(inner.num_steps, jump_length, resampling)
    entries, down = np.array([entry for entry, _ in moves], np.int32), np.array([down for _, down in moves])
    signal, spread = schedule.alphas_cumprod_prev, np.append(0.0, schedule.sqrt_one_minus_alphas_cumprod[:-1])

    def step(denoise_fn, x: jax.Array, known: InpaintingInputs, index: jax.Array, keys: jax.Array):
        move = len(moves) - 1 - index
        entry = jnp.asarray(entries)[move]
        # Every visit to an entry has noise of its own.
        step_keys, keys = (jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2 * move + i + 1) for i in range(2))
        noise = per_image_noise(keys, 1, x.shape[1:])

        def go_down(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            t = jnp.full(x.shape[:1], entry)
            filled, pred_xstart, _ = inner.step(denoise_fn, x, (), entry, step_keys)
            kept = extract(np.sqrt(signal), t, x) * known.x_start + extract(spread, t, x) * noise
            return known.mask * kept + (1 - known.mask) * filled, pred_xstart

        def go_up(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            t = jnp.full(x.shape[:1], entry + 1)
            x_next = extract(np.sqrt(schedule.alphas), t, x) * x + extract(np.sqrt(schedule.betas), t, x) * noise
            return x_next, known.x_start

        x, pred_xstart = jax.lax.cond(jnp.asarray(down)[move], go_down, go_up, x)
        return x, pred_xstart, known

    return Sampler(schedule=schedule, step=step, length=len(moves), extra_nfe=-int((~down).sum()))


def init_inpainting_state(sampler: Sampler, keys: jax.Array, known: InpaintingInputs, *, keep: int = 0) -> SamplerState:
    """Pure noise [B, H, W, C], and what is known of the images. Arguments as in `sampler.start`."""
    return init_state(sampler, keys, known.x_start.shape[1:], keep=keep).replace(memory=known)
