"""DDIM inversion: DDIM reconstructs the image from the inverted noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_denoisers import COV, FULL, MEAN, SHAPE, D, gaussian_denoiser, oracle_denoiser, shorten

from ddpm_jax.diffusion.parameterization import PREDICTIONS, Parameterization
from ddpm_jax.diffusion.schedules import schedule_from_betas
from ddpm_jax.samplers import sampler
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.inversion import ddim_inversion, invert, slerp

ROOT = np.linalg.cholesky(COV)


def images(count=5):
    """Samples of N(MEAN, COV)."""
    rows = MEAN + np.random.default_rng(0).normal(size=(count, D)) @ ROOT.T
    return jnp.asarray(rows.reshape(-1, *SHAPE), jnp.float32)


def predicting(prediction):
    return Parameterization(prediction, "fixed_small", clip_denoised=False).denoise


def reconstruct(num_steps, iters=1, prediction="v", spacing="logsnr", clip_denoised=False, x=None):
    """(images, x_T, reconstructions) with the exact denoiser."""
    schedule = shorten(FULL, num_steps, spacing)
    denoise_fn = gaussian_denoiser(FULL, MEAN, COV, prediction)
    predict_x0 = Parameterization(prediction, "fixed_small", clip_denoised).denoise
    x = images() if x is None else x
    latent = invert(ddim_inversion(schedule, predict_x0, num_fixed_point_iters=iters), denoise_fn, x)
    down = ddim(schedule, predict_x0)
    back = sampler.run_steps(down, denoise_fn, sampler.init_state_from(down, latent), None, first_step=0, count=num_steps).x
    return np.array(x), np.array(latent), np.array(back)


def reconstruction_error(num_steps, **options):
    x, _, back = reconstruct(num_steps, **options)
    return np.abs(back - x).max()


def test_reconstruction_is_second_order_in_the_step_size():
    """One evaluation per step; from 20 to 40 steps the error is divided by 4, within a quarter for higher orders and the
    rounding of timesteps.
    """
    assert reconstruction_error(40) < 0.06  # images are up to 2.7
    np.testing.assert_allclose(reconstruction_error(20) / reconstruction_error(40), 4, rtol=0.25)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_fixed_point_iterations_converge_to_the_inverse(prediction):
    """Ten steps, 30 iterations: only float32 rounding remains, amplified a little; one iteration is 1000 times worse."""
    assert reconstruction_error(10, iters=30, prediction=prediction) < 1e-4
    assert reconstruction_error(10, prediction=prediction) > 0.1


def test_latents_of_gaussian_data_are_white_noise():
    """On Gaussian data the flow maps quantiles to quantiles: the x_T of mean + A e, with A the symmetric root of COV, is e
    times the standard deviation at T-1. 200 steps of order one: within 0.05.
    """
    values, vectors = np.linalg.eigh(COV)
    white = np.random.default_rng(1).normal(size=(5, D))
    x = MEAN + white @ (vectors * np.sqrt(values)) @ vectors.T
    _, latent, _ = reconstruct(200, x=jnp.asarray(x.reshape(-1, *SHAPE), jnp.float32))
    np.testing.assert_allclose(latent.reshape(5, D), white, atol=0.05)


def test_latent_of_a_network_that_knows_the_image_has_no_noise():
    """x̂_0 = x_0: eps is 0 throughout, and x_T = sqrt(alphas_cumprod) x_0 for any number of steps; 1e-5."""
    x = images(1)
    for num_steps in (1, 2, 5):
        schedule = shorten(FULL, num_steps)
        inversion = ddim_inversion(schedule, predicting("x_start"))
        latent = invert(inversion, oracle_denoiser(FULL, np.array(x).reshape(D), "x_start"), x)
        np.testing.assert_allclose(latent, schedule.sqrt_alphas_cumprod[-1] * x, atol=1e-5)


def test_timesteps_ascend_and_pred_xstart_is_saved():
    schedule = shorten(FULL, 4, "quadratic")
    inversion = ddim_inversion(schedule, predicting("x_start"), num_fixed_point_iters=2)
    assert inversion.nfe == 8

    def clock(x_t, t):
        return x_t * 0 + t.astype(jnp.float32)[:, None, None, None]

    x = images(2)
    state = sampler.run_steps(
        inversion, clock, sampler.init_state_from(inversion, x, num_saved=4), None, first_step=0, count=4, save_steps=range(4)
    )
    np.testing.assert_array_equal(state.saved_pred_xstart[0, :, 0, 0, 0], schedule.timesteps)
    np.testing.assert_array_equal(state.saved_x[:, 0], x)


def test_chunks_equal_the_whole():
    schedule = shorten(FULL, 6)
    inversion = ddim_inversion(schedule, predicting("v"))
    denoise_fn, x = gaussian_denoiser(FULL, MEAN, COV, "v"), images()
    advance = jax.jit(lambda state, first: sampler.run_steps(inversion, denoise_fn, state, None, first_step=first, count=2))
    state = sampler.init_state_from(inversion, x)
    for first_step in (0, 2, 4):
        state = advance(state, first_step)
    np.testing.assert_allclose(state.x, invert(inversion, denoise_fn, x), atol=1e-4)


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match="at least 1 fixed-point iteration"):
        ddim_inversion(FULL, predicting("v"), num_fixed_point_iters=0)
    with pytest.raises(ValueError, match="infinite"):
        ddim_inversion(schedule_from_betas([0.5, 1.0]), predicting("v"))


def test_slerp_moves_along_the_great_circle():
    """Exact ends, equal angles between equal fractions, constant norm where both have it; equal latents are unchanged."""
    a, b = (jax.random.normal(jax.random.key(i), (1, 4, 4, 1)) for i in (1, 2))
    a, b = (x / jnp.linalg.norm(x.reshape(-1)) for x in (a, b))
    fractions = jnp.linspace(0, 1, 5)
    points = slerp(jnp.tile(a, (5, 1, 1, 1)), jnp.tile(b, (5, 1, 1, 1)), fractions).reshape(5, -1)
    np.testing.assert_allclose(points[0], a.reshape(-1), atol=1e-6)
    np.testing.assert_allclose(points[4], b.reshape(-1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)
    between = np.sum(np.asarray(points[1:] * points[:-1]), axis=1)
    np.testing.assert_allclose(between, between[0], rtol=1e-4)
    np.testing.assert_allclose(slerp(a, a, jnp.array([0.3])), a, atol=1e-6)
