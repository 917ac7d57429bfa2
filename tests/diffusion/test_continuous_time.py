"""t of an arbitrary noise level: exact at every timestep, monotone, and close to a known continuous schedule."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.continuous_time import noise_angles, timestep_at
from ddpm_jax.diffusion.schedules import make_schedule, respace

CHAINS = {
    "linear": make_schedule("linear", 1000),
    "cosine": make_schedule("cosine", 1000),
    "pure noise": make_schedule("linear", 1000, zero_terminal_snr=True),
    "short": make_schedule("cosine", 20),
    "respaced": respace(make_schedule("linear", 1000), [0, 3, 100, 101, 999]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_angles_match_alpha_and_sigma(name):
    chain, angles = CHAINS[name], noise_angles(CHAINS[name])
    np.testing.assert_allclose(np.cos(angles), chain.sqrt_alphas_cumprod, atol=1e-15)
    np.testing.assert_allclose(np.sin(angles), chain.sqrt_one_minus_alphas_cumprod, atol=1e-15)
    assert (np.diff(angles) > 0).all()


@pytest.mark.parametrize("name", CHAINS)
def test_timesteps_are_interpolated_exactly_and_monotonically(name):
    """float32: within .02 of a timestep where the last angles of a chain are close to π/2, 1e-3 in its first half."""
    chain = CHAINS[name]
    angles, steps = noise_angles(chain), chain.num_timesteps
    at = np.asarray(timestep_at(chain, jnp.asarray(angles, jnp.float32)))
    assert at.dtype == np.float32
    np.testing.assert_allclose(at, chain.timesteps, atol=0.02 * max(1, 1000 / steps / 20))
    np.testing.assert_allclose(at[: steps // 2], chain.timesteps[: steps // 2], atol=1e-3)
    many = np.asarray(timestep_at(chain, jnp.linspace(angles[0], angles[-1], 20_001, dtype=jnp.float32)))
    assert (np.diff(many) >= 0).all()
    assert many[0] == 0
    np.testing.assert_allclose(many[-1], chain.timesteps[-1], atol=1e-3)


def test_angles_outside_the_chain_are_clamped():
    chain = CHAINS["linear"]
    np.testing.assert_array_equal(timestep_at(chain, jnp.array([0.0, 1.6])), [0, 999])


@pytest.mark.parametrize("name", ["linear", "cosine", "pure noise"])
def test_interpolation_recovers_omitted_timesteps(name):
    """From every tenth timestep, it recovers the others from their levels: within .05 of a timestep from the second interval
    up to the last two, where cosine's clipped beta and zero SNR are irregular. Linear interpolation is worse."""
    chain = CHAINS[name]
    thin = respace(chain, np.arange(9, 1000, 10))
    truth = np.arange(19, 970)
    angles = noise_angles(chain)[truth]
    error = np.abs(np.asarray(timestep_at(thin, jnp.asarray(angles, jnp.float32))) - truth).max()
    straight = np.abs(np.interp(angles, noise_angles(thin), thin.timesteps) - truth).max()
    assert error < 0.05
    if name != "cosine":  # which is linear in the angle
        assert error < straight / 2


def test_the_slope_is_continuous():
    """The left and the right slope at a timestep, in float64: within 1e-4, where chords differ more."""
    import jax

    chain = CHAINS["short"]
    angles = noise_angles(chain)
    with jax.enable_x64(True):
        slope = jax.vmap(jax.grad(lambda angle: timestep_at(chain, angle)))
        left, right = (np.asarray(slope(jnp.asarray(angles[2:-2] + shift))) for shift in (-1e-9, 1e-9))
    np.testing.assert_allclose(left, right, rtol=1e-4)
    chords = np.diff(chain.timesteps) / np.diff(angles)
    assert np.abs(chords[1:] / chords[:-1] - 1).max() > 1e-3


def test_a_single_step_is_rejected():
    with pytest.raises(ValueError, match=r"2 or more steps, not 1"):
        timestep_at(respace(CHAINS["linear"], [5]), jnp.ones(()))
