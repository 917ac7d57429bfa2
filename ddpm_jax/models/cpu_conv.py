"""3x3 convolutions in the forms that take a CPU the least time: equal to the plain ones but for float32's rounding.

A CPU multiplies matrices near its ceiling, so what is left is to multiply less. Both forms add neighbours first:

**Winograd F(2, 3) along the width** (Winograd 1980; Lavin & Gray 1509.09308, section 4.1). Two neighbouring outputs of a filter
w0, w1, w2 over inputs d0 .. d3 take four products in place of six,

    m0 = (d0 - d2) w0             m1 = (d1 + d2) (w0 + w1 + w2) / 2
    m3 = (d1 - d3) w2             m2 = (d2 - d1) (w0 - w1 + w2) / 2
    y0 = m0 + m1 + m2             y1 = m1 - m2 - m3

where each product stands for a convolution down the height, of half the width. In two dimensions it would save more
products, and take sixteen small programs a layer to compile in place of four.

**Doubling, then convolving.** Of nine pixels under a filter over an image whose pixels were doubled only four differ. So
each of the four outputs that a pixel grows into is a 2x2 convolution of the small image: 16 products in place of 36.

Other platforms, other types than float32 and shapes that would not gain take the plain convolution. Which it is, is
settled when the program is lowered for a platform, not by where it is traced.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import linear_call

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NARROW = 64  # channels below which adding neighbours takes as long as the products that it saves


def convolve(x: jax.Array, kernel: jax.Array, window_strides=(1, 1), padding="SAME", **_) -> jax.Array:
    """A 'SAME' convolution: x [B, H, W, C], kernel [K, K, C, O] -> [B, H / stride, W / stride, O].

    `flax.linen.Conv` calls it in place of `lax.conv_general_dilated`; it knows the layouts and dilations, hence the rest of the
    arguments are not read.
    """
    narrow = min(kernel.shape[2:]) < _NARROW
    if narrow or kernel.shape[:2] != (3, 3) or tuple(window_strides) != (1, 1) or x.shape[2] % 2 or x.dtype != jnp.float32:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=_LAYOUT)
    return _winograd(x, kernel)


def convolve_doubled(x: jax.Array, kernel: jax.Array, *_, **__) -> jax.Array:
    """Each pixel becomes 2x2 of its kind, then a 3x3 'SAME' convolution: x [B, H, W, C] -> [B, 2 H, 2 W, O]."""
    if x.dtype != jnp.float32:
        return _plain_doubled(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_folded_doubled, default=_plain_doubled)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _winograd_form(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    d0, d1, d2, d3 = (padded[:, :, i : i + width - 1 : 2] for i in range(4))
    w0, w1, w2 = (kernel[:, i, None] for i in range(3))
    inputs = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)
    filters = (w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2)
    m0, m1, m2, m3 = (_plain(d, w) for d, w in zip(inputs, filters, strict=True))
    return jnp.stack([m0 + m1 + m2, m1 - m2 - m3], axis=3).reshape(batch, height, width, -1)


def _quick(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=_winograd_form, default=_plain)


@jax.custom_jvp
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _quick(x, kernel)


# The derivative is linear in each argument, and is told how to transpose: left alone, JAX would turn each step of the form
# around. The gradient by x is again such a convolution, of the output's gradient by the turned filters; the one by
# the filters is the plain one, which runs at a matmul's speed as it is.
@_winograd.defjvp
def _winograd_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents

    def turned(kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return _quick(dy, kernel[::-1, ::-1].swapaxes(2, 3))

    def by_kernel(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda k: _plain(x, k), kernel)(dy)[0]

    by_x = linear_call(lambda kernel, dx: _quick(dx, kernel), turned, kernel, dx)
    return _winograd(x, kernel), by_x + linear_call(_plain, by_kernel, x, dkernel)


def _plain_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return _plain(x.reshape(batch, 2 * height, 2 * width, channels), kernel)


def _folded_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, _ = x.shape

    def fold(kernel: jax.Array, odd: int, axis: int) -> jax.Array:
        """The three taps of one axis as they fall on two pixels: an even output has one of its own before, an odd one after."""
        first, middle, last = jnp.split(kernel, 3, axis)
        return jnp.concatenate([first + middle, last] if odd else [first, middle + last], axis)

    def output(row: int, column: int) -> jax.Array:
        folded = fold(fold(kernel, row, 0), column, 1)
        padding = ((1 - row, row), (1 - column, column))
        return lax.conv_general_dilated(x, folded, (1, 1), padding, dimension_numbers=_LAYOUT)

    rows = [jnp.stack([output(row, 0), output(row, 1)], axis=3).reshape(batch, height, 2 * width, -1) for row in range(2)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)
