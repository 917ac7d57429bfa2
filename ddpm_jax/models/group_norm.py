"""Group norm with float32 statistics: in one pass over the input on GPUs, Linen's on other platforms, on TPUs with one pass.

Group norm (Wu and He 1803.08494) is

    y = scale r (x - mean) + bias,    r = 1 / sqrt(var + eps),    var = E[x^2] - E[x]^2

with the mean and the variance of the channel's group. In one pass, a single reduction sums x and x^2 over the pixels of each
channel, and the channels of a group are added afterwards. With S the sum over pixels and G the sum over a group, of N numbers
per image, the gradient is

    dbias = sum_B S[dy]        dscale = sum_B r S[dy (x - mean)]
    dx = scale r dy - r^3 / N G[scale S[dy (x - mean)]] (x - mean) - r / N G[scale S[dy]]

again with a single reduction over the pixels. Linen's norm reads bfloat16 x twice for the variance, reduces over the few
channels of a group, and JAX's gradient of it is several more reductions.

`norm_swish` is the norm of x + offset, [B, C], with a swish. The gradient of the offset is the sum of dx over the pixels,

    S[dx] = scale r S[dy] - r^3 / N G[scale S[dy (x - mean)]] (S[x] - P mean) - P r / N G[scale S[dy]]

for P pixels, which needs no reduction. The gradient of a bias in front of the norm is its sum over the images.

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
    linen = functools.partial(linen_norm, groups=groups, epsilon=epsilon)
    one_pass = functools.partial(one_pass_norm, groups=groups, epsilon=epsilon)
    on_tpus = functools.partial(linen, fast_variance=True)
    return jax.lax.platform_dependent(x, scale, bias, cuda=one_pass, rocm=one_pass, tpu=on_tpus, default=linen)


def linen_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float, fast_variance: bool = False
) -> jax.Array:
    """`group_norm` by Linen. For bfloat16 the variance takes a second pass over x, unless `fast_variance`."""
    fast = fast_variance or x.dtype == jnp.float32
    norm = nn.GroupNorm(groups, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=fast, parent=None)
    return cast(jax.Array, norm.apply({"params": {"scale": scale, "bias": bias}}, x))


def one_pass_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """`group_norm` in one pass, with JAX's derivatives."""
    scale, bias = _per_image(x, scale, bias)
    return _forward(x, None, scale, bias, groups, epsilon, False)[0]


def training_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float) -> jax.Array:
    """`one_pass_norm` with the gradient above, which has fewer kernels than JAX's; it has no forward-mode derivative."""
    scale, bias = _per_image(x, scale, bias)
    return _training_norm(x, None, scale, bias, groups, epsilon, False)


def norm_swish(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    groups: int,
    epsilon: float,
    offset: jax.Array | None = None,
    scale_by: jax.Array | float = 1.0,
    shift: jax.Array | float = 0.0,
) -> jax.Array:
    """swish(training_norm(x + offset) * scale_by + shift), with fewer kernels.

    Args:
      x, scale, bias, groups, epsilon: as for `group_norm`.
      offset, scale_by, shift: float32 [B, C].

    Returns:
      float32 [B, H, W, C].
    """
    scale, bias = _per_image(x, scale[None] * scale_by, bias[None] * scale_by + shift)
    return _training_norm(x, offset, scale, bias, groups, epsilon, True)


