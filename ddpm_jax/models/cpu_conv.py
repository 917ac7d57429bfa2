"""3x3 convolutions in the forms that take a CPU the least time: equal to the plain ones but for float32's rounding.

A CPU multiplies matrices near its ceiling, so what is left is to multiply less. Both forms add neighbours first:

**Winograd F(4, 3) along the width** (Winograd 1980; Lavin & Gray 1509.09308, section 4.3). Four neighbouring outputs of a
filter w0, w1, w2 over inputs d0 .. d5 take six products in place of twelve,

    m0 = (4 d0 - 5 d2 + d4) w0 / 4
    m1 = (d3 + d4 - 4 (d1 + d2)) (-w0 - w1 - w2) / 6          y0 = m0 + m1 + m2 + m3 + m4
    m2 = (d4 - d3 + 4 (d1 - d2)) (-w0 + w1 - w2) / 6          y1 = m1 - m2 + 2 (m3 - m4)
    m3 = (d4 - d2 + 2 (d3 - d1)) (w0 + 2 w1 + 4 w2) / 24      y2 = m1 + m2 + 4 (m3 + m4)
    m4 = (d4 - d2 - 2 (d3 - d1)) (w0 - 2 w1 + 4 w2) / 24      y3 = m1 - m2 + 8 (m3 - m4) + m5
    m5 = (4 d1 - 5 d3 + d5) w2

where each product stands for a convolution down the height, of a quarter of the width. The gradients take the same
products: by the images of the turned filters, by the filters summed over the images. Errors are three times those of
the plain form in float32, 1e-6 of the output (root mean squares). In two dimensions it would save more products, and take
six times as many small programs a layer to compile.

**Doubling, then convolving.** Of nine pixels under a filter over an image whose pixels were doubled only four differ. So
each of the four outputs that a pixel grows into is a 2x2 convolution of the small image: 16 products in place of 36.

Other platforms, programs that XLA shares out among devices, other types than float32 and shapes that would not gain take
the plain convolution. Which it is, is settled when the program is lowered for a platform, not by where it is traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NARROW = 64  # channels below which adding neighbours takes as long as the products that it saves
PLAIN: dict[str, Callable] = {}  # name of each operation below -> the same by JAX's own, for those who count them


def convolve(x: jax.Array, kernel: jax.Array, window_strides=(1, 1), padding="SAME", **options) -> jax.Array:
    """A 'SAME' convolution: x [B, H, W, C], kernel [K, K, C, O] -> [B, H / stride, W / stride, O].

    `flax.linen.Conv` calls it in place of `lax.conv_general_dilated`, with all of that function's options.

    Raises:
      ValueError: an option with another value than its default: dilation, groups, precision or another layout.
    """
    _refuse_options(x, kernel, options)
    narrow = min(kernel.shape[2:]) < _NARROW
    if narrow or kernel.shape[:2] != (3, 3) or tuple(window_strides) != (1, 1) or x.shape[2] % 4 or x.dtype != jnp.float32:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=_LAYOUT)
    return _CONVOLVE.bind(x, kernel)


def convolve_doubled(x: jax.Array, kernel: jax.Array, window_strides=(1, 1), padding="SAME", **options) -> jax.Array:
    """Each pixel becomes 2x2 of its kind, then a 3x3 'SAME' convolution: x [B, H, W, C] -> [B, 2 H, 2 W, O].

    Raises:
      ValueError: as `convolve`; strides, another padding or another size of the kernel.
    """
    _refuse_options(x, kernel, options)
    if tuple(window_strides) != (1, 1) or padding != "SAME" or kernel.shape[:2] != (3, 3):
        raise ValueError(
            f"convolve_doubled has strides 1, padding SAME and 3x3 kernels, not {window_strides}, {padding}, {kernel.shape}"
        )
    if x.dtype != jnp.float32:
        return _plain_doubled(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_folded_doubled, default=_plain_doubled)


def _refuse_options(x: jax.Array, kernel: jax.Array, options: dict) -> None:
    """Raise ValueError for an option of `lax.conv_general_dilated` that would change the result and is not read here."""
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT)
    neutral = {
        "lhs_dilation": lambda value: value is None or set(value) == {1},
        "rhs_dilation": lambda value: value is None or set(value) == {1},
        "dimension_numbers": lambda value: value is None or lax.conv_dimension_numbers(x.shape, kernel.shape, value) == layout,
        "feature_group_count": lambda value: value == 1,
        "batch_group_count": lambda value: value == 1,
        "precision": lambda value: value is None,
        "preferred_element_type": lambda value: value is None,
    }
    for name, value in options.items():
        if name not in neutral or not neutral[name](value):
            raise ValueError(f"the convolutions of cpu_conv have no {name}={value}: use lax.conv_general_dilated for it")


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _plain_by_images(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of <_plain(x, kernel), dy> by x: a convolution too, of dy by the turned filters."""
    return _plain(dy, kernel[::-1, ::-1].swapaxes(2, 3))


