"""With the exact denoiser of a Gaussian every sampler samples that Gaussian, and its error has the sampler's order."""

import functools

import numpy as np
import pytest
from exact_denoisers import (
    COV,
    FULL,
    MEAN,
    SETTINGS,
    D,
    build,
    distance,
    forward_law,
    gaussian_denoiser,
    probe,
    push,
    shorten,
)

from ddpm_jax.diffusion.parameterization import PREDICTIONS
from ddpm_jax.diffusion.schedules import respace, schedule_from_betas
from ddpm_jax.diffusion.spacings import SPACINGS
from ddpm_jax.samplers import SAMPLERS

ORDERS = {
    "ancestral-small": 1,
    "ancestral-large": 1,
    "ddim": 1,
    "ddim-half": 1,
    "ddim-full": 1,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "unipc-1": 2,
    "unipc": 3,
    "unipc-3": 4,
    "heun": 2,
    "heun-churn": 2,
    "ode": 4,
}


def test_all_settings_are_tested():
    assert {name for name, _ in SETTINGS.values()} == set(SAMPLERS)
    assert set(ORDERS) == set(SETTINGS)


@functools.cache
def even_chain(num_timesteps=1441):
    """log SNR in equal steps from 7 to -7, so that only the step length affects the order."""
    sigmas = np.exp(np.linspace(-3.5, 3.5, num_timesteps))
    alphas_cumprod = 1 / (1 + sigmas**2)
    return schedule_from_betas(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))


@functools.cache
def order_error(setting, num_steps):
    """Distance of x's distribution from the forward process's at t=0, for a chain that starts from the exact x_T law."""
    chain = even_chain()
    schedule = respace(chain, np.arange(0, 1441, 1440 // num_steps))
    steps = probe(build(setting, schedule, "v", trained=chain), gaussian_denoiser(chain, MEAN, COV, "v"))
    *_, at_0, _ = push(forward_law(chain, 1440, MEAN, COV), steps)  # the last step goes from t=0 to x̂_0
    return distance(at_0, forward_law(chain, 0, MEAN, COV))


@pytest.mark.parametrize("setting", SETTINGS)
def test_error_has_the_order_of_the_sampler(setting):
    """From 80 to 160 steps the error is divided by 2^order, within a fifth for terms of the next order."""
    coarse, fine = order_error(setting, 80), order_error(setting, 160)
    assert fine < 0.07  # variances are up to 1.6
    np.testing.assert_allclose(coarse / fine, 2 ** ORDERS[setting], rtol=0.2)


@functools.cache
def gaussian_error(setting, prediction, num_steps, spacing):
    """Distance of the samples' distribution from the data's, for a chain that starts from the exact first x_t distribution."""
    schedule = shorten(FULL, num_steps, spacing)
    steps = probe(build(setting, schedule, prediction), gaussian_denoiser(FULL, MEAN, COV, prediction))
    *_, last = push(forward_law(FULL, schedule.timesteps[-1], MEAN, COV), steps)
    return distance(last, (MEAN, COV))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("setting", ["ancestral-large", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun", "ode"])
def test_error_is_small_for_every_spacing(setting, spacing):
    """50 steps, variances up to 1.6: a tenth at order 1 and 2, less at higher orders."""
    assert gaussian_error(setting, "v", 50, spacing) < {1: 0.16, 2: 0.16, 3: 0.03, 4: 0.001}[ORDERS[setting]]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("setting", ["ancestral-small", "ddim", "unipc", "heun"])
def test_all_predictions_give_the_same_chain(setting, prediction):
    """The distribution does not depend on whether an exact network predicts eps, x_start or v; 1e-9 in float64."""
    want = gaussian_error(setting, "v", 50, "trailing")
    np.testing.assert_allclose(gaussian_error(setting, prediction, 50, "trailing"), want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("setting", ["ancestral-small", "ancestral-large", "ddim", "dpmpp_2m_sde", "unipc", "heun"])
def test_a_thousand_steps_from_pure_noise_reproduce_the_data(setting):
    """The training chain from N(0, I). Order one has a twentieth of the error of 50 steps."""
    width = 1000 if setting == "heun" else 170  # its inner loop is recompiled for each chunk
    steps = probe(build(setting, FULL, "eps"), gaussian_denoiser(FULL, MEAN, COV, "eps"), width)
    *_, last = push((np.zeros(D), np.eye(D)), steps)
    assert distance(last, (MEAN, COV)) < 0.02


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting != "ancestral-large"])
def test_chain_of_a_point_mass_is_exact_at_every_step(setting):
    """For one image x̂_0 is constant, for which fixed_small, DDIM and every solver are exact; 1e-9 in float64."""
    schedule, nothing = shorten(FULL, 50), np.zeros((D, D))
    steps = probe(build(setting, schedule, "v"), gaussian_denoiser(FULL, MEAN, nothing, "v"))
    for i, law in enumerate(push(forward_law(schedule, 49, MEAN, nothing), steps)):
        assert distance(law, forward_law(schedule, 48 - i, MEAN, nothing)) < 1e-9


def test_fixed_large_is_exact_for_white_noise_up_to_the_last_step():
    """fixed_large is exact for data N(0, I) (DDPM section 3.2). The last step, which adds no noise, lacks beta_0."""
    schedule, none = shorten(FULL, 50), np.zeros(D)
    steps = probe(build("ancestral-large", schedule, "v"), gaussian_denoiser(FULL, none, np.eye(D), "v"))
    *before, last = push((none, np.eye(D)), steps)
    assert max(distance(law, (none, np.eye(D))) for law in before) < 1e-9
    assert distance(last, (none, (1 - schedule.betas[0]) * np.eye(D))) < 1e-9


def test_the_fixed_variances_are_lower_and_upper_bounds():
    """fixed_small makes white noise too narrow, fixed_large a point mass too wide, at every step (DDPM section 3.2)."""
    schedule, none, nothing = shorten(FULL, 50), np.zeros(D), np.zeros((D, D))
    small = probe(build("ancestral-small", schedule, "v"), gaussian_denoiser(FULL, none, np.eye(D), "v"))
    large = probe(build("ancestral-large", schedule, "v"), gaussian_denoiser(FULL, none, nothing, "v"))
    narrow = [cov[0, 0] for _, cov in push((none, np.eye(D)), small)]
    wide = [cov[0, 0] for _, cov in push(forward_law(schedule, 49, none, nothing), large)]
    right = [forward_law(schedule, 48 - i, none, nothing)[1][0, 0] for i in range(50)]
    # At the noise end the two variances nearly agree: excluded, like the last step, which has no noise.
    assert max(narrow[25:-1]) < 0.997
    assert min(np.divide(wide[25:-1], right[25:-1])) > 1.003
