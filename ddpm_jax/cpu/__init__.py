"""What only CPUs want: faster layers, gradients and compiler settings. build.py asks for them here and hands them in.

Each function answers for the platform that JAX runs on, and gives nothing on an accelerator. Networks, samplers and the
training step take plain arguments and know nothing of this package.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from ddpm_jax.cpu.gradients import shard_map_grads

_INCEPTION_GROUP_SIZE = 8  # images: the activations of more exceed the caches of a CPU, and fill its memory


def layer_functions(*, upsample_conv: Callable, norm: Callable) -> dict[str, Callable]:
    """Faster functions for the layers of a network, by the name of its field: conv_fn, upsample_conv_fn and norm_fn.

    Args:
      upsample_conv: the plain form of nearest-neighbor upsampling and convolution.
      norm: the plain form of group norm.

    Returns:
      Empty on other platforms, and where JAX lacks what the functions are built on: the network keeps its plain ones.
    """
    return _layer_functions(upsample_conv, norm) if jax.default_backend() == "cpu" else {}


@functools.cache  # networks with the same functions are equal, and the warning is logged once
def _layer_functions(upsample_conv: Callable, norm: Callable) -> dict[str, Callable]:
    try:
        # Not part of JAX's stable API: a later version may lack any name that it imports.
        from ddpm_jax.cpu import conv
    except (ImportError, AttributeError, TypeError) as error:
        missing = " ".join(str(error).split())
        logging.getLogger(__name__).warning("the network runs without the faster layers for CPUs: %s", missing)
        return {}
    from ddpm_jax.cpu import group_norm

    return {
        "conv_fn": conv.convolve,
        "upsample_conv_fn": functools.partial(conv.upsample_conv, reference=upsample_conv),
        "norm_fn": functools.partial(group_norm.group_norm, reference=norm),
    }


def train_step_options(mesh: Mesh, *, stochastic: bool) -> dict[str, Any]:
    """Arguments of `train_step`: micro-batches written out, since gradients of convolutions are slow in XLA's loops on
    CPUs, and the gradients of all devices averaged at once.

    Args:
      mesh: that the step runs on.
      stochastic: whether the network draws random numbers in training; it does at the shape of the whole batch, and then
        only XLA can partition it.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {"unroll": True} | ({} if stochastic else {"share": functools.partial(shard_map_grads, mesh=mesh)})


def init_compiler_options() -> dict[str, Any] | None:
    """For `jax.jit` of the initial state: it runs once, and optimizing it takes longer than running it."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def inception_group_size() -> int | None:
    """The number of images that Inception should process at once; None for all of them."""
    return _INCEPTION_GROUP_SIZE if jax.default_backend() == "cpu" else None
