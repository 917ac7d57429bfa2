"""Optimizations for CPUs: faster layers, gradients and compiler settings, injected by build.py.

Each function checks JAX's platform and returns nothing on an accelerator. Networks, samplers and the training step take plain
arguments and do not depend on this package.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from ddpm_jax.cpu.gradients import shard_map_grads

_INCEPTION_GROUP_SIZE = 8  # images: more activations would exceed the caches of a CPU


def layer_functions(*, upsample_conv: Callable, norm: Callable) -> dict[str, Callable]:
    """Faster layer functions for the network's fields conv_fn, upsample_conv_fn and norm_fn.

    Args:
      upsample_conv: reference implementation of nearest-neighbor upsampling and convolution.
      norm: reference implementation of group norm.

    Returns:
      Field -> function; empty on other platforms, and if JAX lacks the required APIs.
    """
    return _layer_functions(upsample_conv, norm) if jax.default_backend() == "cpu" else {}


@functools.cache  # so that equal networks compare equal, and the warning is logged once
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


def is_mesh_of_cpus(mesh: Mesh) -> bool:
    """Whether a program for this mesh runs on CPUs: a mesh for ahead-of-time compilation may be of another platform."""
    return mesh.devices.flat[0].platform == "cpu"


def train_step_options(mesh: Mesh, *, stochastic: bool) -> dict[str, Any]:
    """Arguments of `train_step`: unrolled micro-batches, since gradients of convolutions are slow in XLA's loops on CPUs,
    and one all-reduce for all gradients.

    Args:
      mesh: the mesh of the step.
      stochastic: whether the network uses random numbers in training. They have the shape of the global batch, so XLA
        partitions the step. A mesh of two axes, where the parameters are sharded, is that of `training/device_grads.py`.
    """
    if not is_mesh_of_cpus(mesh):
        return {}
    own = not stochastic and len(mesh.axis_names) == 1
    return {"unroll": True} | ({"shard_grad_fn": functools.partial(shard_map_grads, mesh=mesh)} if own else {})


def init_compiler_options() -> dict[str, Any] | None:
    """Compiler options for the initial state: it runs once, and optimizing it takes longer than running it."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def inception_group_size() -> int | None:
    """The number of images per Inception call; None for no limit."""
    return _INCEPTION_GROUP_SIZE if jax.default_backend() == "cpu" else None
