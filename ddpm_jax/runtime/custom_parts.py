"""Checks parts of the user's own when they are made, so that a wrong one ends in one line, not in a traceback later.

`jax.eval_shape` gives the shapes and types of what a function returns without computing anything. The first argument of each
function here, `part`, is the subject of the error, such as "the sampler my_parts:euler".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError
from ddpm_jax.runtime.registry import fault

BATCH_SIZE = 2  # of the traced calls


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An argument of `trace`, and a required result."""
    return jax.ShapeDtypeStruct(shape, dtype)


def keys(count: int) -> jax.ShapeDtypeStruct:
    """`count` random keys, as an argument of `trace`."""
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))


def check_type(part: str, made: Any, kind: type) -> None:
    """Checks the class of an object.

    Raises:
      InvalidArgumentError: `made` is not a `kind`.
    """
    if not isinstance(made, kind):
        raise InvalidArgumentError(f"{part} is {_describe(made)}: {_article(kind.__name__)} is required")


def trace(part: str, function: Callable[..., Any], *args: Any) -> Any:
    """The shapes and types of `function(*args)`: a tree of jax.ShapeDtypeStruct.

    Raises:
      InvalidArgumentError: the function raises an exception, or returns something other than arrays.
    """
    try:
        return jax.eval_shape(function, *args)
    except ExpectedError:
        raise
    except Exception as error:  # raised by the user's function
        raise InvalidArgumentError(f"{part} fails: {fault(error)}") from error


def check_result(part: str, found: Any, required: Any, what: str) -> None:
    """Checks the shapes and types of a result of `trace`.

    Args:
      part: subject of the error.
      found: the result.
      required: a tree of jax.ShapeDtypeStruct.
      what: the meaning of the required result, such as "the loss of each image".

    Raises:
      InvalidArgumentError: the trees, or the shape or type of an array, differ.
    """
    leaves, required_leaves = jax.tree.leaves(found), jax.tree.leaves(required)
    trees: list[Any] = [jax.tree.structure(found), jax.tree.structure(required)]
    pairs = zip(leaves, required_leaves, strict=False)
    if trees[0] != trees[1] or any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in pairs):
        raise InvalidArgumentError(f"{part} returns {_describe(found)}: {_describe(required)}, {what}, is required")


def unpack(part: str, found: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The elements of a result that must be a tuple.

    Raises:
      InvalidArgumentError: it is none, or of another length.
    """
    if not isinstance(found, tuple) or len(found) != len(names):
        raise InvalidArgumentError(f"{part} returns {_describe(found)}: the tuple ({', '.join(names)}) is required")
    return found


def _describe(value: Any) -> str:
    """Such as: float32 [2, 8, 8, 1]; the tuple (int32 [2], float32 [2]); a dict of 3 arrays."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype} {list(value.shape)}"
    if value is None:
        return "None"
    if type(value) is tuple and len(value) <= 4:
        return f"the tuple ({', '.join(map(_describe, value))})"
    arrays = [leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.ShapeDtypeStruct)]
    size = f" of {len(arrays)} arrays" if arrays else ""
    return _article(type(value).__name__) + size


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiouAEIOU" else f"a {noun}"
