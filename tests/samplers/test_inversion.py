"""DDIM inverted: noise that DDIM makes the image of again."""

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
    """Of the Gaussian N(MEAN, COV)."""
    rows = MEAN + np.random.default_rng(0).normal(size=(count, D)) @ ROOT.T
    return jnp.asarray(rows.reshape(-1, *SHAPE), jnp.float32)


def predicting(prediction):
    return Parameterization(prediction, "fixed_small", clip_denoised=False).denoise


def there_and_back(num_steps, turns=1, prediction="v", spacing="logsnr", clip_denoised=False, x=None):
    """(images, x_T, images again) with the exact denoiser."""
    schedule = shorten(FULL, num_steps, spacing)
    denoise_fn = gaussian_denoiser(FULL, MEAN, COV, prediction)
    predict_x0 = Parameterization(prediction, "fixed_small", clip_denoised).denoise
    x = images() if x is None else x
    latent = invert(ddim_inversion(schedule, predict_x0, turns=turns), denoise_fn, x)
    down = ddim(schedule, predict_x0)
    back = sampler.run_steps(down, denoise_fn, sampler.init_state_from(down, latent), None, first_step=0, count=num_steps).x
    return np.array(x), np.array(latent), np.array(back)


def miss(num_steps, **options):
    x, _, back = there_and_back(num_steps, **options)
    return np.abs(back - x).max()


def test_the_way_back_misses_by_the_square_of_the_step():
    """One evaluation a step; from 20 to 40 steps the miss is divided by 4, within a quarter for higher orders and rounding of
    the steps to timesteps.
    """
    assert miss(40) < 0.06  # of images up to 2.7
    np.testing.assert_allclose(miss(20) / miss(40), 4, rtol=0.25)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_more_turns_the_image_comes_back(prediction):
    """Ten steps only, 30 turns: nothing is left but float32, enlarged a little; one turn misses by a thousand times as much."""
    assert miss(10, turns=30, prediction=prediction) < 1e-4
    assert miss(10, prediction=prediction) > 0.1


def test_the_latent_of_the_exact_flow_is_the_white_noise_of_the_image():
    """On Gaussian data the flow maps quantiles to quantiles: the x_T of mean + A e, with A the symmetric root of COV, is e
    times the spread at T-1. 200 steps of order one: within 0.05.
    """
    values, vectors = np.linalg.eigh(COV)
    white = np.random.default_rng(1).normal(size=(5, D))
    x = MEAN + white @ (vectors * np.sqrt(values)) @ vectors.T
    _, latent, _ = there_and_back(200, x=jnp.asarray(x.reshape(-1, *SHAPE), jnp.float32))
    np.testing.assert_allclose(latent.reshape(5, D), white, atol=0.05)


def test_a_network_that_knows_the_image_sees_no_noise_in_it():
    """x_0 = its guess: eps is 0 all the way, and x_T = sqrt(alphas_cumprod) x_0 at every number of steps; 1e-5."""
    x = images(1)
    for num_steps in (1, 2, 5):
        schedule = shorten(FULL, num_steps)
        inversion = ddim_inversion(schedule, predicting("x_start"))
        latent = invert(inversion, oracle_denoiser(FULL, np.array(x).reshape(D), "x_start"), x)
        np.testing.assert_allclose(latent, schedule.sqrt_alphas_cumprod[-1] * x, atol=1e-5)


def test_it_climbs_the_timesteps_and_keeps_its_guesses():
    schedule = shorten(FULL, 4, "quadratic")
    inversion = ddim_inversion(schedule, predicting("x_start"), turns=2)
    assert inversion.evaluations == 8

    def clock(x_t, t):
        return x_t * 0 + t.astype(jnp.float32)[:, None, None, None]

    x = images(2)
    state = sampler.run_steps(
        inversion, clock, sampler.init_state_from(inversion, x, keep=4), None, first_step=0, count=4, save_steps=range(4)
    )
    np.testing.assert_array_equal(state.saved_pred_xstart[0, :, 0, 0, 0], schedule.timesteps)
    np.testing.assert_array_equal(state.saved_x[:, 0], x)


def test_stretches_make_the_whole():
    schedule = shorten(FULL, 6)
    inversion = ddim_inversion(schedule, predicting("v"))
    denoise_fn, x = gaussian_denoiser(FULL, MEAN, COV, "v"), images()
    advance = jax.jit(lambda state, first: sampler.run_steps(inversion, denoise_fn, state, None, first_step=first, count=2))
    state = sampler.init_state_from(inversion, x)
    for first_step in (0, 2, 4):
        state = advance(state, first_step)
    np.testing.assert_allclose(state.x, invert(inversion, denoise_fn, x), atol=1e-4)


def test_what_cannot_be_inverted_is_refused():
    with pytest.raises(ValueError, match="at least one turn"):
        ddim_inversion(FULL, predicting("v"), turns=0)
    with pytest.raises(ValueError, match="infinite"):
        ddim_inversion(schedule_from_betas([0.5, 1.0]), predicting("v"))


def test_slerp_goes_along_the_circle():
    """Ends exact, equal angles between equal shares, length kept where both have it; alike latents give themselves."""
    a, b = (jax.random.normal(jax.random.key(i), (1, 4, 4, 1)) for i in (1, 2))
    a, b = (x / jnp.linalg.norm(x.reshape(-1)) for x in (a, b))
    shares = jnp.linspace(0, 1, 5)
    points = slerp(jnp.tile(a, (5, 1, 1, 1)), jnp.tile(b, (5, 1, 1, 1)), shares).reshape(5, -1)
    np.testing.assert_allclose(points[0], a.reshape(-1), atol=1e-6)
    np.testing.assert_allclose(points[4], b.reshape(-1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)
    between = np.sum(np.asarray(points[1:] * points[:-1]), axis=1)
    np.testing.assert_allclose(between, between[0], rtol=1e-4)
    np.testing.assert_allclose(slerp(a, a, jnp.array([0.3])), a, atol=1e-6)
