"""Group norm in the form that takes a CPU the least time: equal to the plain one but for float32's rounding.

The norm of a group is one multiplication and one addition per channel,

    y = a x + b,    a = scale / sqrt(var + eps),    b = bias - a mean

with `mean` and `var` = E[x^2] - E[x]^2 of the channel's group. Sums over pixels are taken by channel, and a matmul with the
blocks of ones that the groups are shares them within each group. So every loop over pixels runs along whole channels,
which vectorises; groups of a few channels do not. JAX's gradient of this has the same shape: sums by channel, then
dx = a dy + c x + d.
"""

import jax
import jax.numpy as jnp
import numpy as np


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """x float32 [B, H, W, C], scale and bias [C] -> float32 [B, H, W, C]; `groups` divides C."""
    batch, height, width, channels = x.shape
    group = np.arange(channels) // (channels // groups)
    share = jnp.asarray(group[:, None] == group, jnp.float32) / (height * width * (channels // groups))
    pixels = x.reshape(batch, height * width, channels)
    mean = jnp.sum(pixels, axis=1) @ share
    variance = jnp.sum(jnp.square(pixels), axis=1) @ share - jnp.square(mean)
    a = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + epsilon) * scale[None]
    b = bias[None] - a * mean
    return x * a[:, None, None] + b[:, None, None]
