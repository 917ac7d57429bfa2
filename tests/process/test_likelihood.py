"""Divergences of Gaussians: closed forms, an integral, and the properties that they must have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.process import likelihood
from ddpm_jax.process.schedules import SCHEDULES, make_schedule, schedule_from_betas

SHAPE = (3, 4, 4, 2)
T = np.array([0, 40, 99], np.int32)  # of 100


def images(seed=0, dtype=np.float64):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(dtype)


@pytest.mark.parametrize(
    ("mean1", "std1", "mean2", "std2"),
    [(0.0, 1.0, 0.0, 1.0), (0.7, 0.3, -0.2, 1.1), (-2.0, 1.5, 0.0, 1.0), (0.1, 1.0, 0.0, 3.0)],
)
def test_normal_kl_is_the_integral_it_stands_for(mean1, std1, mean2, std2):
    """∫ p log(p / q) by the trapezoidal rule over 12 standard deviations; 1e-10."""
    x = np.linspace(mean1 - 12 * std1, mean1 + 12 * std1, 20_001)
    log_p = -0.5 * ((x - mean1) / std1) ** 2 - np.log(std1 * np.sqrt(2 * np.pi))
    log_q = -0.5 * ((x - mean2) / std2) ** 2 - np.log(std2 * np.sqrt(2 * np.pi))
    expected = np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
    with jax.enable_x64(True):
        kl = likelihood.normal_kl(mean1, 2 * np.log(std1), mean2, 2 * np.log(std2))
    np.testing.assert_allclose(kl, expected, rtol=1e-10, atol=1e-12)


def test_normal_kl_is_of_each_element_and_broadcasts():
    kl = likelihood.normal_kl(jnp.zeros((2, 3)), jnp.zeros((2, 1)), jnp.ones((2, 3)), 0.0)
    np.testing.assert_allclose(kl, np.full((2, 3), 0.5), rtol=1e-6)
    assert likelihood.normal_kl(0.0, -jnp.inf, 0.0, 0.0) == jnp.inf


def test_two_that_nearly_agree_lose_no_digits():
    """log variances d apart cost d²/4; in float32, with d = 1e-3, 1 - d + ... would leave nothing of it. 1e-3."""
    d = jnp.float32(1e-3)
    np.testing.assert_allclose(likelihood.normal_kl(jnp.float32(0), d, jnp.float32(0), jnp.float32(0)), 1e-6 / 4, rtol=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_prior_bits_per_dim_against_a_loop_in_float64(name):
    """½ [ᾱ x² - ᾱ - log(1 - ᾱ)] / log 2, averaged over all pixels; 1e-9 relative to it."""
    schedule, x_start = make_schedule(name, 100), images()
    with jax.enable_x64(True):
        bits = likelihood.prior_bits_per_dim(schedule, x_start, T)
    assert bits.dtype == jnp.float64
    expected = []
    for image, t in zip(x_start, T, strict=True):
        cumprod = schedule.alphas_cumprod[t]
        rest = -cumprod - np.log1p(-cumprod)
        expected.append(np.mean([0.5 * (cumprod * x * x + rest) / np.log(2) for x in image.ravel()]))
    np.testing.assert_allclose(bits, expected, rtol=1e-9)


def test_prior_bits_per_dim_in_float32_is_near_that_in_float64():
    """As training would compute it, traced; 1e-4. At the noise end the naive formula would be off by 100 %."""
    schedule = make_schedule("linear", 1000)
    t = np.array([0, 400, 999], np.int32)
    with jax.enable_x64(True):
        exact = np.asarray(likelihood.prior_bits_per_dim(schedule, images(), t))
    bits = jax.jit(likelihood.prior_bits_per_dim)(schedule, images(dtype=np.float32), t)
    assert bits.dtype == jnp.float32
    np.testing.assert_allclose(bits, exact, rtol=1e-4)
    assert 0 < exact[2] < 1e-4  # Ho et al. 2020, section 4: L_T is about 1e-5 bits per dimension


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_image_is_forgotten_step_by_step(name):
    """Noise cannot add knowledge of x_0: from t to t + 1 the distance to N(0, I) only falls."""
    schedule = make_schedule(name, 100)
    x_start = np.broadcast_to(images()[:1], (100, *SHAPE[1:]))
    with jax.enable_x64(True):
        bits = likelihood.prior_bits_per_dim(schedule, x_start, np.arange(100))
    assert (np.diff(bits) < 0).all()


def test_nothing_is_left_at_zero_terminal_snr():
    schedule = schedule_from_betas([0.1, 0.5, 1.0])
    bits = likelihood.prior_bits_per_dim(schedule, images(dtype=np.float32), np.full(3, 2, np.int32))
    np.testing.assert_array_equal(bits, np.zeros(3, np.float32))


def test_wrong_inputs_are_refused():
    schedule = make_schedule("linear", 100)
    with pytest.raises(ValueError, match="x_start is uint8"):
        likelihood.prior_bits_per_dim(schedule, np.zeros(SHAPE, np.uint8), T)
    with pytest.raises(ValueError, match="one integer for each"):
        likelihood.prior_bits_per_dim(schedule, images(dtype=np.float32), T[:2])
