"""Parameterizations: conversions, the table of predictions, and invalid arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import continuous_time, gaussian, loss_weighting, losses
from ddpm_jax.diffusion.noise_level import NoiseLevel
from ddpm_jax.diffusion.parameterization import (
    PREDICTIONS,
    Parameterization,
    Prediction,
    predict_eps_from_v,
    predict_eps_from_xstart,
    predict_v,
    predict_xstart_from_eps,
    predict_xstart_from_v,
)
from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule, schedule_from_betas

SHAPE = (5, 4, 4, 3)
T = np.array([0, 1, 20, 250, 499], np.int32)  # of 500


def images(seed, shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def standard_normal(seed, shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(1000 + seed).standard_normal(shape).astype(dtype)


def predicting(prediction, variance="fixed_small", *, clip_denoised=False):
    return Parameterization(prediction, variance, clip_denoised)


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_prediction_recovers_the_image_and_its_noise(name):
    """1e-5 of float32's precision: a conversion scales the rounding errors of its inputs."""
    schedule = make_schedule(name, 500)
    level = schedule.level(T)
    x_start, noise = images(3), standard_normal(3)
    x_t = gaussian.q_sample(schedule, x_start, T, noise)
    v = predict_v(x_start, level, noise)

    def close(actual, expected, scale=1.0):
        error = np.abs(np.asarray(actual) - expected).max(axis=(1, 2, 3))
        assert (error <= 1e-5 * np.maximum(scale, 1)).all(), error

    close(predict_xstart_from_v(x_t, level, v), x_start)
    close(predict_eps_from_v(x_t, level, v), noise)
    close(predict_xstart_from_eps(x_t, level, noise), x_start, schedule.sqrt_recip_alphas_cumprod[T])
    close(predict_eps_from_xstart(x_t, level, x_start), noise, 1 / schedule.sqrt_one_minus_alphas_cumprod[T])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversion_cycles_are_the_identity(name, prediction):
    """output -> x_start -> eps -> v or x_start or eps, for any output and x_t: 1e-10 in float64, times the scale."""
    with jax.enable_x64(True):
        schedule = make_schedule(name, 500)
        level = schedule.level(T)
        x_t, output = standard_normal(4, dtype=np.float64), standard_normal(5, dtype=np.float64)
        x_start = predicting(prediction).predict_x0(output, x_t, level)
        eps = predict_eps_from_xstart(x_t, level, x_start)
        again = {
            "eps": eps,
            "x_start": predict_xstart_from_eps(x_t, level, eps),
            "v": predict_v(x_start, level, eps),
        }[prediction]
        assert again.dtype == jnp.float64
        np.testing.assert_allclose(again, output, rtol=0, atol=1e-10)
        np.testing.assert_allclose(gaussian.q_sample(schedule, x_start, T, eps), x_t, rtol=0, atol=1e-10)


def test_v_matches_its_definition():
    """One pixel, by hand: alphas_cumprod = .36, so v = .6 eps - .8 x_start. 1e-6."""
    level = schedule_from_betas(np.array([0.64])).level(np.array([0]))
    v = predict_v(np.full((1, 1), 0.5, np.float32), level, np.full((1, 1), 2.0, np.float32))
    assert float(v[0, 0]) == pytest.approx(0.6 * 2.0 - 0.8 * 0.5, rel=1e-6)


# The table.


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_velocity_and_error_scale_are_consistent(prediction):
    """In float64, between timesteps: `target` converts back to the image, 1e-9; the velocity is dx/dφ of
    x = cos φ x_0 + sin φ ε, 1e-9; and an error in x_start scales by `error_scale`, 1e-9.
    """
    with jax.enable_x64(True):
        schedule, angle = make_schedule("cosine", 500), jnp.array([0.1, 0.7, 1.4])
        level = continuous_time.level_at(schedule, angle)
        x_start, noise, error = (jnp.asarray(standard_normal(i, (3, 2, 2, 1), np.float64)) for i in range(3))
        cos, sin = (f(angle).reshape(3, 1, 1, 1) for f in (jnp.cos, jnp.sin))
        x_t, read = cos * x_start + sin * noise, predicting(prediction)
        output = read.target(x_start, level, noise)
        np.testing.assert_allclose(read.predict_x0(output, x_t, level), x_start, atol=1e-9)
        np.testing.assert_allclose(read.velocity(output, x_t, level), cos * noise - sin * x_start, atol=1e-9)
        wrong = x_start + error
        off = read.target(wrong, level, predict_eps_from_xstart(x_t, level, wrong)) - output
        scale = read.error_scale(jnp.square(cos / sin))
        np.testing.assert_allclose(jnp.square(off), scale * jnp.square(error), rtol=1e-9)


