"""The variance of the reverse step: the two fixed ones, and the learned range between them."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule, respace
from ddpm_jax.diffusion.spacings import spaced_timesteps
from ddpm_jax.diffusion.variances import model_variance


def gaussian(seed, shape):
    return np.random.default_rng(1000 + seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [100, 2, 1])
def test_fixed_variances(name, steps):
    schedule = respace(make_schedule(name, 100), spaced_timesteps(100, steps, "trailing"))
    t, x_t = np.arange(steps, dtype=np.int32), gaussian(7, (steps, 2, 2, 1))
    small, log_small = model_variance(schedule, x_t, t, variance="fixed_small")
    large, log_large = model_variance(schedule, x_t, t, variance="fixed_large")
    for value in (small, log_small, large, log_large):
        assert value.shape == (steps, 1, 1, 1)
        assert value.dtype == jnp.float32
        assert np.isfinite(value).all()
    first = schedule.posterior_variance[1] if steps > 1 else schedule.betas[0]
    expected = np.array([first, *schedule.betas[1:]])
    np.testing.assert_allclose(small.ravel(), schedule.posterior_variance, rtol=1e-6)
    np.testing.assert_allclose(log_small.ravel(), np.log([first, *schedule.posterior_variance[1:]]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(large.ravel(), expected, rtol=1e-6)
    np.testing.assert_allclose(log_large.ravel(), np.log(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [("linear", 500), ("cosine", 40), ("cosine", 1)])
def test_learned_range_interpolates_between_the_fixed_variances(name, steps):
    """-1 is bit-identical to fixed_small, with its clipped log at t=0; 1 is β; linear in the log. 1e-5."""
    schedule = make_schedule(name, steps)
    t = np.unique([0, steps // 3, steps - 1]).astype(np.int32)
    x_t = gaussian(40, (len(t), 4, 4, 3))

    def log_variance(v):
        value, log_value = model_variance(schedule, x_t, t, variance="learned_range", variance_output=np.full_like(x_t, v))
        assert value.shape == log_value.shape == x_t.shape
        np.testing.assert_allclose(value, np.exp(log_value), rtol=1e-6)
        return log_value[:, 0, 0, 0]

    small, large = log_variance(-1.0), log_variance(1.0)
    np.testing.assert_array_equal(small, schedule.posterior_log_variance_clipped[t].astype(np.float32))
    np.testing.assert_allclose(large, np.log(schedule.betas[t]), rtol=1e-6, atol=1e-6)
    for v in (0.0, 0.5, -1.2, 2.0):
        np.testing.assert_allclose(log_variance(v), (v + 1) / 2 * large + (1 - v) / 2 * small, rtol=1e-5, atol=1e-5)


def test_unknown_variance_is_rejected():
    with pytest.raises(ValueError, match=r"^unknown variance 'small': choose one of fixed_small, fixed_large, learned_range$"):
        model_variance(make_schedule("linear", 500), gaussian(1, (1, 2, 2, 1)), np.zeros(1, np.int32), variance="small")
