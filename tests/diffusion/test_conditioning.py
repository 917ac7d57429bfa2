"""Conditions may be any pytree: the one that means "none" replaces the rows that it should, and guidance never looks inside."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.conditioning import replace_by_null
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
