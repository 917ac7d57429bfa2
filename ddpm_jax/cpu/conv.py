"""3x3 convolutions with fewer multiplications: faster on a CPU, equal to the reference up to float32 rounding.

A CPU runs matrix products near its peak, so a faster convolution needs fewer products. Both algorithms add neighbors first:

**Winograd F(4, 3) along the width** (Winograd 1980; Lavin & Gray 1509.09308, section 4.3). Four neighboring outputs of a
kernel w0, w1, w2 over inputs d0 .. d5 take six products instead of twelve,

    m0 = (4 d0 - 5 d2 + d4) w0 / 4
    m1 = (d3 + d4 - 4 (d1 + d2)) (-w0 - w1 - w2) / 6          y0 = m0 + m1 + m2 + m3 + m4
    m2 = (d4 - d3 + 4 (d1 - d2)) (-w0 + w1 - w2) / 6          y1 = m1 - m2 + 2 (m3 - m4)
    m3 = (d4 - d2 + 2 (d3 - d1)) (w0 + 2 w1 + 4 w2) / 24      y2 = m1 + m2 + 4 (m3 + m4)
    m4 = (d4 - d2 - 2 (d3 - d1)) (w0 - 2 w1 + 4 w2) / 24      y3 = m1 - m2 + 8 (m3 - m4) + m5
    m5 = (4 d1 - 5 d3 + d5) w2

where each product is a convolution along the height, of a quarter of the width. The gradients use the same products: that of
the input with flipped kernels, that of the kernel summed over images. Errors are three times those of the reference in
float32, 1e-6 of the output (RMS). Winograd in two dimensions would save more products, but XLA would compile six times as
many small kernels for each layer.

**Convolution after nearest-neighbor upsampling.** Only four of the nine pixels under a 3x3 kernel differ, so each of the four
outputs per pixel is a 2x2 convolution of the small image: 16 products instead of 36.

The reference is used on other platforms, in programs that XLA partitions over devices, for dtypes other than float32 and for
shapes that would not benefit. The choice is made at lowering for a platform, not at tracing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_MIN_CHANNELS_FOR_WINOGRAD = 64  # with fewer, the additions take as long as the products that they save
REFERENCE_IMPLS: dict[str, Callable] = {}  # primitive -> the same function in JAX, for FLOP counts


def convolve(x: jax.Array, kernel: jax.Array, window_strides=(1, 1), padding="SAME", **options) -> jax.Array:
    """A 'SAME' convolution: x [B, H, W, C], kernel [K, K, C, O] -> [B, H / stride, W / stride, O].

    For `flax.linen.Conv`, with the arguments of `lax.conv_general_dilated`.

    Raises:
      ValueError: an unsupported padding, dilation, group count, precision or layout.
    """
    _check_options(x, kernel, padding, options)
    narrow = min(kernel.shape[2:]) < _MIN_CHANNELS_FOR_WINOGRAD
    if narrow or kernel.shape[:2] != (3, 3) or tuple(window_strides) != (1, 1) or x.shape[2] % 4 or x.dtype != jnp.float32:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=_LAYOUT)
    return _CONV.bind(x, kernel)


def upsample_conv(
    x: jax.Array, kernel: jax.Array, window_strides=(1, 1), padding="SAME", *, reference: Callable, **options
) -> jax.Array:
    """Nearest-neighbor upsampling by 2, then a 3x3 'SAME' convolution: x [B, H, W, C] -> [B, 2 H, 2 W, O].

    Args:
      reference: reference implementation, with the arguments of `lax.conv_general_dilated`.

    Raises:
      ValueError: as `convolve`, and for strides or another kernel size.
    """
    _check_options(x, kernel, padding, options)
    if tuple(window_strides) != (1, 1) or kernel.shape[:2] != (3, 3):
        raise ValueError(f"upsample_conv has strides (1, 1) and 3x3 kernels, not {window_strides} and {kernel.shape[:2]}")

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return reference(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)

    if x.dtype != jnp.float32:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_folded_upsample_conv, default=plain)


def _check_options(x: jax.Array, kernel: jax.Array, padding, options: dict) -> None:
    """Raise ValueError for options of `lax.conv_general_dilated` that are not supported."""
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT)
    neutral = {
        "padding": lambda value: value == "SAME",
        "lhs_dilation": lambda value: value is None or set(value) == {1},
        "rhs_dilation": lambda value: value is None or set(value) == {1},
        "dimension_numbers": lambda value: value is None or lax.conv_dimension_numbers(x.shape, kernel.shape, value) == layout,
        "feature_group_count": lambda value: value == 1,
        "batch_group_count": lambda value: value == 1,
        "precision": lambda value: value is None,
        "preferred_element_type": lambda value: value is None,
    }
    for name, value in {"padding": padding, **options}.items():
        if name not in neutral or not neutral[name](value):
            raise ValueError(f"the convolutions for CPUs do not support {name}={value}: use lax.conv_general_dilated")


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _input_grad(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of <_conv(x, kernel), dy> with respect to x: a convolution of dy with flipped kernels."""
    return _conv(dy, kernel[::-1, ::-1].swapaxes(2, 3))


