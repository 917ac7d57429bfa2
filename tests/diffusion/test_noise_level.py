"""Table lookups and the signal-to-noise ratio of a level."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract, signal_to_noise
from ddpm_jax.diffusion.schedules import make_schedule

T = np.array([0, 1, 20, 250, 499], np.int32)  # of 500


def test_signal_to_noise():
    """1e-6, down to the last step of a cosine chain, and 0 at zero terminal SNR."""
    for schedule in (make_schedule("cosine", 500), make_schedule("cosine", 500, zero_terminal_snr=True)):
        snr = signal_to_noise(schedule.level(T), np.zeros((5, 4, 4, 3), np.float32))
        assert snr.shape == (5, 1, 1, 1)
        expected = schedule.alphas_cumprod / schedule.sqrt_one_minus_alphas_cumprod**2
        np.testing.assert_allclose(snr.ravel(), expected[T], rtol=1e-6)
    assert float(snr[-1, 0, 0, 0]) == 0


def test_a_table_is_cast_once_to_the_nearest_float():
    schedule = make_schedule("linear", 500)
    t = jnp.arange(500)
    values = extract(schedule.sqrt_one_minus_alphas_cumprod, t, jnp.zeros((500, 1)))
    np.testing.assert_array_equal(values[:, 0], schedule.sqrt_one_minus_alphas_cumprod.astype(np.float32))
    with jax.enable_x64(True):
        values = extract(schedule.sqrt_one_minus_alphas_cumprod, np.arange(500), np.zeros((500, 1)))
        np.testing.assert_array_equal(values[:, 0], schedule.sqrt_one_minus_alphas_cumprod)
