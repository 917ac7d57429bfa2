"""Random numbers that the devices of a mesh make for their parts of a batch: those of the whole batch, bit for bit."""

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ddpm_jax.runtime import device_rng
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import InvalidArgumentError

DEVICES = 4


def on_devices(fn):
    """(key, x) -> `fn` of the parts of x, each with the key of its device."""
    mesh = meshes.make_mesh(jax.devices()[:DEVICES])

    def per_device(key, x):
        batch = jax.ShapeDtypeStruct((DEVICES * x.shape[0], *x.shape[1:]), x.dtype)
        part, whole = (jax.make_jaxpr(fn)(key, x).jaxpr for x in (x, batch))
        axes = device_rng.axes_of_examples(part, whole, DEVICES)
        return fn(device_rng.for_device(key, jax.lax.axis_index("data"), DEVICES, axes), x)

    return jax.jit(jax.shard_map(per_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False))


def draws(key, x):
    """Numbers of each example: by the shape, along another axis, in a loop, by a key of its own; and one for all examples."""
    keys = jax.random.split(key, 6)

    def body(carry, key):
        return carry + jax.random.normal(jax.random.fold_in(key, 7), x.shape), None

    looped, _ = jax.lax.scan(body, jnp.zeros(x.shape), jax.random.split(keys[0], 2))
    each = jax.vmap(lambda key: jax.random.gumbel(key, (5,)))(jax.random.split(keys[1], x.shape[0]))
    return {
        "mask": jax.random.bernoulli(keys[2], 0.3, x.shape),
        "16 bits": jax.random.normal(keys[3], (x.shape[0],), jnp.bfloat16),
        "axis": jax.random.bits(keys[4], (5, *x.shape)).swapaxes(0, 1),
        "loop": looped,
        "keys": each,
        "common": jnp.broadcast_to(jax.random.uniform(keys[5], (1, 2)), (x.shape[0], 2)),
    }


def common(key, x):
    """Shapes without examples, of which one is DEVICES times another; they are also the numbers of examples of a batch."""
    keys = jax.random.split(key, 2 * DEVICES)
    first, second = jax.random.split(keys[-1])
    numbers = jax.random.normal(first, (6 * DEVICES,))[:6] + jax.random.normal(second, (6,))
    return {"numbers": numbers[None] + jax.random.normal(keys[0], x.shape)}


@pytest.mark.parametrize("size", [1, 3])
def test_parts_are_those_of_the_whole_batch(size):
    key, x = jax.random.key(5), jnp.zeros((DEVICES * size, 6))
    found, expected = on_devices(draws)(key, x), jax.jit(draws)(key, x)
    for name, want in expected.items():
        np.testing.assert_array_equal(found[name], want, err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_numbers_of_something_else_than_examples_are_the_same_on_all_devices(size):
    key, x = jax.random.key(5), jnp.zeros((DEVICES * size, 6))
    np.testing.assert_array_equal(on_devices(common)(key, x)["numbers"], jax.jit(common)(key, x)["numbers"])


def test_equal_requests_for_examples_and_for_something_else_are_refused():
    """Here in a network of two examples on each device."""

    def draw(key, x):
        first, second = jax.random.split(key)
        return jax.random.normal(first, x.shape) + jax.vmap(jax.random.normal)(jax.random.split(second, len(x)))[:, None]

    message = r"random keys of shape \(2,\) on each of 4 devices, both for its examples and for something else: choose another"
    with pytest.raises(InvalidArgumentError, match=message):
        on_devices(draw)(jax.random.key(5), jnp.zeros((DEVICES * 2, 6)))
    key, x = jax.random.key(5), jnp.zeros((DEVICES * 3, 6))
    np.testing.assert_array_equal(on_devices(draw)(key, x), jax.jit(draw)(key, x))


@pytest.mark.parametrize(
    "draw",
    [
        lambda key, x: sum(jax.random.normal(jax.random.fold_in(key, i), (1, 6)) for i in range(len(x))) + x,
        lambda key, x: jax.random.bernoulli(key, 0.5, (len(x), len(x))) @ x,
    ],
    ids=["as many numbers as examples", "pairs of examples"],
)
def test_other_requests_for_a_batch_than_for_its_parts_are_refused(draw):
    with pytest.raises(InvalidArgumentError, match="other random numbers for a batch than for its parts on 4 devices: only"):
        on_devices(draw)(jax.random.key(5), jnp.zeros((DEVICES * 2, 6)))


@pytest.mark.parametrize(("impl", "partitionable"), [("rbg", True), ("threefry2x32", False)])
def test_other_generators_make_the_numbers_of_the_whole_batch_and_take_a_part(impl, partitionable):
    def draw(key, x):
        return jax.random.normal(key, x.shape)

    with jax.threefry_partitionable(partitionable):
        key, x = jax.random.key(5, impl=impl), jnp.zeros((DEVICES * 2, 3))
        np.testing.assert_array_equal(on_devices(draw)(key, x), jax.jit(draw)(key, x))


def test_places_have_64_bits():
    """The second half of an array of 2^33 numbers begins where the low word starts again."""
    rows, axis = 2**16, 0
    data = jnp.array([1, 2, rows // 2], jnp.uint32)
    bits = jax.jit(device_rng._threefry_bits, static_argnums=(1, 2, 3))(data, rows, (1, 2**17), axis)
    first, second = jax.extend.random.threefry2x32_p.bind(
        data[0], data[1], jnp.ones((2**17,), jnp.uint32), jnp.arange(2**17, dtype=jnp.uint32)
    )
    np.testing.assert_array_equal(bits[0], first ^ second)
