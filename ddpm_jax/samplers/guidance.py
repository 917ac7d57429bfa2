"""Classifier-free guidance. Ho & Salimans 2207.12598.

A class-conditional network trained with label dropout can predict both for a class c and without a class, ∅. With scale w (1
is no guidance) the guided output is

    out_w = out(x_t, ∅) + w (out(x_t, c) - out(x_t, ∅))                                     eq. 6, where w is 1 + w
    out   = φ out_w std(out(x_t, c)) / std(out_w) + (1 - φ) out_w                           Lin et al. 2305.08891, eqs. 15, 16

eps, x_start and v are affine functions of each other at a given x_t, so the first line is equivalent for all three. The
second, with the rescale φ of v or eps, prevents overexposed images at large w. Guidance may be limited to an interval of
timesteps (Kynkäänniemi et al. 2404.07724): near pure noise it reduces diversity, near the image it has no effect.

Both outputs come from one network call with a doubled batch. Outside the interval only the conditional one is computed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import conditioning
from ddpm_jax.diffusion.parameterization import DenoiseFn

ConditionalDenoiseFn = Callable[[jax.Array, jax.Array, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """CFG scale, timestep interval and rescale.

    Attributes:
      scale: w >= 0; 0 is unconditional, 1 conditional without guidance.
      first_t: first guided timestep of the training chain.
      last_t: last guided timestep; first_t = 0 and last_t = T-1 guide all of them.
      rescale: φ, 0..1.
      num_channels: C of the image. A learned variance in the channels after these is the conditional one.

    Raises:
      ValueError: a value out of range.
    """

    scale: float
    first_t: int
    last_t: int
    rescale: float
    num_channels: int

    def __post_init__(self) -> None:
        if not (0 <= self.scale < math.inf and 0 <= self.rescale <= 1 and 0 <= self.first_t <= self.last_t):
            raise ValueError(
                f"guidance of scale {self.scale:g}, rescale {self.rescale:g}, timesteps {self.first_t} to {self.last_t} is out "
                "of range: the scale is finite and 0 or more, the rescale from 0 to 1, and the timesteps ascend from 0"
            )


def guided_timesteps(guidance_interval: Sequence[float], num_timesteps: int) -> tuple[int, int]:
    """The first and the last t of a chain of T steps inside an interval (low, high) in 0..1; 0 is the image.

    Raises:
      ValueError: no timestep is inside.
    """
    low, high = guidance_interval
    first_t, last_t = math.ceil(low * (num_timesteps - 1)), math.floor(high * (num_timesteps - 1))
    if first_t > last_t:
        raise ValueError(f"guidance_interval is {(low, high)}: none of the {num_timesteps} timesteps is in it; make it wider")
    return first_t, last_t


def classifier_free_guidance(network: ConditionalDenoiseFn, cond: Any, null_cond: Any, guidance: Guidance) -> DenoiseFn:
    """The guided network, as a denoise_fn for samplers.

    Args:
      network: (x_t [N, H, W, C], t int32 [N], cond) -> model output [N, H, W, C or 2C].
      cond: pytree of arrays [B, ...].
      null_cond: the condition ∅, a pytree of arrays without the batch axis.
      guidance: scale, interval and rescale.

    Returns:
      (x_t [B, H, W, C], t int32 [B], the same for all) -> model output.
    """

    def guided(x_t: jax.Array, t: jax.Array) -> jax.Array:
        nulls = conditioning.replace_by_null(cond, null_cond, jnp.ones(x_t.shape[0], bool))
        x_t, t, both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (x_t, t, cond), (x_t, t, nulls))
        conditional, unconditional = jnp.split(network(x_t, t, both), 2)
        return cfg_combine(conditional, unconditional, guidance)

    def denoise_fn(x_t: jax.Array, t: jax.Array) -> jax.Array:
        inside = (t[0] >= guidance.first_t) & (t[0] <= guidance.last_t)  # all images of a batch have the same t
        return jax.lax.cond(inside, guided, lambda x_t, t: network(x_t, t, cond), x_t, t)

    return denoise_fn


def cfg_combine(conditional: jax.Array, unconditional: jax.Array, guidance: Guidance) -> jax.Array:
    """The two equations above for model outputs [B, H, W, C or 2C] -> the guided output, of the same shape."""
    channels = guidance.num_channels
    c, u, variance_output = conditional[..., :channels], unconditional[..., :channels], conditional[..., channels:]
    out = u + guidance.scale * (c - u)
    if guidance.rescale:
        std = jnp.std(out, axis=(1, 2, 3), keepdims=True)
        factor = jnp.std(c, axis=(1, 2, 3), keepdims=True) / jnp.maximum(std, 1e-12)
        out = out * (guidance.rescale * factor + (1 - guidance.rescale))
    return jnp.concatenate([out, variance_output], axis=-1)
