"""Guidance: its two equations, the interval, and the number of network calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.parameterization import PREDICTIONS, Parameterization
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.samplers.guidance import Guidance, cfg_combine, classifier_free_guidance

NO_LABEL = 3
SCHEDULE = make_schedule("linear", 1000)


def guidance(**changes):
    return Guidance(**({"scale": 2.0, "first_t": 0, "last_t": 999, "rescale": 0.0, "num_channels": 1} | changes))


def network(x_t, t, labels):
    """Its output contains the label, and depends on x_t and t."""
    return labels.astype(jnp.float32)[:, None, None, None] + jnp.tanh(x_t) * t[:, None, None, None] / 1000


def some(batch=4, t=500, channels=1):
    x_t = jax.random.normal(jax.random.key(0), (batch, 2, 3, channels))
    return x_t, jnp.full(batch, t, jnp.int32), jnp.arange(batch, dtype=jnp.int32) % 3


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_output_is_linear_in_the_scale(scale):
    x_t, t, labels = some()
    out = classifier_free_guidance(network, labels, NO_LABEL, guidance(scale=scale))(x_t, t)
    expected = (1 - scale) * network(x_t, t, jnp.full(4, NO_LABEL)) + scale * network(x_t, t, labels)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("t", "inside"), [(99, False), (100, True), (600, True), (601, False)])
def test_guidance_applies_only_inside_its_interval(t, inside):
    x_t, t, labels = some(t=t)
    out = classifier_free_guidance(network, labels, NO_LABEL, guidance(first_t=100, last_t=600))(x_t, t)
    alone = network(x_t, t, labels)
    assert np.allclose(out, alone, atol=1e-6) != inside


def test_both_outputs_come_from_one_call():
    """The batch is not doubled outside the interval: the other branch of the condition has the original batch."""
    x_t, t, labels = some()
    sizes = []

    def watched(x_t, t, labels):
        sizes.append(len(x_t))
        return network(x_t, t, labels)

    jax.make_jaxpr(classifier_free_guidance(watched, labels, NO_LABEL, guidance()))(x_t, t)
    assert sorted(sizes) == [4, 8]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_is_equivalent_for_all_predictions(prediction):
    """Guided x̂_0 equals guidance of x̂_0: 1e-5 of its size."""
    x_t, t, _ = some()
    parameterization, level = Parameterization(prediction, "fixed_small", clip_denoised=False), SCHEDULE.level(t)
    outputs = [jax.random.normal(jax.random.key(i), x_t.shape) for i in (1, 2)]
    pred_xstart = [parameterization.predict_x0(out, x_t, level) for out in outputs]
    of_outputs = cfg_combine(*outputs, guidance(scale=3.0))
    out = parameterization.predict_x0(of_outputs, x_t, level)
    expected = cfg_combine(*pred_xstart, guidance(scale=3.0))
    np.testing.assert_allclose(out, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_rescale_restores_the_conditional_standard_deviation():
    c, u = (jax.random.normal(jax.random.key(i), (3, 4, 4, 2)) for i in (1, 2))
    full = cfg_combine(c, u, guidance(scale=5.0, rescale=1.0, num_channels=2))
    np.testing.assert_allclose(np.std(full, axis=(1, 2, 3)), np.std(c, axis=(1, 2, 3)), rtol=1e-5)
    plain = cfg_combine(c, u, guidance(scale=5.0, num_channels=2))
    half = cfg_combine(c, u, guidance(scale=5.0, rescale=0.5, num_channels=2))
    np.testing.assert_allclose(half, (full + plain) / 2, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_is_the_conditional_one():
    c, u = (jax.random.normal(jax.random.key(i), (2, 4, 4, 6)) for i in (1, 2))
    out = cfg_combine(c, u, guidance(num_channels=3, rescale=0.7))
    np.testing.assert_array_equal(out[..., 3:], c[..., 3:])
    assert not np.allclose(out[..., :3], c[..., :3])


@pytest.mark.parametrize("changes", [{"scale": -1.0}, {"rescale": 1.5}, {"rescale": -0.1}, {"first_t": 700, "last_t": 600}])
def test_out_of_range_arguments_are_rejected(changes):
    with pytest.raises(ValueError, match=r"out of range"):
        guidance(**changes)
