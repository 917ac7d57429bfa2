"""uint8 <-> float: both ends, the round trip, rounding to the nearest level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import pixels

LEVELS = np.arange(256, dtype=np.uint8)


def test_levels_are_evenly_spaced_from_minus_one_to_one():
    """float32, within 1e-6 of k / 127.5 - 1; both ends exact."""
    x = pixels.from_uint8(LEVELS)
    assert x.dtype == jnp.float32
    assert (float(x[0]), float(x[255])) == (-1.0, 1.0)
    np.testing.assert_allclose(x, np.linspace(-1, 1, 256), atol=1e-6)


@pytest.mark.parametrize("shape", [(256,), (2, 8, 16, 1)])
def test_every_level_survives_the_round_trip(shape):
    images = LEVELS.reshape(shape)
    back = jax.jit(lambda x: pixels.to_uint8(pixels.from_uint8(x)))(images)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize("offset", [-0.49, -0.1, 0.1, 0.49])
def test_floats_are_rounded_to_the_nearest_level(offset):
    """Levels 1..254 moved by less than half a level are recovered; truncation would fail for negative offsets."""
    x = (np.arange(1, 255) + offset) / 127.5 - 1
    np.testing.assert_array_equal(pixels.to_uint8(jnp.asarray(x, jnp.float32)), LEVELS[1:255])


def test_values_out_of_range_are_clipped():
    x = jnp.array([-1e6, -1.5, -1.01, 1.01, 1.5, 1e6, -jnp.inf, jnp.inf])
    np.testing.assert_array_equal(pixels.to_uint8(x), [0, 0, 0, 255, 255, 255, 0, 255])