def test_a_new_prediction_needs_one_table_entry(monkeypatch):
    """-v, added here: every function equals that of v for the negated output, bit for bit."""
    v = PREDICTIONS["v"]
    minus_v = Prediction(
        target=lambda x_start, level, noise: -v.target(x_start, level, noise),
        pred_xstart=lambda x_t, level, output: v.pred_xstart(x_t, level, -output),
        velocity=lambda x, alpha, sigma, output: -output,
        error_scale=v.error_scale,
        at_zero_snr=True,
    )
    monkeypatch.setitem(PREDICTIONS, "minus_v", minus_v)
    new, old = (dataclasses.replace(predicting(name), clip_denoised=True) for name in ("minus_v", "v"))
    schedule = make_schedule("linear", 500, zero_terminal_snr=True)
    x_start, noise, output = images(3), standard_normal(3), standard_normal(4)
    x_t, level = gaussian.q_sample(schedule, x_start, T, noise), schedule.level(T)
    for ours, theirs in (
        (gaussian.p_sample(schedule, new, -output, x_t, T, noise), gaussian.p_sample(schedule, old, output, x_t, T, noise)),
        (new.velocity(-output, x_t, level), old.velocity(output, x_t, level)),
        (
            losses.training_losses(
                schedule, new, -output, x_start, x_t, T, noise, weighting=loss_weighting.make_weighting("edm")
            ),
            losses.training_losses(
                schedule, old, output, x_start, x_t, T, noise, weighting=loss_weighting.make_weighting("edm")
            ),
        ),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    with pytest.raises(ValueError, match=r"needs the prediction x_start or v or minus_v, not eps$"):
        predicting("eps").check_terminal_snr(zero=True)


# Levels.


def test_the_level_of_a_timestep_comes_from_the_tables():
    """Cast once to the nearest float32, quotients included; time is the t of the training chain."""
    schedule = make_schedule("linear", 500)
    level = schedule.level(T)
    for values, table in (
        (level.alpha, schedule.sqrt_alphas_cumprod),
        (level.sigma, schedule.sqrt_one_minus_alphas_cumprod),
        (level.recip_alpha, schedule.sqrt_recip_alphas_cumprod),
        (level.sigma_over_alpha, schedule.sqrt_recipm1_alphas_cumprod),
    ):
        np.testing.assert_array_equal(values, table[T].astype(np.float32))
    assert level.time.dtype == jnp.int32
    np.testing.assert_array_equal(level.time, T)


def test_a_level_between_timesteps_is_that_of_its_angle():
    schedule = make_schedule("linear", 1000)
    level = continuous_time.level_at(schedule, jnp.asarray(continuous_time.noise_angles(schedule)[[3, 500, 999]], jnp.float32))
    for ours, theirs in zip(level, schedule.level(jnp.array([3, 500, 999])), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_eps_and_x_start_conversions_hold_for_any_alpha_and_sigma():
    """x_t = 3 x_0 + 5 eps, as in EDM or flow matching: eps and x_start convert into each other; 1e-5."""
    three, five = np.full(5, 3.0, np.float32), np.full(5, 5.0, np.float32)
    level = NoiseLevel(three, five, np.zeros(5, np.int32), recip_alpha=1 / three, sigma_over_alpha=five / three)
    x_start, noise = images(1), standard_normal(1)
    x_t = 3 * x_start + 5 * noise
    np.testing.assert_allclose(predict_xstart_from_eps(x_t, level, noise), x_start, atol=1e-5)
    np.testing.assert_allclose(predict_eps_from_xstart(x_t, level, x_start), noise, atol=1e-5)


# Input and output.


def test_time_input_is_scaled_to_1000():
    """t itself, an integer, for a chain of 1000 steps; t 1000 / T for other lengths."""
    t = jnp.array([0, 3, 39], jnp.int32)
    read = predicting("eps")
    assert read.network_time(t) is t
    scaled = dataclasses.replace(read, time_scale=1000 / 40).network_time(t)
    np.testing.assert_array_equal(scaled, [0, 75, 975])


def test_denoise_is_one_evaluation_and_clips():
    """`denoise` evaluates the network at x_t and the level's time, drops a learned variance, and clips."""
    schedule, x_t, calls = make_schedule("linear", 500), standard_normal(5), []

    def denoise_fn(x, t):
        calls.append((x, t))
        return jnp.concatenate([3 * x, 1e6 * x], axis=-1)

    read = predicting("x_start", "learned_range", clip_denoised=True)
    pred_xstart = read.denoise(denoise_fn, x_t, schedule.level(T))
    np.testing.assert_array_equal(pred_xstart, np.clip(3 * x_t, -1, 1))
    ((x, t),) = calls
    np.testing.assert_array_equal(x, x_t)
    np.testing.assert_array_equal(t, T)


# Invalid arguments.


def test_unknown_names_are_rejected_in_one_line():
    with pytest.raises(ValueError, match=r"^unknown prediction 'noise': choose one of eps, x_start, v$"):
        predicting("noise")
    with pytest.raises(ValueError, match=r"^unknown variance 'small': choose one of fixed_small, fixed_large, learned_range$"):
        predicting("v", "small")


def test_levels_and_timesteps_must_match_the_batch():
    schedule = make_schedule("linear", 500)
    for bad_t in (np.int32(3), T[:, None], T.astype(np.float32)):
        with pytest.raises(ValueError, match=r"^t is [^\n]* one integer for each image$"):
            schedule.level(bad_t)
    with pytest.raises(ValueError, match=r"^level has shape \(4,\)"):
        predicting("v").predict_x0(images(1), images(1), schedule.level(T[:4]))
