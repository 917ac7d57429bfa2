"""Gradients that each device computes of its own examples, and that are summed over the devices in float32.

If XLA partitions the program instead (`jax.jit`), it sums the gradient of each layer in the type of the layer, before the cast
to float32, in which the parameters are stored. In bfloat16 each addition rounds to 8 bits: a sum over 8 devices has an error of
0.3 %, one over 256 in a ring of 4 %. Here the devices are separate (`jax.shard_map`) up to the gradients of the parameters,
whatever the network makes of these; only there the sum is taken. So an example must not depend on the others of its batch. The
random numbers are those of the whole batch (`runtime/device_rng.py`).

Sharded parameters (`fsdp.py`) are gathered in front of the network, in bfloat16 if that is all it makes of them, and their
gradients are reduced and scattered.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ddpm_jax.runtime import device_rng
from ddpm_jax.runtime.mesh import FSDP_AXIS, batch_sharding, fsdp_size
from ddpm_jax.training import fsdp, grad_groups

# Operations in whose gradients nothing is added: each number occurs at most once in the result.
MOVES = ("concatenate", "copy", "reshape", "rev", "slice", "split", "squeeze", "stop_gradient", "transpose")


def is_useful(mesh: Mesh) -> bool:
    """Whether a training step on this mesh computes gradients in this way. XLA for CPUs sums in float32 anyway."""
    return mesh.size > 1 and (mesh.devices.flat[0].platform != "cpu" or len(mesh.axis_names) > 1)


def train_step_options(mesh: Mesh) -> dict[str, Any]:
    """Arguments of `train_step` for the mesh."""
    return {"shard_grad_fn": functools.partial(sum_over_devices, mesh=mesh)} if is_useful(mesh) else {}


def sum_over_devices(loss_and_grads: Callable, mesh: Mesh) -> Callable:
    """`loss_and_grads` computed by each device for its own examples, then averaged.

    Args:
      loss_and_grads: (params, examples, key, transform) -> (mean over the examples, its gradients, values [B]). `transform` is
        applied to the loss, (params, examples, key) -> (mean, values), before it is differentiated.
      mesh: its size divides B.

    Returns:
      (params, examples, key) -> the same for arrays on the mesh: `params` and their gradients sharded by `fsdp.leaf_sharding`,
      `examples` and values [B, ...] over all devices, the others replicated.
    """

    def averaged(params: Any, examples: Any, key: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        everywhere, split = PartitionSpec(), batch_sharding(mesh).spec
        shardings = fsdp.tree_sharding(mesh, params)
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
        whole = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

        def total(gradient: jax.Array, spec: PartitionSpec = everywhere) -> jax.Array:
            axes = tuple(axis for axis in mesh.axis_names if axis not in spec and mesh.shape[axis] > 1)
            return jax.lax.psum(gradient.astype(_sum_dtype(gradient)), axes).astype(gradient.dtype)

        def totals(grads: Any) -> Any:
            return grad_groups.group(grads, total) if grad_groups.is_useful(mesh) else jax.tree.map(total, grads, specs)

        def per_device(params: Any, examples: Any, key: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
            transform = functools.partial(_on_device, mesh=mesh, whole=whole, specs=specs)
            mean, grads, values = loss_and_grads(params, examples, key, transform)
            return jax.lax.psum(mean, mesh.axis_names), totals(grads), values

        # Replicated and varying arrays are not distinguished: a network may have loops whose initial carry is a constant.
        return jax.shard_map(
            per_device,
            mesh=mesh,
            in_specs=(specs, split, everywhere),
            out_specs=(everywhere, specs, split),
            check_vma=False,
        )(params, examples, key)

    return averaged


def _on_device(loss: Callable, mesh: Mesh, whole: Any, specs: Any) -> Callable:
    """`loss` for the parts of the parameters that a device has, with its random numbers. The sum over devices is the mean.

    Args:
      loss: (params, examples, key) -> (mean, values), for whole parameters.
      mesh: of the device.
      whole: jax.ShapeDtypeStruct of the whole parameters.
      specs: how they are split.
    """

    def on_device(parts: Any, examples: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def program(size: int) -> Any:
            batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size * x.shape[0], *x.shape[1:]), x.dtype), examples)
            return jax.make_jaxpr(loss)(whole, batch, key).jaxpr

        jaxpr = program(1)
        axes = device_rng.axes_of_examples(jaxpr, program(mesh.size), mesh.size)
        device_key = device_rng.for_device(key, jax.lax.axis_index(mesh.axis_names), mesh.size, axes)
        params = parts
        if fsdp_size(mesh) > 1:
            leaves, treedef = jax.tree.flatten(parts)
            dtypes = [_dtype_of_use(jaxpr, variable) for variable in jaxpr.invars[: len(leaves)]]
            params = jax.tree.map(_gather, parts, specs, jax.tree.unflatten(treedef, dtypes))
        # Kept for the backward pass. To gather them again there (`jax.checkpoint`), XLA has to store all activations that it
        # otherwise computes again while it fuses operations: for the config cifar10 three times the memory of the parameters.
        mean, values = loss(params, examples, device_key)
        return mean / mesh.size, values  # rather than each gradient: a GPU would need a kernel for each

    return on_device


def _sum_dtype(gradient: jax.Array) -> Any:
    return jnp.promote_types(gradient.dtype, jnp.float32)


def _dtype_of_use(jaxpr: Any, variable: Any) -> Any:
    """The type in which a program uses an argument: bfloat16 if it only casts it to that, once; else its own."""
    return jnp.bfloat16 if list(_uses(jaxpr, variable)) == [jnp.bfloat16] else variable.aval.dtype


def _uses(jaxpr: Any, variable: Any) -> Iterator[Any]:
    """For each operation that uses a variable, which may have been moved: the type if it is a cast, else None."""
    for equation in jaxpr.eqns:
        for place in [place for place, read in enumerate(equation.invars) if read is variable]:
            name, params = equation.primitive.name, equation.params
            if name == "convert_element_type":
                yield params["new_dtype"]
            elif name in MOVES:
                for result in equation.outvars:
                    yield from _uses(jaxpr, result)
            # A loop: only arrays of which each iteration has its part. The gradients of others are added, in their type.
            elif name in ("jit", "remat2") or (name == "scan" and place >= params["num_consts"] + params["num_carry"]):
                inside = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
                yield from _uses(inside, inside.invars[place])
            else:
                yield None
    if any(result is variable for result in jaxpr.outvars):
        yield None


def _gather(part: jax.Array, spec: PartitionSpec, dtype: Any) -> jax.Array:
    """The whole parameter in `dtype`; its gradient is cast before it is summed over the axis "fsdp" and scattered."""
    return _gather_along(len(spec) - 1, dtype, part) if spec else part.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather_along(axis: int, dtype: Any, part: jax.Array) -> jax.Array:
    return jax.lax.all_gather(part.astype(dtype), FSDP_AXIS, axis=axis, tiled=True)


def _gather_forward(axis: int, dtype: Any, part: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _gather_along(axis, dtype, part), jnp.zeros((), part.dtype)


def _gather_backward(axis: int, dtype: Any, like: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    del dtype
    wide = gradient.astype(_sum_dtype(like))
    return (jax.lax.psum_scatter(wide, FSDP_AXIS, scatter_dimension=axis, tiled=True).astype(like.dtype),)


_gather_along.defvjp(_gather_forward, _gather_backward)
