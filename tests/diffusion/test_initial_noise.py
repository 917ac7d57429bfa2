"""The formula of initial_noise against actual sampling, with the exact network of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import initial_noise, schedules, spacings
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.samplers import sampler
from ddpm_jax.samplers.ddim import ddim

SIZE, MEAN, STD, TEXTURE = 16, 0.4, 0.2, 0.3


def brightness_after_sampling(schedule):
    """Mean and standard deviation of the mean brightness of 16x16 images that DDIM generates from N(0, I) with `schedule`.

    For data whose brightness is N(MEAN, STD²) and whose other directions are N(0, TEXTURE²) the exact x̂_0 is linear, so two
    images suffice: the brightness sampled from zero noise, and its change with the mean of the noise.
    """
    signal = jnp.asarray(schedule.sqrt_alphas_cumprod, jnp.float32)
    noise = jnp.asarray(schedule.sqrt_one_minus_alphas_cumprod, jnp.float32)

    def denoise_fn(x_t, t):
        index = jnp.searchsorted(jnp.asarray(schedule.timesteps), t)
        a, s = (table[index][:, None, None, None] for table in (signal, noise))
        mean = x_t.mean(axis=(1, 2, 3), keepdims=True)
        gain = a * STD**2 / (a**2 * STD**2 + s**2 / SIZE**2)
        return MEAN + gain * (mean - a * MEAN) + a * TEXTURE**2 / (a**2 * TEXTURE**2 + s**2) * (x_t - mean)

    down = ddim(schedule, Parameterization("x_start", "fixed_small", clip_denoised=False).denoise)
    x_T = jnp.stack([jnp.zeros((SIZE, SIZE, 1)), jnp.ones((SIZE, SIZE, 1))])
    end = jax.jit(
        lambda x: (
            sampler.run_steps(down, denoise_fn, sampler.init_state_from(down, x), None, first_step=0, count=down.num_steps).x
        )
    )(x_T)
    zero, one = np.asarray(end.mean(axis=(1, 2, 3)))
    return zero, (one - zero) / SIZE  # the mean of SIZE² standard normals has the standard deviation 1 / SIZE


@pytest.mark.parametrize(
    ("name", "last"), [("cosine", 999), ("cosine", 980), ("cosine", 900), ("linear", 999), ("linear", 900)]
)
def test_brightness_moves_to_gray_by_the_predicted_fraction(name, last):
    """Within 1% of the mean and 2% of the standard deviation: DDIM's own error in 900 and more steps."""
    schedule = schedules.respace(schedules.make_schedule(name, 1000), np.arange(last + 1))
    fraction = initial_noise.pull_to_gray(schedule, SIZE**2, brightness_std=STD)
    mean, std = brightness_after_sampling(schedule)
    assert mean == pytest.approx(MEAN * (1 - fraction), abs=0.01 * MEAN)
    assert std == pytest.approx(STD * np.sqrt(1 - fraction**2), rel=0.02)


def test_the_fraction_grows_with_image_size_and_terminal_snr():
    cosine = schedules.make_schedule("cosine", 1000)
    pulls = [
        initial_noise.pull_to_gray(schedules.respace(cosine, spacings.spaced_timesteps(1000, 50, spacing)), dimension)
        for spacing, dimension in (
            ("trailing", 3 * 64**2),
            ("leading", 3 * 16**2),
            ("leading", 3 * 64**2),
            ("quadratic", 3 * 64**2),
        )
    ]
    assert pulls == pytest.approx([0.001, 0.20, 0.635, 0.993], abs=0.006)
    assert initial_noise.pull_to_gray(schedules.with_zero_terminal_snr(cosine), 3 * 256**2) == 0
