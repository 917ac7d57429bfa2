"""RePaint: inpainting with an unconditional network. Lugmayr et al. 2201.09865.

A denoising step from index k of the chain to k-1 takes the missing pixels from any sampler and the known ones, with mask m,
from the image x_0 noised to level k-1:

    x_{k-1} = m (sqrt(ᾱ_{k-1}) x_0 + sqrt(1 - ᾱ_{k-1}) z) + (1 - m) step(x_k)                                  eq. 8

The known half is sampled without regard to the other. To harmonize them, resampling repeatedly adds noise again,

    x_{k+1} = sqrt(α_{k+1}) x_k + sqrt(β_{k+1}) z                                                              eq. 1

and denoises again: `jump_length` noising steps at a time, so that each segment is denoised `resampling` times in all
(algorithm 1; section 4.2). Noising steps need no network evaluation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.samplers.sampler import Sampler, SamplerState, init_state, per_image_noise


class InpaintingInputs(NamedTuple):
    """The known pixels of each image; the carry of the sampler.

    Attributes:
      x_start: [B, H, W, C] in [-1, 1]; ignored where the mask is 0.
      mask: [B, H, W, 1], 1 for known and 0 for missing pixels.
    """

    x_start: jax.Array
    mask: jax.Array


def resampling_schedule(num_steps: int, jump_length: int, resampling: int) -> list[tuple[int, bool]]:
    """The moves from noise to image: (start index, whether it denoises); the last one denoises from index 0.

    Args:
      num_steps: K, length of the chain.
      jump_length: 1 or more.
      resampling: 1 or more; 1 never adds noise again.
    """
    jumps = {} if resampling == 1 else dict.fromkeys(range(0, num_steps - jump_length, jump_length), resampling - 1)
    moves, index = [], num_steps - 1
    while index > 0:
        moves.append((index, True))
        index -= 1
        if jumps.get(index, 0):
            jumps[index] -= 1
            moves += [(index + i, False) for i in range(jump_length)]
            index += jump_length
    return [*moves, (0, True)]


def default_jump_length(num_steps: int) -> int:
    """num_steps / 25, at least 1: the paper's 10 in a chain of 250 (section 4.2), for chains of other lengths.

    In a shorter chain, 10 noising steps would destroy most of the inpainted content.
    """
    return max(1, round(num_steps / 25))


def repaint(inner: Sampler, *, jump_length: int = 0, resampling: int = 10) -> Sampler:
    """Wrap a sampler for inpainting. Start with `init_inpainting_state`.

    Args:
      inner: a sampler with one network evaluation per step and no carry: ancestral or ddim.
      jump_length: noising steps at a time, 1 or more; 0 for `default_jump_length`.
      resampling: how often each segment is denoised, 1 or more; 1 never adds noise again.

    Raises:
      ValueError: an argument out of range, or another sampler.
    """
    if jump_length < 0 or resampling < 1:
        raise ValueError(f"jump_length is {jump_length} and resampling {resampling}: they must be at least 0 and 1")
    jump_length = jump_length or default_jump_length(inner.num_steps)
    has_carry = jax.tree.leaves(jax.eval_shape(inner.init_carry, jnp.zeros((1, 1, 1, 1))))
    if has_carry or inner.extra_nfe:
        raise ValueError("inpainting also adds noise, which only the samplers ancestral and ddim support: set sampler=ddim")
    schedule = inner.schedule
    moves = resampling_schedule(inner.num_steps, jump_length, resampling)
    indices, denoises = np.array([index for index, _ in moves], np.int32), np.array([denoise for _, denoise in moves])
    alpha_prev = np.sqrt(schedule.alphas_cumprod_prev)
    sigma_prev = np.append(0.0, schedule.sqrt_one_minus_alphas_cumprod[:-1])

    def step(denoise_fn, x: jax.Array, known: InpaintingInputs, index: jax.Array, keys: jax.Array):
        move = len(moves) - 1 - index
        index = jnp.asarray(indices)[move]
        # Each visit of an index has independent noise.
        step_keys, keys = (jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2 * move + i + 1) for i in range(2))
        noise = per_image_noise(keys, 1, x.shape[1:])

        def denoise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            t = jnp.full(x.shape[:1], index)
            generated, pred_xstart, _ = inner.step(denoise_fn, x, (), index, step_keys)
            noised = extract(alpha_prev, t, x) * known.x_start + extract(sigma_prev, t, x) * noise
            return known.mask * noised + (1 - known.mask) * generated, pred_xstart

        def add_noise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            t = jnp.full(x.shape[:1], index + 1)
            x_next = extract(np.sqrt(schedule.alphas), t, x) * x + extract(np.sqrt(schedule.betas), t, x) * noise
            return x_next, known.x_start

        x, pred_xstart = jax.lax.cond(jnp.asarray(denoises)[move], denoise, add_noise, x)
        return x, pred_xstart, known

    return Sampler(schedule=schedule, step=step, total_steps=len(moves), extra_nfe=-int((~denoises).sum()))


def init_inpainting_state(sampler: Sampler, keys: jax.Array, known: InpaintingInputs) -> SamplerState:
    """Pure noise [B, H, W, C], and the known pixels; keys [B]."""
    return init_state(sampler, keys, known.x_start.shape[1:]).replace(carry=known)
