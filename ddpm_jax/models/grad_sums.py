"""Gradients of a bfloat16 network that are summed over the devices in float32.

XLA computes the gradient of a layer's parameters for the examples of each device, in the type of the layer, and sums these
over the devices in the same type. The cast to float32, in which the parameters are stored, comes after the sum. In bfloat16
each addition rounds to 8 bits: a sum over 8 devices has an error of 0.3 %, one over 256 in a ring of 4 %. Here each layer is
computed by the devices separately, from float32 parameters that it casts itself, so that its gradients are cast before the
sum. The forward pass is the same, and an all-reduce has twice the bytes. If the parameters are sharded over the devices, the
layers use copies in bfloat16, one for each device, whose gradients are cast and summed in `training/fsdp.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

LAYERS = (nn.Conv, nn.Dense)  # with all parameters that a network casts; group norms use theirs in float32


def is_useful(mesh: Mesh) -> bool:
    """Whether a training step on this mesh should use `in_float32`: XLA for CPUs sums in float32 anyway."""
    return mesh.devices.flat[0].platform != "cpu" and mesh.size > 1


def for_mesh(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`apply` of a network for a training step on a mesh: `in_float32` where it is useful."""
    return in_float32(apply, mesh) if is_useful(mesh) else apply


def in_float32(apply: Callable[..., Any], mesh: Mesh, params: Any = None, copies: Any = None) -> Callable[..., Any]:
    """`apply` of a network, whose layers get gradients that are summed in float32.

    Args:
      apply: of a `flax.linen.Module`, for examples that are sharded over the devices of the mesh. A layer whose input has
        another first axis than a multiple of the devices, or no axis of examples, is left as it is.
      mesh: the examples are sharded over all its axes.
      params: the parameters that `apply` will get, if there are copies of them.
      copies: the same tree of copies in bfloat16, [devices, ...]. A layer takes its copies if its parameters are these arrays,
        or have their path in the tree; not, for example, a kernel that is made of several.
    """
    axes = mesh.axis_names
    by_identity = dict(zip(map(id, jax.tree.leaves(params)), jax.tree.leaves(copies), strict=True))
    inside = False  # a layer that a device computes

    def intercept(next_call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        nonlocal inside
        module = context.module
        is_layer = context.method_name == "__call__" and type(module) in LAYERS and module.dtype == jnp.bfloat16
        if inside or not is_layer or not _is_of_examples(module, args[0], mesh):
            return next_call(*args, **kwargs)

        at_path, copied, shared, split = _at(copies, module.path), {}, {}, PartitionSpec(axes)
        for name, array in module.variables["params"].items():
            copy = by_identity.get(id(array), at_path.get(name) if isinstance(at_path, Mapping) else None)
            if getattr(copy, "shape", None) == (mesh.size, *array.shape):
                copied[name] = copy
            else:
                shared[name] = array

        def per_device(copied: Any, shared: Any, x: jax.Array) -> Any:
            own = {name: array[0] for name, array in copied.items()}
            # The sum over the devices is the transpose of the cast to "varying": of float32 arrays.
            own |= jax.lax.pcast(shared, axes, to="varying")
            return module.clone(parent=None, name=module.name).apply({"params": own}, x)

        inside = True
        try:
            in_specs = (split, PartitionSpec(), split)
            return jax.shard_map(per_device, mesh=mesh, in_specs=in_specs, out_specs=split)(copied, shared, *args)
        finally:
            inside = False

    def apply_in_float32(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(intercept):
            return apply(*args, **kwargs)

    return apply_in_float32


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    """The part of a tree of mappings; None if there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _is_of_examples(module: nn.Module, x: jax.Array, mesh: Mesh) -> bool:
    """Whether the devices can compute the layer for parts of the first axis."""
    kernel = module.variables.get("params", {}).get("kernel")
    return kernel is not None and x.ndim >= kernel.ndim and x.shape[0] % mesh.size == 0
