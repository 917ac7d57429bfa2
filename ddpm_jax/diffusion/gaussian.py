"""The diffusion process: noising an image, and one step of taking the noise away again.

Forward, for any t at once, with ε ~ N(0, I) (the tables and their equations (1)-(4) are in `schedules.py`):

    x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε                                           (6)   DDPM 2006.11239, eq. 4

Backward, the network's output is turned into a guess of x_0 by (8) or (9) of `parameterization.py`, and that guess takes the
place of x_0 in the posterior (3):

    p(x_{t-1} | x_t) = N(c1_t x̂_0 + c2_t x_t, σ_t² I)                               (10)  DDPM eqs. 1, 7

with the variance σ_t² of `variances.py`.

Everywhere below x_start, x_t, noise and the network's output are floating arrays [B, ...], images [B, H, W, C] in
[-1, 1]; t is an integer array [B], 0..K-1 (entries of the schedule). Shapes are checked as the functions are
traced and raise ValueError. A t out of range cannot be seen then: it turns its image into NaN instead of borrowing
another step's numbers. Arithmetic is in float32 (float64 where the input is), whatever the network computed in.
All functions are pure and can be jitted.
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
    scale = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start)
    return mean, jnp.square(scale), 2 * jnp.log(scale)


def q_step(schedule: NoiseSchedule, x_prev: Array, t: Array, noise: Array) -> Array:
    """One step of noise: a draw from q(x_t | x_{t-1}) made of `noise` ~ N(0, I). At t=0 x_prev is x_start. DDPM eq. 2; (1)."""
    check_shapes(t, x_prev=x_prev, noise=noise)
    keep = jnp.sqrt(extract(schedule.alphas, t, x_prev))
    return keep * x_prev + jnp.sqrt(extract(schedule.betas, t, x_prev)) * noise


def q_sample(schedule: NoiseSchedule, x_start: Array, t: Array, noise: Array) -> Array:
    """All the noise up to t at once: a draw from q(x_t | x_0) made of `noise` ~ N(0, I). [B, ...]. DDPM eq. 4; (6)."""
    check_shapes(t, x_start=x_start, noise=noise)
    signal_scale = extract(schedule.sqrt_alphas_cumprod, t, x_start)
    noise_scale = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start)
    return signal_scale * x_start + noise_scale * noise


def q_posterior_mean_variance(schedule: NoiseSchedule, x_start: Array, x_t: Array, t: Array) -> tuple[Array, Array, Array]:
    """Mean [B, ...], variance and log variance [B, 1, ... 1] of q(x_{t-1} | x_t, x_0). DDPM eqs. 6, 7; (3).

    At t=0 the mean is x_start and the variance 0; the log variance there is that of t=1, to stay finite.
    """
    check_shapes(t, x_start=x_start, x_t=x_t)
    on_x_start = extract(schedule.posterior_mean_coef1, t, x_t)
    on_x_t = extract(schedule.posterior_mean_coef2, t, x_t)
    variance = extract(schedule.posterior_variance, t, x_t)
    log_variance = extract(schedule.posterior_log_variance_clipped, t, x_t)
    return on_x_start * x_start + on_x_t * x_t, variance, log_variance


# Backward.


def p_mean_variance(
    schedule: NoiseSchedule, parameterization: Parameterization, model_output: Array, x_t: Array, t: Array
) -> tuple[Array, Array, Array]:
    """The network's p(x_{t-1} | x_t): mean [B, ...], log variance [B, 1, ... 1] and guess of x_start [B, ...]. (10).

    What is not read of the three is not computed under jit.

    Args:
      schedule: the chain that t counts in.
      parameterization: what model_output means. Where it learns the variance, the log variance is [B, ...].
      model_output: [B, ...], what the network made of x_t; with a learned variance twice the channels.
      x_t: [B, ...], the noisy images.
      t: [B].

    Raises:
      ValueError: shapes that do not match, or a prediction that a chain with zero terminal SNR cannot use.
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
    """One ancestral step: a draw of x_{t-1} [B, ...] made of `noise` ~ N(0, I), and the guess of x_start [B, ...].

    At t=0 the draw is the mean, without noise. DDPM algorithm 2; arguments and errors as in `p_mean_variance`.
    """
    check_shapes(t, x_t=x_t, noise=noise)
    mean, log_variance, pred_xstart = p_mean_variance(schedule, parameterization, model_output, x_t, t)
    return mean + jnp.where(is_zero(t, x_t), 0.0, jnp.exp(0.5 * log_variance) * noise), pred_xstart
