"""Random numbers of a network whose devices compute parts of a batch separately: those of the whole batch.

A key of `for_device` is of its own kind (`jax.extend.random`). Where the network requests random numbers of the shape of its
part of the batch, each device gets its part of those of the whole batch. So a dropout mask does not depend on the number of
devices, and the examples of two devices do not have the same one. All other random numbers are the same on every device.

Which axis of a shape has the examples follows from the network itself, traced for the part and for the whole batch. If it
requests numbers of one shape both for its examples and for something else, it is refused. Keys of `rbg` that are batched
(`jax.vmap`) have other numbers on each number of devices, as JAX documents of them.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend.core
import jax.extend.random
import jax.numpy as jnp
import numpy as np

from ddpm_jax.runtime.errors import InvalidArgumentError

Shape = tuple[int, ...]
Request = tuple[str, Shape]
Axes = frozenset[tuple[Request, int]]
THREEFRY = "threefry2x32"
BITS, SPLIT = "random_bits", "random_split"  # JAX's primitives
NOUNS = {BITS: "numbers", SPLIT: "keys"}


def axes_of_examples(part: Any, batch: Any, num_devices: int) -> Axes:
    """The random numbers of a network that are of its examples: kind, shape for a part of the batch, and the axis they have.

    Args:
      part: `jax.extend.core.Jaxpr` of the network, with all programs inside it, for one of equal parts of a batch.
      batch: the same for the whole batch.
      num_devices: number of parts.

    Raises:
      InvalidArgumentError: the requests of the two differ otherwise than by the length of an axis, or equal ones for a part
        are different ones for the batch.
    """
    axes: dict[Request, int | None] = {}
    for request, whole in itertools.zip_longest(_requests(part), _requests(batch), fillvalue=("", ())):
        axis = _axis(request, whole, num_devices)
        if axes.setdefault(request, axis) != axis:
            raise InvalidArgumentError(
                f"the network requests random {NOUNS[request[0]]} of shape {request[1]} on each of {num_devices} devices, both "
                "for its examples and for something else: choose another batch size or number of devices"
            )
    return frozenset((request, axis) for request, axis in axes.items() if axis is not None)


def _axis(request: Request, whole: Request, num_devices: int) -> int | None:
    """The axis that is `num_devices` times as long in `whole`; None for equal requests."""
    if request == whole:
        return None
    if request[0] == whole[0]:
        for axis, size in enumerate(request[1]):
            if whole[1] == (*request[1][:axis], size * num_devices, *request[1][axis + 1 :]):
                return axis
    raise InvalidArgumentError(
        f"the network requests other random numbers for a batch than for its parts on {num_devices} devices: only the length "
        "of one axis of a shape may depend on the number of examples"
    )


def _requests(jaxpr: Any) -> Iterator[Request]:
    """The kinds, BITS or SPLIT, and shapes of the random numbers and keys that a program requests, in its order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in (BITS, SPLIT):
            yield equation.primitive.name, equation.params["shape"]
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _requests(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)


def for_device(key: jax.Array, device: jax.Array, num_devices: int, axes: Axes) -> jax.Array:
    """The key with which a device gets its part of the random numbers of the whole batch.

    Args:
      key: the same on all devices.
      device: int [], which of the equal, consecutive parts of the batch the device has.
      num_devices: number of parts.
      axes: `axes_of_examples` of the network.
    """
    spec = _spec(str(jax.random.key_impl(key)), num_devices, axes)
    return jax.random.wrap_key_data(jnp.append(jax.random.key_data(key), jnp.uint32(device)), impl=spec)


@functools.lru_cache
def _spec(base: str, num_devices: int, axes: Axes) -> Any:
    """Keys of the kind `base`, with a further word: the number of the device."""

    axis_of = dict(axes)

    def key_of(data: jax.Array) -> jax.Array:
        return jax.random.wrap_key_data(data[:-1], impl=base)

    def whole_shape(kind: str, shape: Shape) -> tuple[int | None, Shape]:
        axis = axis_of.get((kind, shape))
        return axis, shape if axis is None else (*shape[:axis], shape[axis] * num_devices, *shape[axis + 1 :])

    def part(values: jax.Array, data: jax.Array, shape: Shape, axis: int | None) -> jax.Array:
        if axis is None:
            return values
        return jax.lax.dynamic_slice_in_dim(values, data[-1].astype(jnp.int32) * shape[axis], shape[axis], axis)

    def random_bits(data: jax.Array, bit_width: int, shape: Shape) -> jax.Array:
        axis, whole = whole_shape(BITS, shape)
        partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
        if axis is not None and base == THREEFRY and bit_width <= 32 and partitionable:
            return _threefry_bits(data, num_devices, shape, axis).astype(f"uint{bit_width}")
        return part(jax.random.bits(key_of(data), whole, f"uint{bit_width}"), data, shape, axis)

    def split(data: jax.Array, shape: Shape) -> jax.Array:
        axis, whole = whole_shape(SPLIT, shape)
        keys = part(jax.random.key_data(jax.random.split(key_of(data), whole)), data, shape, axis)
        return jnp.concatenate([keys, jnp.broadcast_to(data[-1], (*shape, 1))], axis=-1)

    def fold_in(data: jax.Array, number: Any) -> jax.Array:
        return jnp.append(jax.random.key_data(jax.random.fold_in(key_of(data), number)), data[-1])

    def seed(number: jax.Array) -> jax.Array:
        return jnp.append(jax.random.key_data(jax.random.key(number, impl=base)), jnp.uint32(0))

    words = math.prod(jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=base))).shape)
    return jax.extend.random.define_prng_impl(
        key_shape=(words + 1,),
        seed=seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,
        name=f"device_{base}",
        tag="dev",
    )


def _threefry_bits(data: jax.Array, num_devices: int, shape: Shape, axis: int) -> jax.Array:
    """uint32 of a shape: Threefry of the places in the whole array, so that a device computes no other numbers.

    A place has 64 bits. The part of a device consists of blocks of consecutive places.
    """
    first_axes, block = math.prod(shape[:axis]), math.prod(shape[axis:])
    starts = (np.arange(first_axes, dtype=np.uint64) * num_devices + np.arange(num_devices, dtype=np.uint64)[:, None]) * block
    high, low = (jnp.asarray(words, jnp.uint32)[data[-1]][:, None] for words in (starts >> 32, starts & 0xFFFFFFFF))
    places = low + jax.lax.iota(jnp.uint32, block)[None]
    high = high + (places < low).astype(jnp.uint32)
    first, second = jax.extend.random.threefry2x32_p.bind(data[0], data[1], high, places)
    return (first ^ second).reshape(shape)
