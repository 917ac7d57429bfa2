"""One step after the other: what a network is asked, what becomes of its answers, and the noise."""

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
    shorten,
    some_keys,
    walk,
)

from ddpm_jax.diffusion import variances
from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.samplers import SAMPLERS, sampler


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_oracle_gets_its_image_back(setting, prediction):
    """Four steps; the last adds no noise and returns the guess itself. 1e-5: x_start goes through eps or v in float32."""
    x_start = np.array([-0.9, 0.2, 0.7, 1.0])
    sampled = build(setting, shorten(FULL, 4, "trailing" if prediction == "eps" else "karras"), prediction)
    _, guesses, x = walk(sampled, oracle_denoiser(FULL, x_start, prediction), some_keys(3))
    np.testing.assert_allclose(x.reshape(3, D), np.tile(x_start, (3, 1)), atol=1e-5)
    np.testing.assert_array_equal(guesses[-1], x)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_single_step_is_the_guess_from_pure_noise(setting):
    """num_steps=1 by every sampler: the network's answer at T-1, exactly. (The ode goes on from there to t=0.)"""
    schedule = shorten(FULL, 1, "karras")
    sampled = build(setting, schedule, trained=schedule if setting == "ode" else FULL)
    if setting == "heun-churn":  # 157 lies above S_max
        assert sampled.evaluations == 1
    noise, guesses, x = walk(sampled, curved, some_keys(3))
    np.testing.assert_allclose(x, curved(jnp.asarray(noise[0]), jnp.full(3, 999)), rtol=1e-6)
    np.testing.assert_array_equal(guesses[0], x)


@pytest.mark.parametrize("setting", ["ancestral-large", "ddim-half", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun-churn", "ode"])
def test_guesses_are_clipped_where_asked_and_steps_go_by_the_clipped_ones(setting):
    """A network that answers 3 or -4 draws, clipped, the chain of one that answers 1 or -1; the last guess is the sample."""
    schedule, signs = shorten(FULL, 5), np.array([3, -4, 0.5, 2], np.float32).reshape(SHAPE)

    def network(answer):
        return lambda x_t, t: jnp.broadcast_to(jnp.asarray(answer)[None], x_t.shape)

    xs, guesses, x = walk(build(setting, schedule, clip_denoised=True), network(signs), some_keys(3))
    np.testing.assert_array_equal(guesses, np.broadcast_to(np.clip(signs, -1, 1), guesses.shape))
    np.testing.assert_array_equal(x, guesses[-1])
    want_xs, _, want = walk(build(setting, schedule), network(np.clip(signs, -1, 1)), some_keys(3))
    np.testing.assert_allclose(xs, want_xs, atol=1e-5)
    np.testing.assert_array_equal(x, want)
    _, guesses, _ = walk(build(setting, schedule), network(signs), some_keys(3))
    np.testing.assert_array_equal(guesses, np.broadcast_to(signs, guesses.shape))


@pytest.mark.parametrize("setting", ["ddim", "unipc", "heun"])
def test_a_network_that_learns_its_variance_is_asked_for_the_rest(setting):
    """Of twice the channels, all but ancestral read the first half: the chain of a network without the second."""
    name, options = SETTINGS[setting]
    options = {"trained": FULL} | options
    one, two = (make(name, shorten(FULL, 3), "v", variance, **options) for variance in ("fixed_small", "learned_range"))

    def doubled(x_t, t):
        return jnp.concatenate([curved(x_t, t), 1e6 * x_t], axis=-1)

    for got, want in zip(walk(two, doubled, some_keys(2)), walk(one, curved, some_keys(2)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_any_learned_variance_is_split_off(monkeypatch):
    """Not only the one called learned_range: the table of variances decides."""
    monkeypatch.setitem(variances.VARIANCES, "learned", variances.VARIANCES["learned_range"])
    sampled = make("ddim", shorten(FULL, 3), "v", "learned")
    x = walk(sampled, lambda x_t, t: jnp.concatenate([curved(x_t, t), 1e6 * x_t], axis=-1), some_keys(2))[2]
    assert x.shape == (2, *SHAPE)


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_given_the_timesteps_of_training_in_descending_order(name, spacing):
    """A network that answers with t itself, as its guess of x_start: the kept guesses are the times it saw."""
    schedule = shorten(FULL, 5, spacing)
    sampled = make(name, schedule, trained=FULL)

    def clock(x_t, t):
        assert t.dtype == jnp.int32
        assert t.shape == x_t.shape[:1]
        return jnp.broadcast_to(t.astype(jnp.float32)[:, None, None, None], x_t.shape)

    _, guesses, _ = walk(sampled, clock, some_keys(3))
    np.testing.assert_array_equal(guesses[:, 0, 0, 0, 0][:-1], schedule.timesteps[:0:-1])
    assert guesses[-1, 0, 0, 0, 0] == (0 if name == "ode" else schedule.timesteps[0])  # ode goes on to t=0
    assert (guesses == guesses[:, :1, :1, :1, :1]).all()


# The noise.


def test_noise_is_standard_normal_and_differs_by_key_and_purpose():
    """4 x 4,096 numbers a draw: standard error 1/128 of mean and correlation, 1/90 of variance; five of them allowed."""
    keys, shape = some_keys(4), (64, 64, 1)
    draws = np.array([jax.jit(sampler.per_image_noise, static_argnums=2)(keys, purpose, shape) for purpose in (0, 1, 2)])
    rows = draws.reshape(12, -1)
    assert abs(rows.mean()) < 5 / 128
    assert abs(rows.var() - 1) < 5 / 90
    correlation = np.corrcoef(rows) - np.eye(12)
    assert np.abs(correlation).max() < 5 / 64  # between single draws of 4,096 numbers


def test_steps_use_noise_of_their_own():
    """A stochastic chain whose network says 0 adds up independent noise: no two steps' increments are the same draw."""
    sampled = build("ancestral-large", shorten(FULL, 5))
    xs, _, x = walk(sampled, lambda x_t, t: jnp.zeros_like(x_t), some_keys(1), (32, 32, 1))
    chain = [*xs, x]
    schedule = sampled.schedule
    noise = [chain[i + 1] - schedule.posterior_mean_coef2[4 - i] * chain[i] for i in range(4)]
    correlation = np.corrcoef([chain[0].ravel()] + [n.ravel() for n in noise]) - np.eye(5)
    assert np.abs(correlation).max() < 5 / 32  # 1,024 numbers: standard error 1/32
    np.testing.assert_allclose([n.std() for n in noise], np.sqrt(schedule.betas[4:0:-1]), rtol=0.11)  # five of 1/45


@pytest.mark.parametrize("setting", SETTINGS)
def test_only_stochastic_samplers_draw_noise(setting):
    """From one x_T with other keys: other images, or the same."""
    sampled = build(setting, shorten(FULL, 3, "karras"))
    x = sampler.per_image_noise(some_keys(2), 0, SHAPE)
    index = jnp.int32(1)
    one, other = (sampled.step(curved, x, sampled.init_carry(x), index, some_keys(2, seed))[0] for seed in (0, 1))
    assert bool((one == other).all()) == (setting not in STOCHASTIC)
