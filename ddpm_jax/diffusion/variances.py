"""The variance σ_t² of the reverse step p(x_{t-1} | x_t) of a chain, equation (10) of `gaussian.py`.

Fixed at β̃_t (optimal if x_0 is a single point) or at β_t (optimal if x_0 is white noise), DDPM 2006.11239, section 3.2. Or
learned per pixel, as an interpolation by v between the two, which bound the optimal one:

    log σ_t² = f log β_t + (1 - f) log β̃_t,   f = (v + 1) / 2                       (11)  IDDPM 2102.09672, eq. 15
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.noise_level import check_shapes, extract
from ddpm_jax.diffusion.schedules import NoiseSchedule

Array = jax.Array


def _fixed_small(schedule: NoiseSchedule, x_t: Array, t: Array, variance_output: Array | None) -> tuple[Array, Array]:
    """σ_t² = β̃_t, DDPM section 3.2."""
    del variance_output
    variance = extract(schedule.posterior_variance, t, x_t)
    return variance, extract(schedule.posterior_log_variance_clipped, t, x_t)


def _fixed_large(schedule: NoiseSchedule, x_t: Array, t: Array, variance_output: Array | None) -> tuple[Array, Array]:
    """σ_t² = β_t, but β̃_1 at t=0 (where no noise is added and only the likelihood uses it), DDPM section 3.2."""
    del variance_output
    if schedule.num_timesteps > 1:
        first = extract(schedule.posterior_variance, jnp.ones_like(t), x_t)
        value = jnp.where(is_zero(t, x_t), first, extract(schedule.betas, t, x_t))
    else:
        value = extract(schedule.betas, t, x_t)
    return value, jnp.log(value)


def _learned_range(schedule: NoiseSchedule, x_t: Array, t: Array, variance_output: Array | None) -> tuple[Array, Array]:
    """log σ_t² = f log β_t + (1 - f) log β̃_t, f = (v + 1) / 2, with v from the network, unbounded; (11)."""
    if variance_output is None:
        raise ValueError("learned_range needs the network's variance_output")
    check_shapes(t, x_t=x_t, variance_output=variance_output)
    smallest = extract(schedule.posterior_log_variance_clipped, t, x_t)
    largest = jnp.log(extract(schedule.betas, t, x_t))
    fraction = (variance_output.astype(largest.dtype) + 1) / 2
    log_variance = fraction * largest + (1 - fraction) * smallest
    return jnp.exp(log_variance), log_variance


def is_zero(t: Array, x: Array) -> Array:
    """Whether t = 0, shaped as by `extract`."""
    return (t == 0).reshape((-1,) + (1,) * (jnp.ndim(x) - 1))


class Variance(NamedTuple):
    """A choice of σ_t².

    Attributes:
      of_step: (schedule, x_t, t, variance_output) -> (variance, log variance).
      learned: whether it needs variance_output, which doubles the channels of the network's output.
    """

    of_step: Callable[[NoiseSchedule, Array, Array, Array | None], tuple[Array, Array]]
    learned: bool


VARIANCES: dict[str, Variance] = {
    "fixed_small": Variance(_fixed_small, learned=False),
    "fixed_large": Variance(_fixed_large, learned=False),
    "learned_range": Variance(_learned_range, learned=True),
}


def check_variance(variance: str) -> None:
    """Raises ValueError unless it is a key of VARIANCES."""
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}: choose one of {', '.join(VARIANCES)}")


def model_variance(
    schedule: NoiseSchedule, x_t: Array, t: Array, *, variance: str, variance_output: Array | None = None
) -> tuple[Array, Array]:
    """Variance and log variance of p(x_{t-1} | x_t), σ_t² of (10): [B, 1, ... 1], or [B, ...] if learned.

    fixed_small is the posterior variance β̃_t; its log is clipped at t=0 to that of t=1. fixed_large is β_t, with
    β̃_1 at t=0 (β_0 in a chain of one step). learned_range goes from log β̃_t, also clipped, to log β_t as
    variance_output [B, ...] goes from -1 to 1. Sampling adds no noise at t=0. DDPM section 3.2, IDDPM 2102.09672 eq. 15.

    Raises:
      ValueError: unknown variance, learned_range without variance_output, or shapes that do not match.
    """
    check_variance(variance)
    check_shapes(t, x_t=x_t)
    return VARIANCES[variance].of_step(schedule, x_t, t, variance_output)