def _plain_by_filters(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of <_plain(x, kernel), dy> by the kernel."""
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), dy.dtype)
    return jax.linear_transpose(lambda kernel: _plain(x, kernel), kernel)(dy)[0]


def _tiles(x: jax.Array) -> tuple[jax.Array, ...]:
    """[N, H, W, C] -> the six inputs of the transform, each [N, H, W / 4, C]: neighbours 4 q - 1 .. 4 q + 4 along the width."""
    count, height, width, channels = x.shape
    d1, d2, d3, d4 = (x.reshape(count, height, width // 4, 4, channels)[:, :, :, i] for i in range(4))
    d0 = jnp.pad(d4[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    d5 = jnp.pad(d1[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
    return (
        4 * d0 - 5 * d2 + d4,
        d3 + d4 - 4 * (d1 + d2),
        d4 - d3 + 4 * (d1 - d2),
        d4 - d2 + 2 * (d3 - d1),
        d4 - d2 - 2 * (d3 - d1),
        4 * d1 - 5 * d3 + d5,
    )


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, _ = x.shape
    w0, w1, w2 = (kernel[:, i, None] for i in range(3))
    near, far = w0 + w2, w0 + 4 * w2
    filters = (w0 / 4, -(near + w1) / 6, (w1 - near) / 6, (far + 2 * w1) / 24, (far - 2 * w1) / 24, w2)
    m0, m1, m2, m3, m4, m5 = (_plain(d, w) for d, w in zip(_tiles(_stored(x)), filters, strict=True))
    even, odd, even2, odd2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    outputs = [m0 + even + even2, odd + 2 * odd2, even + 4 * even2, odd + 8 * odd2 + m5]
    return jnp.stack(outputs, axis=3).reshape(batch, height, width, -1)


def _winograd_by_filters(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient by the filters: the same products, summed over all images and tiles in place of the channels."""
    x = _stored(x.transpose(3, 1, 2, 0))  # Eigen wants the images innermost
    dy = _stored(dy.transpose(1, 2, 0, 3))
    height, width, *rest = dy.shape
    g0, g1, g2, g3 = (dy.reshape(height, width // 4, 4, *rest)[:, :, i] for i in range(4))
    even, odd, even2, odd2 = g0 + g2, g1 + g3, g0 + 4 * g2, 2 * g1 + 8 * g3
    outputs = (g0, even + odd, even - odd, even2 + odd2, even2 - odd2, g3)
    m0, m1, m2, m3, m4, m5 = (
        lax.conv_general_dilated(d, g, (1, 1), ((1, 1), (0, 0)), dimension_numbers=_LAYOUT)[:, :, 0]
        for d, g in zip(_tiles(x), outputs, strict=True)
    )  # [C, 3, O]
    near, far = (m1 + m2) / 6, (m3 + m4) / 24
    taps = [m0 / 4 - near + far, (m2 - m1) / 6 + (m3 - m4) / 12, 4 * far - near + m5]
    return jnp.stack(taps).transpose(2, 0, 1, 3)


def _winograd_by_images(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    return _winograd(dy, _stored(kernel.swapaxes(2, 3))[::-1, ::-1])


def _stored(x: jax.Array) -> jax.Array:
    """x, in memory as it is indexed: XLA would work it out once more in each fusion that reads it, turning it as it goes."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


# JAX would turn each step of a form around to differentiate it. So each of the three is an operation of its own to JAX, whose
# derivatives are the other two: whatever JAX does with a convolution it does with these, on all platforms.


def _operation(name: str, plain: Callable, form: Callable, folds: bool) -> Primitive:
    """`form` on a CPU and `plain` elsewhere; `folds` says that the first argument holds images, and so does the output."""
    operation = Primitive(name)
    operation.def_impl(jax.jit(operation.bind))
    operation.def_abstract_eval(lambda a, b: a.update(shape=jax.eval_shape(plain, *_shapes(a, b)).shape))
    lower, lower_form = (mlir.lower_fun(function, multiple_results=False) for function in (plain, form))

    def lower_for_cpu(context, *args):
        # XLA does not know how to share out `_stored`: each of several devices would do the work of all.
        devices = getattr(context.module_context.axis_context, "num_devices", 1)
        return (lower_form if devices == 1 else lower)(context, *args)

    mlir.register_lowering(operation, lower)
    mlir.register_lowering(operation, lower_for_cpu, platform="cpu")

    def batched(args: tuple, axes: tuple) -> tuple[jax.Array, int]:
        a, b = args
        if not folds or axes[1] is not None:
            return jax.vmap(plain, axes)(a, b), 0
        a = jnp.moveaxis(a, axes[0], 0)
        out = operation.bind(a.reshape(-1, *a.shape[2:]), b)
        return out.reshape(*a.shape[:2], *out.shape[1:]), 0

    batching.primitive_batchers[operation] = batched
    PLAIN[name] = plain
    return operation


def _shapes(*arrays) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]


_CONVOLVE = _operation("convolve_3x3", _plain, _winograd, folds=True)
_BY_IMAGES = _operation("convolve_3x3_by_images", _plain_by_images, _winograd_by_images, folds=True)
_BY_FILTERS = _operation("convolve_3x3_by_filters", _plain_by_filters, _winograd_by_filters, folds=False)

# Each is linear in both arguments. The gradients by them, with the gradient d by the output, all of <_plain(x, kernel), dy>.
ad.defbilinear(_CONVOLVE, lambda d, x, kernel: _BY_IMAGES.bind(d, kernel), lambda d, x, kernel: _BY_FILTERS.bind(x, d))
ad.defbilinear(_BY_IMAGES, lambda d, dy, kernel: _CONVOLVE.bind(d, kernel), lambda d, dy, kernel: _BY_FILTERS.bind(d, dy))
ad.defbilinear(_BY_FILTERS, lambda d, x, dy: _BY_IMAGES.bind(dy, d), lambda d, x, dy: _CONVOLVE.bind(x, d))


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
