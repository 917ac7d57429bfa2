"""Gradients in a few vectors, from which a GPU updates the parameters in few kernels.

The optimizer, the averages and the norms of the gradient and of the parameters treat each parameter separately, and XLA
compiles at least one GPU kernel for each of them: about 1,000 for the 328 parameters of CIFAR-10's network, most of which
have 256 numbers. A launch costs a few microseconds, whatever the size.

Here the gradients are copied into vectors of up to GROUP_SIZE parameters, ordered by size. Each gradient is then a part of a
vector. XLA fuses the updates of parameters of the same shape into one kernel if they read the same array, and a norm takes
one reduction per vector. The training state, the optimizer and its arithmetic are the same as without groups; only the
norms add in another order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

# XLA fuses at most 96 arrays into a GPU kernel (MaxOperandsAndOutputsPerFusion), the transposed gradients of convolutions
# among them. With 32, the update of CIFAR-10's network takes 167 kernels instead of 140.
GROUP_SIZE = 64


def is_useful(mesh: Mesh) -> bool:
    """Whether a training step on this mesh should use groups: on GPUs, if each holds the whole state.

    CPUs launch no kernels. A vector of sharded gradients would gather them on each device, so a mesh of a second axis, over
    which the state is sharded, does without.
    """
    return mesh.devices.flat[0].platform == "gpu" and len(mesh.axis_names) == 1


def group(grads: Any, transform: Callable[[jax.Array], jax.Array] = lambda vector: vector) -> Any:
    """The same gradients as parts of a few vectors, to each of which `transform` is applied elementwise."""
    leaves, treedef = jax.tree.flatten(grads)
    result = list(leaves)
    for members in _groups(leaves):
        # Without the barrier, XLA would replace each part by the gradient of which it is a copy.
        vector, start = transform(jax.lax.optimization_barrier(_concatenate(leaves, members))), 0
        for index in members:
            result[index] = jax.lax.slice(vector, (start,), (start + leaves[index].size,)).reshape(leaves[index].shape)
            start += leaves[index].size
    return jax.tree.unflatten(treedef, result)


def norm(tree: Any) -> jax.Array:
    """`optax.tree.norm`, the root of the sum of all squares, by one reduction per group. XLA recognizes the vectors of
    `group` and does not copy them again."""
    leaves = jax.tree.leaves(tree)
    # Without the barrier, XLA would split the sum over a vector into sums over its parts.
    vectors = [jax.lax.optimization_barrier(_concatenate(leaves, members)) for members in _groups(leaves)]
    return jnp.sqrt(sum((jnp.sum(jnp.square(vector)) for vector in vectors), jnp.float32(0)))


def norm_of_new(params: Any) -> jax.Array:
    """`norm` of arrays that are also outputs of the program: they are read again instead of computed twice."""
    return norm(jax.lax.optimization_barrier(params))


def _groups(leaves: list[jax.Array]) -> list[list[int]]:
    """Indices of the leaves of each group. The large ones come first: sizes that are not multiples of 4 at the end leave the
    other parts aligned, as vector loads require."""
    by_type: dict[Any, list[int]] = {}
    for index in sorted(range(len(leaves)), key=lambda index: (-leaves[index].size, index)):
        by_type.setdefault(leaves[index].dtype, []).append(index)
    return [same[start : start + GROUP_SIZE] for same in by_type.values() for start in range(0, len(same), GROUP_SIZE)]


def _concatenate(leaves: list[jax.Array], members: list[int]) -> jax.Array:
    return jax.lax.concatenate([leaves[index].reshape(-1) for index in members], 0)
