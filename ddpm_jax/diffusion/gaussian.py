"""The diffusion process: the forward process, and one ancestral step of the reverse process.

Forward, directly for any t, with ε ~ N(0, I) (equations (1), (2) and (4) and the tables are in `schedules.py`):

    x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε                                           (6)   DDPM 2006.11239, eq. 4

Reverse: (8) or (9) of `parameterization.py` converts the network's output to an estimate x̂_0, which replaces x_0 in the
posterior (3) of `posterior.py`:

    p(x_{t-1} | x_t) = N(c1_t x̂_0 + c2_t x_t, σ_t² I)                               (10)  DDPM eqs. 1, 7

with the variance σ_t² of `variances.py`.

Everywhere below x_start, x_t, noise and the network's output are floating arrays [B, ...], images [B, H, W, C] in
[-1, 1]; t is an integer array [B], 0..K-1 (indices into the schedule). Shapes are checked at trace time and raise
ValueError. A t out of range cannot be detected then; the result for its image is NaN. Arithmetic is in float32 (float64
for float64 inputs), whatever dtype the network computes in. All functions are pure and can be jitted.
"""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.noise_level import check_shapes, extract
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.variances import is_zero, model_variance

Array = jax.Array


# Forward.


def q_mean_variance(schedule: NoiseSchedule, x_start: Array, t: Array) -> tuple[Array, Array, Array]:
    """Mean [B, ...], variance and log variance [B, 1, ... 1] of q(x_t | x_0). DDPM eq. 4; (2)."""
    check_shapes(t, x_start=x_start)
    mean = extract(schedule.sqrt_alphas_cumprod, t, x_start) * x_start
    sigma = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start)
    return mean, jnp.square(sigma), 2 * jnp.log(sigma)


def q_step(schedule: NoiseSchedule, x_prev: Array, t: Array, noise: Array) -> Array:
    """One forward step: a sample of q(x_t | x_{t-1}) from `noise` ~ N(0, I). At t=0 x_prev is x_start. DDPM eq. 2; (1)."""
    check_shapes(t, x_prev=x_prev, noise=noise)
    signal_scale = jnp.sqrt(extract(schedule.alphas, t, x_prev))
    return signal_scale * x_prev + jnp.sqrt(extract(schedule.betas, t, x_prev)) * noise


def q_sample(schedule: NoiseSchedule, x_start: Array, t: Array, noise: Array) -> Array:
    """A sample of q(x_t | x_0) from `noise` ~ N(0, I): [B, ...]. DDPM eq. 4; (6)."""
    check_shapes(t, x_start=x_start, noise=noise)
    alpha = extract(schedule.sqrt_alphas_cumprod, t, x_start)
    sigma = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start)
    return alpha * x_start + sigma * noise


def q_posterior_mean_variance(schedule: NoiseSchedule, x_start: Array, x_t: Array, t: Array) -> tuple[Array, Array, Array]:
    """Mean [B, ...], variance and log variance [B, 1, ... 1] of q(x_{t-1} | x_t, x_0). DDPM eqs. 6, 7; (3).

    At t=0 the mean is x_start and the variance 0; the log variance is clipped to that of t=1, to stay finite.
    """
    check_shapes(t, x_start=x_start, x_t=x_t)
    coef1 = extract(schedule.posterior_mean_coef1, t, x_t)
    coef2 = extract(schedule.posterior_mean_coef2, t, x_t)
    variance = extract(schedule.posterior_variance, t, x_t)
    log_variance = extract(schedule.posterior_log_variance_clipped, t, x_t)
    return coef1 * x_start + coef2 * x_t, variance, log_variance


# Reverse.


def p_mean_variance(
    schedule: NoiseSchedule, parameterization: Parameterization, model_output: Array, x_t: Array, t: Array
) -> tuple[Array, Array, Array]:
    """The network's p(x_{t-1} | x_t): mean [B, ...], log variance [B, 1, ... 1] and pred_xstart [B, ...]. (10).

    Args:
      schedule: the chain that t indexes.
      parameterization: what model_output means. With a learned variance, the log variance is [B, ...].
      model_output: [B, ...], the network's output at x_t; with a learned variance it has twice the channels.
      x_t: [B, ...], the noisy images.
      t: [B].

    Raises:
      ValueError: shapes do not match, or the prediction is incompatible with zero terminal SNR.
    """
    parameterization.check_terminal_snr(zero=schedule.has_zero_terminal_snr)
    _, variance_output = parameterization.split_output(model_output, x_t)
    variance = parameterization.variance
    _, log_variance = model_variance(schedule, x_t, t, variance=variance, variance_output=variance_output)
    pred_xstart = parameterization.predict_x0(model_output, x_t, schedule.level(t))
    mean, _, _ = q_posterior_mean_variance(schedule, pred_xstart, x_t, t)
    return mean, log_variance, pred_xstart


def p_sample(
    schedule: NoiseSchedule, parameterization: Parameterization, model_output: Array, x_t: Array, t: Array, noise: Array
) -> tuple[Array, Array]:
    """One ancestral step: a sample of x_{t-1} [B, ...] from `noise` ~ N(0, I), and pred_xstart [B, ...].

    At t=0 the sample is the mean, without noise. DDPM algorithm 2; arguments and errors as in `p_mean_variance`.
    """
    check_shapes(t, x_t=x_t, noise=noise)
    mean, log_variance, pred_xstart = p_mean_variance(schedule, parameterization, model_output, x_t, t)
    return mean + jnp.where(is_zero(t, x_t), 0.0, jnp.exp(0.5 * log_variance) * noise), pred_xstart
