"""Dropout by a hash of the position: the same distribution as Linen's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models.hashed_dropout import HashedDropout, hashed_bits
from ddpm_jax.runtime import mesh as meshes


def drop(kind, x, rate=0.3, deterministic=False, key=1):
    """The output, and the gradient for x itself as that of the output."""
    y, vjp = jax.vjp(lambda x: kind(rate).apply({}, x, deterministic, rngs={"dropout": jax.random.key(key)}), x)
    return np.asarray(y), np.asarray(*vjp(x))


def test_hashed_dropout_drops_as_dropout_does():
    """The identity if deterministic or with rate 0. Kept numbers are those of Linen's dropout; a NaN that is dropped is 0."""
    x = jax.random.normal(jax.random.key(0), (4, 50)).at[0].set(jnp.nan)
    for options in ({"deterministic": True}, {"rate": 0.0}):
        for got in drop(HashedDropout, x, **options):
            np.testing.assert_array_equal(got, x)
    (y, dx), (want, _) = drop(HashedDropout, x), drop(nn.Dropout, x)
    np.testing.assert_allclose(y, dx, rtol=1e-6)  # the same mask; the gradient is multiplied by 1 / 0.7
    both = (y != 0) & (want != 0)
    assert both.sum() > 50
    np.testing.assert_array_equal(y[both], want[both])
    assert 0 < np.isnan(y[0]).sum() < 50

    def total(x):
        return jnp.sum(HashedDropout(0.3).apply({}, x, False, rngs={"dropout": jax.random.key(1)}))

    text = jax.jit(jax.grad(total)).lower(x).as_text()
    assert text.count("stablehlo.optimization_barrier") == 1


def test_hashed_bits_are_those_of_the_hash_and_look_random():
    """Each bit is set in half of the words, within 5 standard errors, and does not depend on the bits of neighbors along any
    axis, of another example, or of another key."""
    shape = (8, 16, 16, 32)
    bits, other = (np.asarray(hashed_bits(jax.random.key(key), shape)) for key in (0, 1))
    first, second = (int(word) for word in jax.random.bits(jax.random.key(0), (2, 8, 1, 1, 1))[:, 5].reshape(2))
    place = np.ravel_multi_index((3, 9, 30), shape[1:])
    word = place ^ first
    word = ((word ^ word >> 16) * 0x7FEB352D + second) % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    assert bits[5, 3, 9, 30] == word ^ word >> 16

    planes = np.unpackbits(bits.reshape(-1, 1).view(np.uint8), axis=1).reshape(*shape, 32) - 0.5
    others = np.unpackbits(other.reshape(-1, 1).view(np.uint8), axis=1).reshape(*shape, 32) - 0.5
    bound = 5 * 0.5 / np.sqrt(bits.size)
    assert np.abs(planes.mean(axis=(0, 1, 2, 3))).max() < bound
    for name, moved in {
        **{f"axis {axis}": np.roll(planes, 1, axis) for axis in range(4)},
        "half": np.roll(planes, 4, 0),
        "key": others,
        "bit": np.roll(planes, 1, 4),
    }.items():
        correlation = np.abs((planes * moved).mean(axis=(0, 1, 2, 3))).max()
        assert correlation < bound / 2, name


def test_hashed_bits_do_not_depend_on_the_devices():
    mesh = meshes.make_mesh(jax.devices()[:2])
    split = jax.jit(lambda key: hashed_bits(key, (4, 8)), out_shardings=meshes.batch_sharding(mesh))
    np.testing.assert_array_equal(split(jax.random.key(3)), hashed_bits(jax.random.key(3), (4, 8)))
