"""Noise levels between the timesteps of a chain: the angle of a noise level and the t that the network gets for it.

A variance-preserving x = cos(φ) x_0 + sin(φ) ε with sqrt(ᾱ) = cos φ is a rotation of image and noise by the angle

    φ_t = atan2(sqrt(1 - ᾱ_t), sqrt(ᾱ_t)),  0 < φ_0 < φ_1 < .. <= π/2                  (25)  2202.00512, section 4

(equation (6) of `gaussian.py`). A chain of T steps has T of these angles. An ODE solver with adaptive steps evaluates the
network between them, at a t that is not an integer. t(φ) is a monotone interpolant through all (φ_t, t): on each interval
a cubic Hermite polynomial, whose slope at each timestep is the weighted harmonic mean of the slopes of both chords, so that
it cannot overshoot (Fritsch and Butland 1984). φ is finite at zero SNR, and the cosine schedule is linear in φ.

A network accepts such a t because its embedding consists of sines of t. It was not trained there, so its output is an
interpolation. Song et al. 2011.13456 (appendix D.2, and the DDPM of their table 2) do the same.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import NoiseLevel
from ddpm_jax.diffusion.schedules import NoiseSchedule


def noise_angles(schedule: NoiseSchedule) -> np.ndarray:
    """φ_t of (25), in radians: float64 [K], strictly ascending within (0, π/2]. On the host only."""
    return np.arctan2(schedule.sqrt_one_minus_alphas_cumprod, schedule.sqrt_alphas_cumprod)


def timestep_at(schedule: NoiseSchedule, angle: jax.Array) -> jax.Array:
    """t(φ), with the shape and dtype of `angle`: `schedule.timesteps[k]` at φ_k and a smooth curve between.

    Args:
      schedule: the chain that the network was trained on, K >= 2 steps; concrete, not traced.
      angle: floating, any shape, φ_0 .. φ_{K-1} in radians; clamped to this range.

    Raises:
      ValueError: a chain of a single step.
    """
    if schedule.num_timesteps < 2:
        raise ValueError("interpolation between timesteps needs a chain of 2 or more steps, not 1")
    angles, timesteps = noise_angles(schedule), schedule.timesteps.astype(np.float64)
    tables = (angles[:-1], np.diff(angles), timesteps[:-1], np.diff(timesteps), *_end_slopes(angles, timesteps))
    knots = jnp.asarray(angles, angle.dtype)
    index = jnp.clip(jnp.searchsorted(knots, angle, side="right") - 1, 0, len(angles) - 2)
    start, width, value, rise, slope, end_slope = (jnp.asarray(table, angle.dtype)[index] for table in tables)
    s = jnp.clip((angle - start) / width, 0.0, 1.0)
    # The deviation of the cubic from its chord; 0 at both ends.
    bend = (1 - s) * (slope * width - rise) - s * (end_slope * width - rise)
    return value + s * rise + s * (1 - s) * bend


def level_at(schedule: NoiseSchedule, angle: jax.Array) -> NoiseLevel:
    """The noise levels at angles [B] of (25): α = cos φ, σ = sin φ, and t(φ). Arguments and errors as in `timestep_at`."""
    alpha, sigma = jnp.cos(angle), jnp.sin(angle)
    return NoiseLevel(alpha, sigma, timestep_at(schedule, angle), recip_alpha=1 / alpha, sigma_over_alpha=sigma / alpha)


def _end_slopes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope of the curve at the start and at the end of each interval: float64 [K-1] each, for increasing x and y."""
    width, chord = np.diff(x), np.diff(y) / np.diff(x)
    before, after = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    inner = (before + after) / (before / chord[:-1] + after / chord[1:])
    slopes = np.concatenate([chord[:1], inner, chord[-1:]])  # the ends have one chord only
    return slopes[:-1], slopes[1:]
