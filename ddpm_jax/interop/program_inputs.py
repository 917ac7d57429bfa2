"""Inputs and outputs of exported programs: names, dtypes and shapes, and a network's condition as separate inputs.

The condition of a network is a pytree (`ddpm_jax.condition_config`): labels, or a dictionary of a condition image and what
comes with it. A program has one input for each of its arrays, in the order of the pytree.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

BATCH = "b"
NAMES = {"": "labels", "label": "labels", "image": "condition", "noise_level": "noise_level"}  # key in the pytree -> input


class Tensor(NamedTuple):
    """An input or output of a program.

    Attributes:
      name: the name in the program.
      dtype: such as float32.
      shape: sizes; the string "b" is the number of images, which may differ from call to call.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


class ConditionInputs(NamedTuple):
    """The inputs of a program that make up the condition of its network.

    Attributes:
      tensors: labels int32 [b], condition float32 [b, h, w, C] in [-1, 1], noise_level float32 [b]: those that there are.
      structure: the pytree.
    """

    tensors: tuple[Tensor, ...]
    structure: Any

    def cond(self, arrays: Iterable[Any]) -> Any:
        """The condition of the arrays of these inputs."""
        return jax.tree.unflatten(self.structure, arrays)


def condition_inputs(example: Any) -> ConditionInputs:
    """The inputs for conditions like this one: a pytree of arrays [1, ...], or None without a condition."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(example)
    names = (NAMES["".join(entry.key for entry in path)] for path, _ in leaves)
    tensors = (Tensor(name, str(x.dtype), (BATCH, *x.shape[1:])) for name, (_, x) in zip(names, leaves, strict=True))
    return ConditionInputs(tuple(tensors), structure)


class ConditionCode(NamedTuple):
    """The condition in the code of a README, for n images.

    Attributes:
      setup: lines before, each with its newline.
      arguments: input -> expression.
    """

    setup: str
    arguments: Mapping[str, str]


def condition_code(inputs: ConditionInputs, module: str, normal: str, *, labels: str, noise_level: float) -> ConditionCode:
    """The condition in the code of a README: the labels, and gray condition images that the user replaces.

    Args:
      inputs: of the program.
      module: np or jnp.
      normal: standard normal noise of the shape {shape}, an expression.
      labels: int32 [n], an expression.
      noise_level: config.sampling.condition_noise.
    """
    setup, expressions = "", {"labels": labels, "noise_level": f"{module}.full(n, {noise_level:g}, {module}.float32)"}
    for name, _, (_, *shape) in inputs.tensors:
        if name != "condition":
            continue
        size = f"(n, {', '.join(map(str, shape))})"
        setup += f"small = {module}.full({size}, 128, {module}.uint8)  # replace these by your condition images\n"
        setup += f"condition = small / {module}.float32(127.5) - 1\n"
        if noise_level:  # equation of `conditioning.add_noise`
            signal, noise = math.sqrt(1 - noise_level**2), normal.format(shape=size)
            setup += f"condition = {signal:.9g} * condition + {noise_level:g} * {noise}\n"
        expressions[name] = "condition"
    return ConditionCode(setup, {tensor.name: expressions[tensor.name] for tensor in inputs.tensors})
