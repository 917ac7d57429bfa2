"""Convolutions and dense layers in the forms that XLA computes fastest on TPUs; the parameters are those of the layers.

**Biases.** Their gradient is a sum over examples and pixels. XLA's reduction on a TPU v5e takes several times as long as
reading its input: 0.44 million cycles by XLA's own estimate for bfloat16 [128, 32, 32, 128], 0.24 with a cast to float32
before, but 0.09 if slices of the array are added elementwise before they are reduced. It also keeps the reduction out of the
operation that computes its input, which the reduction would slow down.

**Dense layers on images** are products over the last axis. `layers.flat_matmul` flattens the pixels, as CPUs want it, but XLA
lays images out on a TPU with the examples beside the channels, where flattened pixels are another array: it copied the input
of each shortcut and attention. A block of the decoder (256 to 128 channels at 32x32, 128 images) took 7.05 million cycles
instead of 6.13.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ddpm_jax.models.layers import flat_matmul

LAYERS = (nn.Conv, nn.Dense)
MAX_SLICES = 16  # with 32, the sum above takes 0.089 million cycles instead of 0.093, and the program is longer


def for_mesh(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`apply` of a network for a training step on a mesh: `for_tpus` on TPUs of which each holds all parameters."""
    return for_tpus(apply) if mesh.devices.flat[0].platform == "tpu" and len(mesh.axis_names) == 1 else apply


def for_tpus(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` of a `flax.linen.Module`: `add_bias` adds the biases of its layers, and pixels are not flattened."""

    def intercept(next_call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or type(module) not in LAYERS or not module.use_bias:
            return next_call(*args, **kwargs)
        params = module.variables["params"]
        form = {"dot_general": None} if isinstance(module, nn.Dense) and module.dot_general is flat_matmul else {}
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
    """[B, ..., C] -> float32 [C], the sums over all other axes. Of more than two axes, the second is cut into slices."""
    if x.ndim > 2:
        count = math.gcd(x.shape[1], MAX_SLICES)
        size = x.shape[1] // count
        # Cast after cutting: XLA would write an array that several operations read as float32.
        slices = [jax.lax.slice_in_dim(x, i * size, (i + 1) * size, axis=1).astype(jnp.float32) for i in range(count)]
        x = functools.reduce(jnp.add, slices)
    return jnp.sum(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))


def _forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return add_bias(y, bias), None


def _backward(_: None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return dy, channel_sums(dy)  # parameters are float32


add_bias.defvjp(_forward, _backward)
