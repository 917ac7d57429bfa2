"""Data parallelism over the devices of one CPU: a single all-reduce for all gradients."""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec


def shard_map_grads(gradients: Callable, mesh: Mesh) -> Callable:
    """`gradients`, computed by each device for its own examples, and averaged.

    XLA partitions a program by itself; but then the devices of a CPU synchronize once for each parameter, 50 microseconds
    each time, and here once for all of them. Nothing random may happen inside: a device has only its own examples.

    Args:
      gradients: (params, examples, key) -> (mean over the examples, its gradients, values [B]).
      mesh: of one axis; its size divides B.

    Returns:
      The same function of arrays on the mesh: `params` and `key` replicated, `examples` [B, ...] split.
    """
    (axis,) = mesh.axis_names
    replicated, split = PartitionSpec(), PartitionSpec(axis)

    def per_device(params: Any, examples: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        # A copy of the parameters per device: of a common one JAX would sum each gradient over the devices by itself.
        params = jax.lax.pcast(params, axis, to="varying")
        mean, grads, values = gradients(params, examples, key)
        flat, unravel = ravel_pytree((mean, grads))
        return *unravel(jax.lax.pmean(flat, axis)), values

    return jax.shard_map(
        per_device, mesh=mesh, in_specs=(replicated, split, replicated), out_specs=(replicated, replicated, split)
    )
