"""Single steps: the network's inputs, the use of its outputs, and the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import (
    FULL,
    SETTINGS,
    SHAPE,
    STOCHASTIC,
    D,
    build,
    curved,
    make,
    oracle_denoiser,
    run_loop,
    shorten,
    some_keys,
)

from ddpm_jax.diffusion import variances
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.samplers import SAMPLERS, sampler


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_network_that_knows_the_image_returns_it(setting, prediction):
    """Four steps; the last adds no noise and returns x̂_0. 1e-5: x_start is converted to eps or v in float32."""
    x_start = np.array([-0.9, 0.2, 0.7, 1.0])
    sampled = build(setting, shorten(FULL, 4, "trailing" if prediction == "eps" else "karras"), prediction)
    _, pred_xstarts, x = run_loop(sampled, oracle_denoiser(FULL, x_start, prediction), some_keys(3))
    np.testing.assert_allclose(x.reshape(3, D), np.tile(x_start, (3, 1)), atol=1e-5)
    np.testing.assert_array_equal(pred_xstarts[-1], x)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_single_step_returns_x0_from_pure_noise(setting):
    """num_steps=1 for every sampler: x̂_0 at T-1, exactly. (ode continues from there to t=0.)"""
    schedule = shorten(FULL, 1, "karras")
    sampled = build(setting, schedule, trained=schedule if setting == "ode" else FULL)
    if setting == "heun-churn":  # 157 is above S_max
        assert sampled.nfe == 1
    noise, pred_xstarts, x = run_loop(sampled, curved, some_keys(3))
    np.testing.assert_allclose(x, curved(jnp.asarray(noise[0]), jnp.full(3, 999)), rtol=1e-6)
    np.testing.assert_array_equal(pred_xstarts[0], x)


@pytest.mark.parametrize("setting", ["ancestral-large", "ddim-half", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun-churn", "ode"])
def test_clipped_x0_is_used_in_the_steps(setting):
    """A network that outputs 3 or -4, clipped, gives the chain of one that outputs 1 or -1; the last x̂_0 is the sample."""
    schedule, signs = shorten(FULL, 5), np.array([3, -4, 0.5, 2], np.float32).reshape(SHAPE)

    def network(answer):
        return lambda x_t, t: jnp.broadcast_to(jnp.asarray(answer)[None], x_t.shape)

    xs, pred_xstarts, x = run_loop(build(setting, schedule, clip_denoised=True), network(signs), some_keys(3))
    np.testing.assert_array_equal(pred_xstarts, np.broadcast_to(np.clip(signs, -1, 1), pred_xstarts.shape))
    np.testing.assert_array_equal(x, pred_xstarts[-1])
    want_xs, _, want = run_loop(build(setting, schedule), network(np.clip(signs, -1, 1)), some_keys(3))
    np.testing.assert_allclose(xs, want_xs, atol=1e-5)
    np.testing.assert_array_equal(x, want)
    _, pred_xstarts, _ = run_loop(build(setting, schedule), network(signs), some_keys(3))
    np.testing.assert_array_equal(pred_xstarts, np.broadcast_to(signs, pred_xstarts.shape))


@pytest.mark.parametrize("setting", ["ddim", "unipc", "heun"])
def test_a_learned_variance_is_ignored_by_all_but_ancestral(setting):
    """With twice the channels, all but ancestral use the first half: the chain of a network without the second."""
    name, options = SETTINGS[setting]
    options = {"trained": FULL} | options
    one, two = (make(name, shorten(FULL, 3), "v", variance, **options) for variance in ("fixed_small", "learned_range"))

    def doubled(x_t, t):
        return jnp.concatenate([curved(x_t, t), 1e6 * x_t], axis=-1)

    for got, want in zip(run_loop(two, doubled, some_keys(2)), run_loop(one, curved, some_keys(2)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_any_learned_variance_is_split_off(monkeypatch):
    """Not only learned_range: the table of variances decides."""
    monkeypatch.setitem(variances.VARIANCES, "learned", variances.VARIANCES["learned_range"])
    sampled = make("ddim", shorten(FULL, 3), "v", "learned")
    x = run_loop(sampled, lambda x_t, t: jnp.concatenate([curved(x_t, t), 1e6 * x_t], axis=-1), some_keys(2))[2]
    assert x.shape == (2, *SHAPE)


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_gets_timesteps_of_training_in_descending_order(name, spacing):
    """A network whose x̂_0 is t: the saved pred_xstart are the times it was called with."""
    schedule = shorten(FULL, 5, spacing)
    sampled = make(name, schedule, trained=FULL)

    def clock(x_t, t):
        assert t.dtype == jnp.int32
        assert t.shape == x_t.shape[:1]
        return jnp.broadcast_to(t.astype(jnp.float32)[:, None, None, None], x_t.shape)

    _, pred_xstarts, _ = run_loop(sampled, clock, some_keys(3))
    np.testing.assert_array_equal(pred_xstarts[:, 0, 0, 0, 0][:-1], schedule.timesteps[:0:-1])
    assert pred_xstarts[-1, 0, 0, 0, 0] == (0 if name == "ode" else schedule.timesteps[0])  # ode continues to t=0
    assert (pred_xstarts == pred_xstarts[:, :1, :1, :1, :1]).all()


# The noise.


def test_noise_is_standard_normal_and_differs_by_key_and_purpose():
    """4 x 4,096 numbers: standard error 1/128 of mean and correlation, 1/90 of variance; five of them allowed."""
    keys, shape = some_keys(4), (64, 64, 1)
    draws = np.array([jax.jit(sampler.per_image_noise, static_argnums=2)(keys, purpose, shape) for purpose in (0, 1, 2)])
    rows = draws.reshape(12, -1)
    assert abs(rows.mean()) < 5 / 128
    assert abs(rows.var() - 1) < 5 / 90
    correlation = np.corrcoef(rows) - np.eye(12)
    assert np.abs(correlation).max() < 5 / 64  # between 4,096 numbers each


def test_steps_use_independent_noise():
    """A stochastic chain whose network outputs 0 sums independent noise: the increments of two steps are uncorrelated."""
    sampled = build("ancestral-large", shorten(FULL, 5))
    xs, _, x = run_loop(sampled, lambda x_t, t: jnp.zeros_like(x_t), some_keys(1), (32, 32, 1))
    chain = [*xs, x]
    schedule = sampled.schedule
    noise = [chain[i + 1] - schedule.posterior_mean_coef2[4 - i] * chain[i] for i in range(4)]
    correlation = np.corrcoef([chain[0].ravel()] + [n.ravel() for n in noise]) - np.eye(5)
    assert np.abs(correlation).max() < 5 / 32  # 1,024 numbers: standard error 1/32
    np.testing.assert_allclose([n.std() for n in noise], np.sqrt(schedule.betas[4:0:-1]), rtol=0.11)  # five of 1/45


@pytest.mark.parametrize("setting", SETTINGS)
def test_only_stochastic_samplers_use_noise(setting):
    """From one x_T with other keys: different images, or the same."""
    sampled = build(setting, shorten(FULL, 3, "karras"))
    x = sampler.per_image_noise(some_keys(2), 0, SHAPE)
    index = jnp.int32(1)
    one, other = (sampled.step(curved, x, sampled.init_carry(x), index, some_keys(2, seed))[0] for seed in (0, 1))
    assert bool((one == other).all()) == (setting not in STOCHASTIC)
