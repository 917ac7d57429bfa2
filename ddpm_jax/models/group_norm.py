"""Group norm with float32 statistics: in one pass over the input on GPUs, Linen's on other platforms.

Group norm (Wu and He 1803.08494) is

    y = scale r (x - mean) + bias,    r = 1 / sqrt(var + eps),    var = E[x^2] - E[x]^2

with the mean and the variance of the channel's group. In one pass, a single reduction sums x and x^2 over the pixels of each
channel, and the channels of a group are added afterwards. With S the sum over pixels and G the sum over a group, of N numbers
per image, the gradient is

    dbias = sum_B S[dy]        dscale = sum_B r S[dy (x - mean)]
    dx = scale r dy - r^3 / N G[scale S[dy (x - mean)]] (x - mean) - r / N G[scale S[dy]]

again with a single reduction over the pixels. Linen's norm reads bfloat16 x twice for the variance, reduces over the few
channels of a group, and JAX's gradient of it is several more reductions.

E[x^2] - E[x]^2 in float32 has an error of about 1e-7 E[x^2]. Rounding x to bfloat16 changes each value by up to 4e-3 of x,
so the difference costs a bfloat16 network no digits (`tests/models/test_group_norm.py` measures both).
"""

import functools
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """x [B, H, W, C], scale and bias float32 [C] -> float32 [B, H, W, C]; `groups` divides C."""
    linen, one_pass = (functools.partial(form, groups=groups, epsilon=epsilon) for form in (linen_norm, one_pass_norm))
    return jax.lax.platform_dependent(x, scale, bias, cuda=one_pass, rocm=one_pass, default=linen)


def linen_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """`group_norm` by Linen."""
    fast = x.dtype == jnp.float32  # for bfloat16, the variance takes a second pass
    norm = nn.GroupNorm(groups, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=fast, parent=None)
    return cast(jax.Array, norm.apply({"params": {"scale": scale, "bias": bias}}, x))


def one_pass_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """`group_norm` in one pass, with JAX's derivatives."""
    return _forward(x, scale, bias, groups, epsilon)[0]


def training_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """`one_pass_norm` with the gradient above, which has fewer kernels than JAX's; it has no forward-mode derivative."""
    return _training_norm(x, scale, bias, groups, epsilon)


def _group_sum(values: jax.Array, groups: int) -> jax.Array:
    """[B, C] -> [B, G]. Slices are added since a reduction would be a kernel of its own on a GPU."""
    batch, channels = values.shape  # the batch may be symbolic (`jax.export`)
    values = values.reshape(batch, groups, channels // groups)
    return functools.reduce(jnp.add, (values[:, :, index] for index in range(values.shape[2])))


def _by_channel(values: jax.Array, channels: int) -> jax.Array:
    """[B, G] -> [B, C]."""
    return jnp.repeat(values, channels // values.shape[1], axis=1)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> tuple[jax.Array, tuple]:
    channels, group_size = x.shape[3], x[0].size // groups
    wide = x.astype(jnp.float32)
    mean = _group_sum(jnp.sum(wide, axis=(1, 2)), groups) / group_size
    mean_of_squares = _group_sum(jnp.sum(jnp.square(wide), axis=(1, 2)), groups) / group_size
    r = jax.lax.rsqrt(jnp.maximum(mean_of_squares - jnp.square(mean), 0.0) + epsilon)
    # Two factors instead of the product scale r, which would be a kernel of its own on a GPU.
    normalized = (wide - _by_channel(mean, channels)[:, None, None]) * _by_channel(r, channels)[:, None, None]
    return normalized * scale[None, None, None] + bias[None, None, None], (x, scale, mean, r)


def _backward(groups: int, epsilon: float, residuals: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, scale, mean, r = residuals
    channels, group_size = x.shape[3], x[0].size // groups
    mean, r, scale = _by_channel(mean, channels), _by_channel(r, channels), scale[None]
    centered = x.astype(jnp.float32) - mean[:, None, None]
    sum_dy, sum_dy_x = jnp.sum(dy, axis=(1, 2)), jnp.sum(dy * centered, axis=(1, 2))
    of_x = -_by_channel(_group_sum(sum_dy_x * scale, groups), channels) * r**3 / group_size
    constant = -_by_channel(_group_sum(sum_dy * scale, groups), channels) * r / group_size
    dx = dy * (r * scale)[:, None, None] + centered * of_x[:, None, None] + constant[:, None, None]
    return dx.astype(x.dtype), jnp.sum(sum_dy_x * r, axis=0), jnp.sum(sum_dy, axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _training_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    return _forward(x, scale, bias, groups, epsilon)[0]


_training_norm.defvjp(_forward, _backward)
