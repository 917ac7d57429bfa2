"""The norm of all gradients or parameters, in the form that suits the devices.

By XLA's estimate for a TPU v5e, `optax.tree.norm` of the 328 parameters of CIFAR-10's network takes 1.2 million cycles, and
`in_slices` 0.57. A reduction there takes up to three times as long as reading its input, and at least 2,000 cycles, while most
parameters have 256 numbers. A step has two norms, of the gradients and of the new parameters, whatever the batch size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ddpm_jax.training import grad_groups

SMALL = 2**14  # smaller arrays share one reduction
MAX_SLICES = 16


def for_mesh(mesh: Mesh) -> Callable[[Any], jax.Array]:
    """The norm for a training step on a mesh; slices of a sharded state would gather it."""
    if grad_groups.is_useful(mesh):
        return grad_groups.norm
    whole_on_tpus = mesh.devices.flat[0].platform == "tpu" and len(mesh.axis_names) == 1
    return in_slices if whole_on_tpus else optax.tree.norm


def in_slices(tree: Any) -> jax.Array:
    """`optax.tree.norm` of arrays of at least float32, which adds the squares of slices before it reduces their sum."""
    leaves = jax.tree.leaves(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < SMALL]
    total = sum((_sum_of_squares(leaf) for leaf in leaves if leaf.size >= SMALL), jnp.float32(0))
    if small:
        # Without the barrier, XLA would split the sum over the vector into sums over its parts.
        total += jnp.sum(jnp.square(jax.lax.optimization_barrier(jnp.concatenate(small))))
    return jnp.sqrt(total)


def _sum_of_squares(x: jax.Array) -> jax.Array:
    """The squares of slices are added first: along the first axis, or the axes before the last two, the pixels of a kernel."""
    if x.ndim > 2:
        x = x.reshape(-1, *x.shape[-2:])
    count = x.shape[0] if x.shape[0] <= MAX_SLICES else math.gcd(x.shape[0], MAX_SLICES)
    slices = x.reshape(count, -1, *x.shape[1:])
    return jnp.sum(functools.reduce(jnp.add, (jnp.square(slices[index]) for index in range(count))))
