"""Convolutions and dense layers in the forms that XLA computes fastest on TPUs; the parameters are those of the layers.

**Biases.** Their gradient is a sum over examples and pixels. XLA's reduction on a TPU v5e takes several times as long as
reading its input: 0.44 million cycles by XLA's own estimate for bfloat16 [128, 32, 32, 128], 0.24 with a cast to float32
before, but 0.09 if slices of the array are added elementwise before they are reduced. It also keeps the reduction out of the
operation that computes its input, which the reduction would slow down.

**Dense layers on images** are products over the last axis. `layers.flat_matmul` flattens the pixels, as CPUs want it, but XLA
lays images out on a TPU with the examples beside the channels, where flattened pixels are another array: it copied the input
of each shortcut and attention. A block of the decoder (256 to 128 channels at 32x32, 128 images) took 7.05 million cycles
instead of 6.13.

**The norm of a concatenation.** XLA fuses the sums of a group norm into the convolution that computes its input, but reads a
concatenation for them, the input of the first norm of each block of the decoder. Each of its parts is summed on its own: XLA
replaces the slice of a concatenation by the array that it is of, and sums it where it is computed. A step of `cifar10` with 128
images on a chip took 68.4 million cycles, and takes 65.4.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ddpm_jax.models.group_norm import group_norm
from ddpm_jax.models.layers import GroupNorm, ResidualBlock, flat_matmul

LAYERS = (nn.Conv, nn.Dense)
MAX_SLICES = 16  # with 32, the sum above takes 0.089 million cycles instead of 0.093, and the program is longer
MAX_PARTS = 8  # of a concatenation


def for_mesh(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`apply` of a network for a training step on a mesh: `for_tpus` on TPUs of which each holds all parameters."""
    return for_tpus(apply) if mesh.devices.flat[0].platform == "tpu" and len(mesh.axis_names) == 1 else apply


def for_tpus(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` of a `flax.linen.Module`: `add_bias` adds the biases of its layers, pixels are not flattened, and `norm_of_parts`
    is the norm of concatenations."""

    def intercept(next_call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name == "__call__" and (size := _size_of_parts(module, *args)):
            params = module.variables["params"]
            return norm_of_parts(*args, **params, groups=module.groups, epsilon=module.epsilon, size=size)
        if context.method_name != "__call__" or type(module) not in LAYERS or not module.use_bias:
            return next_call(*args, **kwargs)
        params = module.variables["params"]
        form: dict[str, Any] = (
            {"dot_general": None} if isinstance(module, nn.Dense) and module.dot_general is flat_matmul else {}
        )
        layer = module.clone(parent=None, name=module.name, use_bias=False, **form)
        return add_bias(layer.apply({"params": {"kernel": params["kernel"]}}, *args, **kwargs), params["bias"])

    def apply_for_tpus(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(intercept):
            return apply(*args, **kwargs)

    return apply_for_tpus


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y [..., C], bias [C] -> y + bias in the type of y. The gradient of the bias is summed in float32, by `channel_sums`."""
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def channel_sums(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> float32 [C], the sums over all other axes."""
    if x.ndim > 2:
        count = math.gcd(x.shape[1], MAX_SLICES)
        size = x.shape[1] // count
        # Cast after cutting: XLA would write an array that several operations read as float32.
        slices = (jax.lax.slice_in_dim(x, i * size, (i + 1) * size, axis=1).astype(jnp.float32) for i in range(count))
        x = functools.reduce(jnp.add, slices)
    return jnp.sum(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))


def _forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return add_bias(y, bias), None


def _backward(_: None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return dy, channel_sums(dy)  # parameters are float32


add_bias.defvjp(_forward, _backward)


def _size_of_parts(module: nn.Module, *args: jax.Array) -> int:
    """The channels of the parts of the input of a norm, if it is the first one of a residual block that changes their number.

    The arrays of a concatenation consist of one or several parts, without knowing where one ends. 0 for other modules.
    """
    if not isinstance(module, GroupNorm) or module.norm_fn is not group_norm or not isinstance(module.parent, nn.Module):
        return 0
    norm, block = module.parent, module.parent.parent
    if norm.name != "norm1" or not isinstance(block, ResidualBlock) or args[0].shape[-1] == block.features:
        return 0
    size = math.gcd(args[0].shape[-1], block.features)
    return size if args[0].shape[-1] // size <= MAX_PARTS else args[0].shape[-1]


def norm_of_parts(x: jax.Array, scale: jax.Array, bias: jax.Array, *, groups: int, epsilon: float, size: int) -> jax.Array:
    """`group_norm`, with sums over parts of `size` channels, which divides C."""
    batch, channels = x.shape[0], x.shape[-1]
    mean, mean_of_squares = (moment.reshape(batch, groups, -1).mean(-1) for moment in _moments(size, x))
    r = jax.lax.rsqrt(jnp.maximum(mean_of_squares - jnp.square(mean), 0.0) + epsilon)
    mean, r = (jnp.repeat(value, channels // groups, axis=1)[:, None, None] for value in (mean, r))
    return (x.astype(jnp.float32) - mean) * (r * scale[None, None, None]) + bias[None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _moments(size: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, H, W, C] -> the means of x and of its square over the pixels, float32 [B, C]. JAX's gradient of slices would pad."""
    parts = [jax.lax.slice_in_dim(x, i, i + size, axis=3).astype(jnp.float32) for i in range(0, x.shape[3], size)]
    first, second = (jnp.concatenate([f(part).mean((1, 2)) for part in parts], axis=1) for f in (lambda part: part, jnp.square))
    return first, second


def _moments_gradient(size: int, x: jax.Array, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array]:
    del size
    of_mean, of_square = (gradient[:, None, None] / (x.shape[1] * x.shape[2]) for gradient in gradients)
    return ((of_mean + 2 * of_square * x.astype(jnp.float32)).astype(x.dtype),)


_moments.defvjp(lambda size, x: (_moments(size, x), x), _moments_gradient)
