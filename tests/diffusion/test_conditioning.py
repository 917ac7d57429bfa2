"""Conditions may be any pytree: the one that means "none" replaces the rows that it should, and guidance never looks inside.

Condition images get noise of the level that the network gets.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import pixels
from ddpm_jax.diffusion.conditioning import add_noise, at_level, augmented, labels_of, replace_by_null
from ddpm_jax.samplers.guidance import Guidance, classifier_free_guidance

COND = {"label": jnp.arange(4, dtype=jnp.int32), "text": jnp.arange(8.0).reshape(4, 2)}
NULL = {"label": np.int32(9), "text": np.array([-1.0, -2.0], np.float32)}


def test_rows_are_replaced_in_every_array():
    found = replace_by_null(COND, NULL, jnp.array([True, False, False, True]))
    assert found["label"].tolist() == [9, 1, 2, 9]
    assert found["label"].dtype == jnp.int32
    assert found["text"].tolist() == [[-1, -2], [2, 3], [4, 5], [-1, -2]]


def test_guidance_takes_a_pytree():
    def network(x_t, t, cond):
        return x_t + (cond["label"] + cond["text"].sum(axis=1))[:, None, None, None]

    x_t, t = jax.random.normal(jax.random.key(0), (4, 2, 2, 1)), jnp.full(4, 5, jnp.int32)
    guidance = Guidance(scale=3.0, first_t=0, last_t=9, rescale=0.0, num_channels=1)
    out = classifier_free_guidance(network, COND, NULL, guidance)(x_t, t)
    nulls = jax.tree.map(lambda array: jnp.broadcast_to(array, (4, *array.shape)), NULL)
    expected = 3 * network(x_t, t, COND) - 2 * network(x_t, t, nulls)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


# Condition images.

GRAY = np.full((400, 4, 4, 1), 191, np.uint8)  # z = 0.498


def test_labels_of():
    assert labels_of(None) is None
    assert labels_of(COND) is COND["label"]
    assert labels_of({"image": 1}) is None
    assert labels_of(COND["label"]) is COND["label"]


def test_noise_is_the_forward_process():
    """sqrt(1 - s^2) z + s eps: 0.8 z + 0.6 eps."""
    z, eps = jnp.full((2, 1, 1, 1), 0.5), jnp.array([1.0, -1.0])[:, None, None, None]
    found = add_noise(z, jnp.array([0.6, 0.0]), eps)
    np.testing.assert_allclose(found.ravel(), [0.8 * 0.5 + 0.6, 0.5], rtol=1e-6)


def test_training_levels_are_uniform_and_known():
    """Levels in 0..0.5 with mean 0.25; the noise of each image has the standard deviation of its level."""
    found = augmented(jnp.asarray(GRAY), 0.5, jax.random.key(0))
    level, z = np.asarray(found["noise_level"]), pixels.from_uint8(GRAY[:1, 0, 0])
    assert 0 <= level.min() < 0.01
    assert 0.49 < level.max() < 0.5
    assert abs(level.mean() - 0.25) < 5 * 0.5 / np.sqrt(12 * 400)
    noise = np.asarray(found["image"]) - np.sqrt(1 - level**2)[:, None, None, None] * np.asarray(z)
    eps = noise / level[:, None, None, None]
    assert abs(np.sqrt(np.mean(eps**2)) - 1) < 5 / np.sqrt(2 * 400 * 16)
    assert abs(np.corrcoef(np.abs(noise).mean(axis=(1, 2, 3)), level)[0, 1]) > 0.8


def test_without_noise_there_is_no_level():
    found = augmented(jnp.asarray(GRAY), 0.0, jax.random.key(0))
    assert list(found) == ["image"]
    np.testing.assert_array_equal(found["image"], pixels.from_uint8(GRAY))


def test_the_noise_of_an_image_depends_on_its_key_only():
    data = jax.random.key_data(jax.random.split(jax.random.key(0), 5))
    some, all_images = (at_level(jnp.asarray(GRAY[first:5]), 0.3, jax.random.wrap_key_data(data[first:])) for first in (2, 0))
    np.testing.assert_array_equal(some["image"], all_images["image"][2:])
    assert all_images["noise_level"].tolist() == [pytest.approx(0.3)] * 5
    assert np.unique(np.asarray(all_images["image"])).size == 5 * 16