def _per_image(x: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
    """[C] or [B, C] -> [B, C]."""
    return [jnp.broadcast_to(array, (x.shape[0], x.shape[3])) for array in arrays]


def _group_sum(values: jax.Array, groups: int) -> jax.Array:
    """[B, C] -> [B, G]."""
    batch, channels = values.shape  # the batch may be symbolic (`jax.export`)
    return _sum_of_slices(values.reshape(batch, groups, channels // groups), 2)


def _sum_of_slices(values: jax.Array, axis: int) -> jax.Array:
    """The sum over an axis. Slices are added since a reduction would be a kernel of its own on a GPU."""
    return functools.reduce(jnp.add, (jax.lax.index_in_dim(values, index, axis, False) for index in range(values.shape[axis])))


def _by_channel(values: jax.Array, channels: int) -> jax.Array:
    """[B, G] -> [B, C]."""
    return jnp.repeat(values, channels // values.shape[1], axis=1)


def _shifted(x: jax.Array, offset: jax.Array | None) -> jax.Array:
    """float32 x + offset."""
    wide = x.astype(jnp.float32)
    return wide if offset is None else wide + offset[:, None, None]


def _forward(
    x: jax.Array, offset: jax.Array | None, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, swish: bool
) -> tuple[jax.Array, tuple]:
    """The norm of x + offset, or its swish, for offset, scale and bias [B, C]; and what the gradient needs."""
    channels, group_size = x.shape[3], x[0].size // groups
    wide = _shifted(x, offset)
    sums = jnp.sum(wide, axis=(1, 2))
    mean = _group_sum(sums, groups) / group_size
    mean_of_squares = _group_sum(jnp.sum(jnp.square(wide), axis=(1, 2)), groups) / group_size
    r = jax.lax.rsqrt(jnp.maximum(mean_of_squares - jnp.square(mean), 0.0) + epsilon)
    # Two factors instead of the product scale r, which would be a kernel of its own on a GPU.
    normalized = (wide - _by_channel(mean, channels)[:, None, None]) * _by_channel(r, channels)[:, None, None]
    y = normalized * scale[:, None, None] + bias[:, None, None]
    return nn.swish(y) if swish else y, (x, offset, scale, bias, sums, mean, r)


def _backward(groups: int, epsilon: float, swish: bool, residuals: tuple, gradient: jax.Array) -> tuple:
    del epsilon
    x, offset, scale, bias, sums, mean, r = residuals
    channels, pixels, group_size = x.shape[3], x.shape[1] * x.shape[2], x[0].size // groups
    mean, r = _by_channel(mean, channels), _by_channel(r, channels)
    if offset is not None:  # else XLA would compute x + offset before, and store it in float32
        x = jax.lax.optimization_barrier(x)

    def centered_and_dy(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        centered = _shifted(x, offset) - mean[:, None, None]
        if not swish:
            return centered, gradient
        y = centered * r[:, None, None] * scale[:, None, None] + bias[:, None, None]
        gate = jax.nn.sigmoid(y)
        return centered, gradient * gate * (1 + y * (1 - gate))

    centered, dy = centered_and_dy(x)
    # Without the barrier, XLA would store dy for dx, and sum over the images again instead of adding these sums.
    x, *parts = jax.lax.optimization_barrier((x, _pixel_sums(dy), _pixel_sums(dy * centered)))
    sum_dy, sum_dy_x = (_sum_of_slices(part, 1) for part in parts)
    centered, dy = centered_and_dy(x)
    of_x = -_by_channel(_group_sum(sum_dy_x * scale, groups), channels) * r**3 / group_size
    constant = -_by_channel(_group_sum(sum_dy * scale, groups), channels) * r / group_size
    dx = dy * (r * scale)[:, None, None] + centered * of_x[:, None, None] + constant[:, None, None]
    sum_dx = sum_dy * r * scale + of_x * (sums - pixels * mean) + pixels * constant
    return dx.astype(x.dtype), None if offset is None else sum_dx, sum_dy_x * r, sum_dy


def _pixel_sums(values: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, parts, C], sums over parts of the pixels."""
    batch, height, width, channels = values.shape
    # Into a sum for a few channels, XLA fuses no swish: it would have too few threads. The sum of halves has twice as many.
    parts = 2 if channels <= 256 and height * width % 2 == 0 else 1
    return jnp.sum(values.reshape(batch, parts, height * width // parts, channels), axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _training_norm(
    x: jax.Array, offset: jax.Array | None, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, swish: bool
) -> jax.Array:
    return _forward(x, offset, scale, bias, groups, epsilon, swish)[0]


_training_norm.defvjp(_forward, _backward)