def _kernel_grad(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of <_conv(x, kernel), dy> with respect to the kernel."""
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), dy.dtype)
    return jax.linear_transpose(lambda kernel: _conv(x, kernel), kernel)(dy)[0]


def _winograd_inputs(x: jax.Array) -> tuple[jax.Array, ...]:
    """[N, H, W, C] -> the six transformed inputs, each [N, H, W / 4, C], of pixels 4 q - 1 .. 4 q + 4 along the width."""
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


def _winograd_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, _ = x.shape
    w0, w1, w2 = (kernel[:, i, None] for i in range(3))
    near, far = w0 + w2, w0 + 4 * w2
    kernels = (w0 / 4, -(near + w1) / 6, (w1 - near) / 6, (far + 2 * w1) / 24, (far - 2 * w1) / 24, w2)
    m0, m1, m2, m3, m4, m5 = (_conv(d, w) for d, w in zip(_winograd_inputs(_materialize(x)), kernels, strict=True))
    even, odd, even2, odd2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    outputs = [m0 + even + even2, odd + 2 * odd2, even + 4 * even2, odd + 8 * odd2 + m5]
    return jnp.stack(outputs, axis=3).reshape(batch, height, width, -1)


def _winograd_input_grad(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    return _winograd_conv(dy, _materialize(kernel.swapaxes(2, 3))[::-1, ::-1])


def _winograd_kernel_grad(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The same products as the convolution's, summed over all images and tiles instead of the channels."""
    x = _materialize(x.transpose(3, 1, 2, 0))  # Eigen is fastest with the images innermost
    dy = _materialize(dy.transpose(1, 2, 0, 3))
    height, width, *rest = dy.shape
    g0, g1, g2, g3 = (dy.reshape(height, width // 4, 4, *rest)[:, :, i] for i in range(4))
    even, odd, even2, odd2 = g0 + g2, g1 + g3, g0 + 4 * g2, 2 * g1 + 8 * g3
    outputs = (g0, even + odd, even - odd, even2 + odd2, even2 - odd2, g3)
    m0, m1, m2, m3, m4, m5 = (
        lax.conv_general_dilated(d, g, (1, 1), ((1, 1), (0, 0)), dimension_numbers=_LAYOUT)[:, :, 0]
        for d, g in zip(_winograd_inputs(x), outputs, strict=True)
    )  # [C, 3, O]
    near, far = (m1 + m2) / 6, (m3 + m4) / 24
    taps = [m0 / 4 - near + far, (m2 - m1) / 6 + (m3 - m4) / 12, 4 * far - near + m5]
    return jnp.stack(taps).transpose(2, 0, 1, 3)


def _materialize(x: jax.Array) -> jax.Array:
    """x, materialized in row-major order; otherwise each fusion that reads x repeats its computation and transpose."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


# JAX would differentiate the algorithms operation by operation. As primitives, the convolution and its two gradients are
# differentiated by each other, and support all of JAX's transformations on all platforms.


def _make_primitive(name: str, reference: Callable, cpu_impl: Callable, batchable: bool) -> Primitive:
    """`cpu_impl` on a CPU, `reference` elsewhere; `batchable`: axis 0 of the first argument and of the output is the batch."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(lambda a, b: a.update(shape=jax.eval_shape(reference, *_shapes(a, b)).shape))
    lower_reference, lower_cpu_impl = (mlir.lower_fun(fn, multiple_results=False) for fn in (reference, cpu_impl))

    def lower_on_cpu(context, *args):
        # XLA cannot partition `_materialize`: each device would compute all of it.
        axis_context = getattr(context.module_context, "axis_context", None)
        one_device = axis_context is not None and getattr(axis_context, "num_devices", 1) == 1
        return (lower_cpu_impl if one_device else lower_reference)(context, *args)

    mlir.register_lowering(primitive, lower_reference)
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")

    def batched(args: tuple, axes: tuple) -> tuple[jax.Array, int]:
        a, b = args
        if not batchable or axes[1] is not None:
            return jax.vmap(reference, axes)(a, b), 0
        a = jnp.moveaxis(a, axes[0], 0)
        out = primitive.bind(a.reshape(-1, *a.shape[2:]), b)
        return out.reshape(*a.shape[:2], *out.shape[1:]), 0

    batching.primitive_batchers[primitive] = batched
    REFERENCE_IMPLS[name] = reference
    return primitive


def _shapes(*arrays) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]


_CONV = _make_primitive("conv_3x3", _conv, _winograd_conv, batchable=True)
_INPUT_GRAD = _make_primitive("conv_3x3_input_grad", _input_grad, _winograd_input_grad, batchable=True)
_KERNEL_GRAD = _make_primitive("conv_3x3_kernel_grad", _kernel_grad, _winograd_kernel_grad, batchable=False)

# Each is bilinear. `d` is the gradient of the output; all are gradients of <_conv(x, kernel), dy>.
ad.defbilinear(_CONV, lambda d, x, kernel: _INPUT_GRAD.bind(d, kernel), lambda d, x, kernel: _KERNEL_GRAD.bind(x, d))
ad.defbilinear(_INPUT_GRAD, lambda d, dy, kernel: _CONV.bind(d, kernel), lambda d, dy, kernel: _KERNEL_GRAD.bind(d, dy))
ad.defbilinear(_KERNEL_GRAD, lambda d, x, dy: _INPUT_GRAD.bind(dy, d), lambda d, x, dy: _CONV.bind(x, d))


def _folded_upsample_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, _ = x.shape

    def fold(kernel: jax.Array, odd: int, axis: int) -> jax.Array:
        """Sum the three taps of one axis that read the same pixel; even outputs also read the previous pixel."""
        first, middle, last = jnp.split(kernel, 3, axis)
        return jnp.concatenate([first + middle, last] if odd else [first, middle + last], axis)

    def output(row: int, column: int) -> jax.Array:
        folded = fold(fold(kernel, row, 0), column, 1)
        padding = ((1 - row, row), (1 - column, column))
        return lax.conv_general_dilated(x, folded, (1, 1), padding, dimension_numbers=_LAYOUT)

    rows = [jnp.stack([output(row, 0), output(row, 1)], axis=3).reshape(batch, height, 2 * width, -1) for row in range(2)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)
