"""Fully sharded data parallelism: the training state spread over devices (ZeRO, Rajbhandari et al. 1910.02054).

Parameters, their averages and the optimizer state are sharded over the axis "fsdp" of the mesh, by a rule that knows only
their shapes. A step gathers each parameter once; each gradient is summed over the devices and sharded like its parameter.
Optimizer and averages then work on the parts. XLA partitions the program (`jax.jit`), so that random numbers have the
global shape and do not depend on the mesh.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.models import grad_sums
from ddpm_jax.runtime.mesh import DATA_AXIS, FSDP_AXIS, batch_sharding, fsdp_size, replicated
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


def train_step_options(mesh: Mesh) -> dict[str, Any]:
    """Arguments of `train_step` for the mesh; none if the state is replicated."""
    return {} if fsdp_size(mesh) == 1 else {"shard_loss_fn": functools.partial(shard_loss, mesh=mesh)}


def shard_loss(loss: Callable, mesh: Mesh) -> Callable:
    """`loss` for sharded parameters; its gradients have their shardings.

    Args:
      loss: (params, examples, key) -> (mean loss, auxiliary results), for gathered parameters.
      mesh: with the axis "fsdp".
    """

    def sharded(params: Any, examples: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        # Kept for the backward pass. To gather them again there (`jax.checkpoint`), XLA has to store all activations that it
        # otherwise computes again while it fuses operations: for the config cifar10 three times the memory of the parameters.
        if not grad_sums.is_useful(mesh):  # else the network gathers them (`for_mesh`)
            params = jax.tree.map(functools.partial(_gather, mesh), params)
        return loss(params, jax.lax.with_sharding_constraint(examples, batch_sharding(mesh)), key)

    return sharded


def for_mesh(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`apply` of a network for a training step on a mesh, where bfloat16 layers get gradients that are summed in float32.

    Args:
      apply: ({"params": params}, further arguments) -> output, of a `flax.linen.Module`.
      mesh: if it has the axis "fsdp" and is not of CPUs, the new function gets sharded parameters.
    """
    if fsdp_size(mesh) == 1 or not grad_sums.is_useful(mesh):
        return grad_sums.for_mesh(apply, mesh)

    def apply_sharded(variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # XLA leaves out the one of the two that is not used. Both are made for all parameters, here, so that a network
        # with `jax.checkpoint` does not gather again.
        params = variables["params"]
        copies = jax.tree.map(functools.partial(_copies, mesh), params)
        whole = jax.tree.map(functools.partial(_gather, mesh), params)
        return grad_sums.in_float32(apply, mesh, whole, copies)({**variables, "params": whole}, *args, **kwargs)

    return apply_sharded


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _copies(mesh: Mesh, param: jax.Array) -> jax.Array:
    """The whole parameter as each device has it: bfloat16 [devices, ...], sharded over the first axis.

    So the gradient has an entry for each device as well, which is cast before the sum. That of `_gather` is already summed.
    """
    spec = leaf_sharding(mesh, param.shape).spec

    def gather(part: jax.Array) -> jax.Array:
        part = part.astype(jnp.bfloat16)
        return (jax.lax.all_gather(part, FSDP_AXIS, axis=len(spec) - 1, tiled=True) if spec else part)[None]

    return jax.shard_map(gather, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(mesh.axis_names))(param)


def _copies_forward(mesh: Mesh, param: jax.Array) -> tuple[jax.Array, None]:
    return _copies(mesh, param), None


def _copies_backward(mesh: Mesh, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    spec = leaf_sharding(mesh, gradient.shape[1:]).spec

    def add(own: jax.Array) -> jax.Array:
        own = own[0].astype(jnp.float32)
        if not spec:
            return jax.lax.psum(own, mesh.axis_names)
        return jax.lax.psum(jax.lax.psum_scatter(own, FSDP_AXIS, scatter_dimension=len(spec) - 1, tiled=True), DATA_AXIS)

    return (jax.shard_map(add, mesh=mesh, in_specs=PartitionSpec(mesh.axis_names), out_specs=spec)(gradient),)


_copies.defvjp(_copies_forward, _copies_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(mesh: Mesh, param: jax.Array) -> jax.Array:
    """The whole parameter on each device; its gradient is summed over all devices and sharded.

    JAX's gradient would be whole, which XLA cannot reduce and scatter at once.
    """
    return jax.lax.with_sharding_constraint(param, replicated(mesh))


def _gather_forward(mesh: Mesh, param: jax.Array) -> tuple[jax.Array, None]:
    return _gather(mesh, param), None


def _gather_backward(mesh: Mesh, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, leaf_sharding(mesh, gradient.shape)),)


_gather.defvjp(_gather_forward, _gather_backward)


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
