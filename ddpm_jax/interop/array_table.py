"""A table of arrays: which array of another program's state dict is which of our parameters, in both directions.

Parameters are flat here: "down0_block0/conv1/kernel" -> array (`flatten`, `unflatten`). PyTorch keeps the output
channels first and an image's height and width last; flax keeps the output channels last:

    convolution   [O, I, 3, 3]             <->  [3, 3, I, O]
    dense layer   [O, I], [O, I, 1(, 1)]   <->  [I, O]
    other         [...]                    <->  the same
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ddpm_jax.runtime.errors import InvalidDataError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
MAX_NAMED = 20  # arrays that an error names, of each kind


class Layout(NamedTuple):
    """How an array is stored elsewhere.

    Attributes:
      shape: shape of ours -> shape of theirs.
      to_ours: array of theirs -> ours, a view.
      to_theirs: array of ours -> theirs, a view.
    """

    shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _same(value: Any) -> Any:
    return value


def _pointwise(ones: int) -> Layout:
    """A dense layer, stored as [O, I] and `ones` axes of size 1."""
    return Layout(
        lambda shape: (*shape[::-1], *[1] * ones),
        lambda array: array.reshape(array.shape[:2]).T,
        lambda array: array.T.reshape(*array.shape[::-1], *[1] * ones),
    )


SAME = Layout(_same, _same, _same)
CONV = Layout(
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    lambda array: array.transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1),
)
DENSE, POINTWISE_1D, POINTWISE_2D = (_pointwise(ones) for ones in range(3))


def layout_of(name: str, shape: Shape, dense: Layout = DENSE) -> Layout:
    """The layout of a parameter: CONV or `dense` for kernels, else SAME."""
    if not name.endswith("/kernel"):
        return SAME
    return CONV if len(shape) == 4 else dense


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of theirs and the parameters that it holds: one, or three for a joint projection to q, k and v.

    Attributes:
      theirs: its name.
      ours: names of our parameters, in the order of `layout.to_ours` along the output channels.
      layout: of each of our parameters.
      heads: rows of theirs, along its first axis, are (head, one of `ours`, channel) for this number of heads; 1 where whole
        arrays follow each other, and for a single parameter.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout
    heads: int = 1

    def shape(self, shapes: Shapes) -> Shape:
        """The shape of their array, given those of our parameters."""
        first, *rest = self.layout.shape(shapes[self.ours[0]])
        return (len(self.ours) * first, *rest)

    def to_ours(self, array: np.ndarray) -> list[np.ndarray]:
        """Our parameters of their array; views where possible."""
        if len(self.ours) == 1:
            return [self.layout.to_ours(array)]
        parts = array.reshape(self.heads, len(self.ours), -1, *array.shape[1:])
        return [self.layout.to_ours(parts[:, i].reshape(-1, *array.shape[1:])) for i in range(len(self.ours))]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Their array of our parameters, in the order of `ours`."""
        parts = [self.layout.to_theirs(array) for array in arrays]
        if len(parts) == 1:
            return parts[0]
        rest = parts[0].shape[1:]
        return np.stack([part.reshape(self.heads, -1, *rest) for part in parts], axis=1).reshape(-1, *rest)


Table = Sequence[Entry]


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters -> "module/submodule/name" -> leaf, in alphabetical order."""
    return dict(sorted(traverse_util.flatten_dict(params, sep="/").items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def to_theirs(table: Table, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) for each entry of the table, contiguous, from our flat parameters."""
    for entry in table:
        arrays = [np.asarray(params[name]) for name in entry.ours]
        yield entry.theirs, np.ascontiguousarray(entry.to_theirs(arrays))


def to_ours(table: Table, shapes: Shapes, state: MutableMapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Our flat parameters, float32, from the arrays of a state dict.

    Args:
      table: of the network.
      shapes: of our parameters, flat.
      state: name -> array. Emptied array by array, so that memory holds one copy of the parameters.
      source: file, for errors.

    Raises:
      InvalidDataError: arrays are missing, unknown, of another shape, not of floating point, or hold NaN, infinity or a
        number that float32 does not have. The message names them.
    """
    check_shapes(table, shapes, {name: tuple(array.shape) for name, array in state.items()}, source)
    params = {}
    for entry in table:
        array = np.asarray(state.pop(entry.theirs))
        if not np.issubdtype(array.dtype, np.floating):
            raise InvalidDataError(f"{source}: the array {entry.theirs} has the type {array.dtype}, not floating point")
        if not np.isfinite(array).all():
            raise InvalidDataError(f"{source}: the array {entry.theirs} holds NaN or infinity: the network is useless")
        for name, part in zip(entry.ours, entry.to_ours(array), strict=True):
            with np.errstate(over="ignore"):
                params[name] = np.array(part, np.float32, order="C")
            if array.dtype.itemsize > 4 and not np.isfinite(params[name]).all():
                raise InvalidDataError(f"{source}: the array {entry.theirs} holds numbers too large for float32")
    return params


def check_shapes(table: Table, shapes: Shapes, found: Shapes, source: str) -> None:
    """Check that the arrays of a state dict are those of the network.

    Args:
      table, shapes, source: as for `to_ours`.
      found: name -> shape of each array of the state dict.

    Raises:
      InvalidDataError: some are missing, unknown or of another shape; all are named, up to MAX_NAMED of each kind.
    """
    wanted = {entry.theirs: entry.shape(shapes) for entry in table}
    faults = {
        "missing": [name for name in wanted if name not in found],
        "not in this network": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and tuple(found[name]) != shape
        ],
    }
    parts = [f"{len(names)} arrays are {fault}: {_listed(names)}" for fault, names in faults.items() if names]
    if parts:
        count = sum(math.prod(shape) for shape in wanted.values())
        raise InvalidDataError(
            f"{source} does not hold the weights of the network of the config, which has {count:,} parameters: "
            f"{'; '.join(parts)}"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(name[:100] for name in names[:MAX_NAMED]) + more
