"""Sets of parameters by patterns of their paths, such as "down*" or "*/norm1/*", and starting from the weights of another run.

A path is that of parameters.txt: the names in the tree, joined by "/". In a pattern * matches any text, / included, and ?
one character, as in `fnmatch`.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.runtime import tree_shapes
from ddpm_jax.runtime.errors import InvalidArgumentError

CLASS_EMBEDDING = "class_embed/embedding"  # of the U-Net: [number of labels, width]


def match(params: Any, patterns: Sequence[str], what: str) -> Any:
    """Whether each parameter matches a pattern: a pytree of bool, like `params`.

    Args:
      params: pytree of arrays or shapes.
      patterns: patterns of paths.
      what: name of the argument with the patterns, for the error.

    Raises:
      InvalidArgumentError: a pattern matches no parameter.
    """
    paths = list(tree_shapes.shapes_of(params))
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise InvalidArgumentError(
                f"`{what}` contains {pattern!r}, which matches no parameter of the network, such as {paths[0]}: parameters.txt "
                "in a workdir lists all"
            )
    found = [is_match(path, patterns) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def is_match(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path matches one of the patterns."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def match_frozen(params: Any, patterns: Sequence[str]) -> Any:
    """`match` for parameters that are not trained.

    Raises:
      InvalidArgumentError: a pattern matches no parameter, or together they match all.
    """
    found = match(params, patterns, "frozen")
    if all(jax.tree.leaves(found)):
        raise InvalidArgumentError(f"`frozen` is {tuple(patterns)}, which matches every parameter: nothing would be trained")
    return found


class Selection(NamedTuple):
    """Which arrays of other weights a network starts from.

    Attributes:
      taken: path -> array of the other weights.
      new: paths of the network's parameters that keep their initial values.
      left: paths of the other weights that the network does not have.
      wrong: descriptions of arrays that do not fit; if there are any, the weights cannot be used.
    """

    taken: dict[str, np.ndarray]
    new: list[str]
    left: list[str]
    wrong: list[str]


def select(params: Any, weights: Mapping[str, np.ndarray], new: Sequence[str], *, same_classes: bool = True) -> Selection:
    """Choose the arrays of `weights` for a network with parameters of the shapes `params`.

    The class embedding of the U-Net keeps its initial values if its classes or shape differ, and is left out without classes.

    Args:
      params: pytree of arrays or shapes.
      weights: path -> array.
      new: patterns of paths, of parameters that keep their initial values, or are left out.
      same_classes: whether a row of the class embedding has the same meaning in both.

    Raises:
      InvalidArgumentError: a pattern matches neither a parameter nor an array.
    """
    wanted = tree_shapes.shapes_of(params)
    there = {path: (tuple(array.shape), array.dtype.name) for path, array in weights.items()}
    for pattern in new:
        if not fnmatch.filter(wanted.keys() | there.keys(), pattern):
            raise InvalidArgumentError(
                f"`init_new` contains {pattern!r}, which matches no parameter, such as {next(iter(wanted))}"
            )
    found = Selection({}, [], [], [])
    for path in sorted(wanted.keys() | there.keys()):
        has_other_classes = path == CLASS_EMBEDDING and (not same_classes or there.get(path) != wanted.get(path))
        if is_match(path, new) or has_other_classes:
            (found.new if path in wanted else found.left).append(path)
        elif there.get(path) != wanted.get(path):
            found.wrong.append(f"{path} is {_show(there.get(path))} there and {_show(wanted.get(path))} here")
        elif not np.isfinite(weights[path]).all():
            found.wrong.append(f"{path} is not finite there")
        else:
            found.taken[path] = weights[path]
    return found


def replace(params: Any, taken: Mapping[str, Any]) -> Any:
    """The parameters with the arrays of `taken`, path -> array, instead of theirs."""
    paths = tree_shapes.shapes_of(params)
    leaves = [taken.get(path, leaf) for path, leaf in zip(paths, jax.tree.leaves(params), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _show(shape: tuple | None) -> str:
    return "missing" if shape is None else f"{shape[1]}{list(shape[0])}"
