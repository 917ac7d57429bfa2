"""Data parallelism over the devices of one CPU: a single all-reduce for all gradients."""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec


def shard_map_grads(loss_and_grads: Callable, mesh: Mesh) -> Callable:
    """`loss_and_grads` computed by each device on its own examples, then averaged.

    If XLA partitions the program, the devices of a CPU synchronize once for each parameter, 50 microseconds each time; here
    they do once for all parameters. `loss_and_grads` must be deterministic: a device has only its own examples.

    Args:
      loss_and_grads: (params, examples, key) -> (mean over the examples, its gradients, values [B]).
      mesh: a mesh of one axis whose size divides B.

    Returns:
      The same function for arrays on the mesh: `params` and `key` replicated, `examples` [B, ...] sharded.
    """
    (axis,) = mesh.axis_names
    replicated, split = PartitionSpec(), PartitionSpec(axis)

    def per_device(params: Any, examples: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        # Mark the parameters as varying per device: for replicated ones JAX would all-reduce each gradient separately.
        params = jax.lax.pcast(params, axis, to="varying")
        mean, grads, values = loss_and_grads(params, examples, key)
        flat, unravel = ravel_pytree((mean, grads))
        return *unravel(jax.lax.pmean(flat, axis)), values

    return jax.shard_map(
        per_device, mesh=mesh, in_specs=(replicated, split, replicated), out_specs=(replicated, replicated, split)
    )
