"""Spacings: which timesteps of a chain to sample at. `schedules.respace` builds the shorter chain from them."""

import operator
from collections.abc import Callable

import numpy as np

from ddpm_jax.diffusion.schedules import NoiseSchedule


def spaced_timesteps(num_timesteps: int, num_steps: int, spacing: str, *, schedule: NoiseSchedule | None = None) -> np.ndarray:
    """The `num_steps` of `num_timesteps` timesteps to sample at: int32 [num_steps], strictly ascending.

    `num_steps == num_timesteps` gives 0..T-1 under every spacing.

    Args:
      num_timesteps: T.
      num_steps: 1..T.
      spacing: a key of SPACINGS.
      schedule: the chain of T steps; karras and logsnr need its noise levels; ignored by the others.

    Raises:
      ValueError: unknown spacing, num_steps outside 1..num_timesteps, or a missing schedule of T steps.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    num_timesteps, num_steps = operator.index(num_timesteps), operator.index(num_steps)
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"cannot take {num_steps} sampling steps out of a chain of {num_timesteps}: set num_steps to 1..{num_timesteps}"
        )
    if spacing not in SPACINGS_BY_NOISE:
        return SPACINGS[spacing](num_timesteps, num_steps).astype(np.int32)
    if schedule is None or schedule.num_timesteps != num_timesteps:
        raise ValueError(f"spacing {spacing} uses noise levels: it needs the schedule of all {num_timesteps} steps")
    return SPACINGS[spacing](schedule.sqrt_recipm1_alphas_cumprod, num_steps).astype(np.int32)


# The spacings in t use integer arithmetic, so they do not depend on floating-point rounding.


def leading_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """The first timestep of each of n equal segments, floor(i T / n): 0, 100 .. 900 for 10 of 1000. DDIM's uniform."""
    return np.arange(num_steps) * num_timesteps // num_steps


def linspace_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Both ends and equal steps between, rounded: 0, 111 .. 999 for 10 of 1000. A single step is T-1, the noise end."""
    if num_steps == 1:
        return np.array([num_timesteps - 1])
    gaps = num_steps - 1
    return (2 * np.arange(num_steps) * (num_timesteps - 1) + gaps) // (2 * gaps)


def trailing_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """The last timestep of each of n equal segments, round((i+1) T / n) - 1: 99, 199 .. 999 for 10 of 1000.

    Starts sampling where training ends, at T-1. Lin et al. 2305.08891, table 2.
    """
    return (2 * np.arange(1, num_steps + 1) * num_timesteps + num_steps) // (2 * num_steps) - 1


def quadratic_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """floor(0.8 T (i / (n-1))²), dense near the image: 0, 9, 39 .. 800 for 10 of 1000. DDIM 2010.02502, appendix D.2.

    For large n (30 and more of 1000) the first squares coincide; there the result is 0, 1, 2 .. until the squares overtake
    it, which they do not for n > 0.8 T. A single step is 0.8 T, the noise end.
    """
    if num_steps == 1:
        return np.array([4 * num_timesteps // 5])
    index = np.arange(num_steps)
    return np.maximum(index, 4 * num_timesteps * index**2 // (5 * (num_steps - 1) ** 2))


# The spacings in noise level use σ_t = sqrt(1/ᾱ_t - 1) [T] and round to the nearest timesteps.


def karras_timesteps(sigmas: np.ndarray, num_steps: int, *, rho: float = 7.0) -> np.ndarray:
    """σ^(1/ρ) in equal steps between both ends, dense near the image: 0, 18, 102 .. 999 for 10 of 1000 (linear schedule).

    EDM 2206.00364, eq. 5 (ρ = 7), at the nearest distinct timesteps. A single step is T-1, the noise end.
    """
    return _nearest_timesteps(lambda sigma: sigma ** (1 / rho), sigmas, num_steps)


def logsnr_timesteps(sigmas: np.ndarray, num_steps: int) -> np.ndarray:
    """log SNR = -2 log σ in equal steps between both ends: 0, 5, 22 .. 999 for 10 of 1000 (linear schedule).

    DPM-Solver 2206.00927, section 3.4, at the nearest distinct timesteps. A single step is T-1, the noise end.
    """
    return _nearest_timesteps(np.log, sigmas, num_steps)


def _nearest_timesteps(scale: Callable[[np.ndarray], np.ndarray], sigmas: np.ndarray, num_steps: int) -> np.ndarray:
    """Timesteps in equal steps of scale(σ), strictly ascending. Duplicates move up to the next free t.

    Above MAX_SIGMA the signal is negligible and steps would be wasted: a chain that ends higher (cosine: 20,291; zero terminal
    SNR: infinite) goes from T-1 to below that level in one step.
    """
    num_timesteps = len(sigmas)
    if num_steps == 1:
        return np.array([num_timesteps - 1])
    jump = int(sigmas[-1] > MAX_SIGMA)
    visible = max(1, int((sigmas <= MAX_SIGMA).sum()))
    levels = scale(sigmas[:visible])
    index = np.arange(num_steps - jump)
    fraction = index / (len(index) - 1) if len(index) > 1 else np.array([0.5])
    nearest = np.rint(np.interp(levels[0] + fraction * (levels[-1] - levels[0]), levels, np.arange(visible))).astype(int)
    distinct = np.minimum(index + np.maximum.accumulate(nearest - index), num_timesteps - num_steps + index)
    return np.append(distinct, [num_timesteps - 1] * jump)


MAX_SIGMA = 160.0  # σ_max / σ_data of EDM 2206.00364 (table 1: 80 / 0.5)
SPACINGS: dict[str, Callable[..., np.ndarray]] = {
    "leading": leading_timesteps,
    "linspace": linspace_timesteps,
    "trailing": trailing_timesteps,
    "quadratic": quadratic_timesteps,
    "karras": karras_timesteps,
    "logsnr": logsnr_timesteps,
}
SPACINGS_BY_NOISE = ("karras", "logsnr")  # their first argument is σ [T], not T
