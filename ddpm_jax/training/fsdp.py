"""Fully sharded data parallelism: the training state spread over devices (ZeRO, Rajbhandari et al. 1910.02054).

Parameters, their averages and the optimizer state are sharded over the axis "fsdp" of the mesh, by a rule that knows only
their shapes. A step gathers each parameter once; each gradient is summed over the devices and sharded like its parameter
(`device_grads.py`). Optimizer and averages then work on the parts, as XLA partitions them (`jax.jit`).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.runtime.mesh import FSDP_AXIS, fsdp_size, replicated
from ddpm_jax.training.state import TrainState

MIN_SHARDED_SIZE = 1024  # elements; a collective takes longer than the memory of a smaller array is worth


def leaf_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of one array: the largest axis that the axis "fsdp" divides is split over it, of equal ones the last.

    Arrays of fewer than MIN_SHARDED_SIZE elements, those without such an axis, and all arrays on a mesh without "fsdp" are
    replicated.
    """
    size = fsdp_size(mesh)
    axes = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not axes or math.prod(shape) < MIN_SHARDED_SIZE:
        return replicated(mesh)
    split = max(axes, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * split, FSDP_AXIS))


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
    """`leaf_sharding` of each array, or jax.ShapeDtypeStruct, of a tree."""
    return jax.tree.map(lambda leaf: leaf_sharding(mesh, leaf.shape), tree)


def state_sharding(mesh: Mesh, state: TrainState) -> TrainState:
    """The shardings of a training state, or of its shapes: step and timestep sampler are small and stay replicated."""
    everywhere = replicated(mesh)
    return tree_sharding(mesh, state).replace(
        step=everywhere, timestep_sampler_state=jax.tree.map(lambda _: everywhere, state.timestep_sampler_state)
    )


def abstract_state(mesh: Mesh, state: TrainState) -> TrainState:
    """jax.ShapeDtypeStruct with the shardings of `state_sharding`, for each array of `state`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_sharding(mesh, state),
    )


def put(mesh: Mesh, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray | jax.Array]:
    """Arrays of the host, the same on every host, with the shardings of `leaf_sharding`; unchanged without "fsdp"."""
    if fsdp_size(mesh) == 1:
        return arrays
    return {
        name: jax.make_array_from_callback(array.shape, leaf_sharding(mesh, array.shape), functools.partial(_part, array))
        for name, array in arrays.items()
    }


def _part(array: np.ndarray, index: tuple[slice, ...] | None) -> np.ndarray:
    return array[index]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays, whole on every device of `mesh`; unchanged if they are. Every process must call it together.

    Args:
      tree: arrays on the devices of `mesh`, in the same order.
      mesh: of one axis, as for sampling.
    """
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: Any) -> Any:
    return tree


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array in the memory of each host, whatever its sharding. Every process must call it together."""
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True) if jax.process_count() > 1 else array)
