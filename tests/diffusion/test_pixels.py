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


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_level_of_a_type_survives_the_round_trip(dtype):
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    form = pixels.PixelFormat(dtype, 0.0, float(levels[-1]))
    x = form.from_data(jnp.asarray(levels))
    assert (float(x[0]), float(x[-1]), x.dtype) == (-1, 1, jnp.float32)
    np.testing.assert_array_equal(np.asarray(form.to_data(x)), levels)
    assert form.to_data(x).dtype == dtype
    assert form.num_levels == len(levels)
    np.testing.assert_allclose(np.asarray(form.to_255(jnp.asarray(levels)), np.float64), levels * (255 / levels[-1]), atol=1e-4)


def test_a_range_is_mapped_and_clipped():
    form = pixels.PixelFormat("float32", -100.0, 300.0)
    values = np.array([-500, -100, 100, 300, 900], np.float32)
    x = np.asarray(form.from_data(jnp.asarray(values)))
    np.testing.assert_allclose(x, [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(np.asarray(form.to_data(jnp.asarray(3 * x))), [-100, -100, 100, 300, 300], atol=1e-3)
    assert form.num_levels == 0
    counts = pixels.PixelFormat("uint16", 100.0, 355.0)
    assert counts.num_levels == 256
    np.testing.assert_array_equal(np.asarray(counts.to_data(jnp.asarray([-2.0, -1.0, 0.0, 1.0]))), [100, 100, 228, 355])


def test_shown_pictures():
    images = np.arange(2 * 2 * 2 * 4, dtype=np.uint16).reshape(2, 2, 2, 4) * 2000
    form = pixels.PixelFormat("uint16", 0.0, 65535.0)
    assert form.shown(images).shape == (2, 2, 2, 3)
    assert form.shown(images[..., :2]).shape == (2, 2, 2, 1)
    expected = np.rint(images[..., [3, 0, 1]] * (255 / 65535))
    np.testing.assert_array_equal(form._replace(shown_channels=(3, 0, 1)).shown(images), expected)
    note = "Shown: channel 3, 0, 1 of 0..3; uint16, 0 is black, 65535 is white."
    assert form._replace(shown_channels=(3, 0, 1)).describe_shown(4) == note
    assert form.describe_shown(1) == "Shown: uint16, 0 is black, 65535 is white."
    assert pixels.UINT8.describe_shown(2) == "Shown: channel 0 of 0..1."
    assert [pixels.UINT8.describe_shown(channels) for channels in (1, 3)] == ["", ""]
    eight = (images // 256).astype(np.uint8)
    np.testing.assert_array_equal(pixels.PixelFormat(shown_channels=(2,)).shown(eight), eight[..., [2]])
    np.testing.assert_array_equal(pixels.UINT8.shown(eight[..., :3]), eight[..., :3])
