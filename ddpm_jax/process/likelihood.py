"""Likelihoods in bits: the divergence of two Gaussians, and the terms of the variational bound.

    KL(N(μ1, σ1² I) ‖ N(μ2, σ2² I)) = ½ Σ_i [ log σ2² - log σ1² + σ1²/σ2² - 1 + (μ1_i - μ2_i)²/σ2² ]     (12)

DDPM draws x_T from N(0, I), while the forward process ends in q(x_T | x_0) = N(sqrt(ᾱ_T) x_0, (1 - ᾱ_T) I). What
this costs is the first term of the bound,

    L_T = KL(q(x_T | x_0) ‖ N(0, I))                                                (13)  DDPM 2006.11239, eq. 5

and for any t the same divergence says how far the images are from being forgotten. The other terms take one network
evaluation each,

    L_t = KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t)),  t = 1 .. T-1              (14)  DDPM eq. 5
    L_0 = -log p_θ(x_0 | x_1)                                                       (15)

Their sum is at least -log p_θ(x_0): the negative ELBO of a variational autoencoder whose latents are x_1 .. x_T and whose
encoder q has nothing to learn. Images are whole numbers 0..255, so p_θ(x_0 | x_1) is the share of the last Gaussian
that falls into the bin of each pixel's value, the outer bins open (DDPM eq. 13). Divided by the number of dimensions
and by log 2 all of it is in bits per dimension: what a lossless code built upon the model would spend.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.process import diffusion
from ddpm_jax.process.schedules import NoiseSchedule

Array = jax.Array

HALF_BIN = 1.0 / 255.0  # of a pixel's value on the scale of [-1, 1]
LEAST_PROBABILITY = 1e-12  # of a pixel's value, as published numbers have it: a bound stays finite


class BoundTerms(NamedTuple):
    """One term of the bound for each image.

    Attributes:
      bits: float32 [B], L_t in bits per dimension; L_0 where t = 0.
      xstart_mse: float32 [B], mean squared error of the guess of x_start there, in units of [-1, 1].
      eps_mse: float32 [B], the same of the noise that the guess stands for.
    """

    bits: Array
    xstart_mse: Array
    eps_mse: Array


def normal_kl(mean1: Array | float, logvar1: Array | float, mean2: Array | float, logvar2: Array | float) -> Array:
    """KL(N(mean1, exp(logvar1)) ‖ N(mean2, exp(logvar2))) of each element, in nats; (12) without the sum.

    Arrays of shapes that broadcast, or plain numbers; logvar is the log of a variance. 0 where the two are the same,
    above 0 elsewhere. Two that nearly agree lose no digits to cancellation; -inf, a point, is infinitely far from others.
    """
    difference = logvar1 - logvar2
    return 0.5 * (jnp.expm1(difference) - difference + jnp.square(mean1 - mean2) * jnp.exp(-logvar2))


def prior_bits_per_dim(schedule: NoiseSchedule, x_start: Array, t: Array) -> Array:
    """How far q(x_t | x_0) is from N(0, I): the KL of (13) in bits per dimension, [B]. At t = T-1 it is L_T. DDPM eq. 5.

    Args:
      schedule: the chain that t counts in.
      x_start: floating [B, ...], the images, in [-1, 1].
      t: integer [B], 0..K-1; out of range gives NaN.

    Returns:
      At least float32; float64 where x_start is (under `jax.enable_x64`).

    Raises:
      ValueError: shapes that do not match, or images that are not floating.
    """
    mean, _, log_variance = diffusion.q_mean_variance(schedule, x_start, t)
    return _mean_bits(normal_kl(mean, log_variance, 0.0, 0.0))


def discretized_gaussian_log_likelihood(x: Array, mean: Array, log_scale: Array) -> Array:
    """log of the share of N(mean, exp(log_scale)²) in the bin of each value, in nats; DDPM eq. 13.

    Args:
      x: floating [B, ...], images in [-1, 1] whose values are k / 127.5 - 1, k = 0..255.
      mean: as x.
      log_scale: log of the standard deviation; broadcasts to x.

    Returns:
      As x; at least log(LEAST_PROBABILITY). The share is taken in the lower tail, where it loses no digits.
    """
    scale = jnp.exp(-log_scale)
    low = jnp.where(x < -0.999, -jnp.inf, (x - mean - HALF_BIN) * scale)
    high = jnp.where(x > 0.999, jnp.inf, (x - mean + HALF_BIN) * scale)
    upper = x > mean
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    share = jax.scipy.special.ndtr(high) - jax.scipy.special.ndtr(low)
    return jnp.log(jnp.maximum(share, LEAST_PROBABILITY))


def bound_terms(
    schedule: NoiseSchedule,
    denoise_fn: Callable[[Array, Array], Array],
    x_start: Array,
    t: Array,
    keys: Array,
    *,
    prediction: str,
    variance: str,
    clip_denoised: bool,
) -> BoundTerms:
    """The term at t of each image's bound, from one draw of x_t: (14), and (15) where t = 0.

    Args:
      schedule: the chain of T steps that the network was trained on.
      denoise_fn: (x_t, t) -> model output.
      x_start: float32 [B, ...], images in [-1, 1] whose values are k / 127.5 - 1.
      t: integer [B], 0..T-1.
      keys: [B], one per image.
      prediction: what the network predicts, a key of `diffusion.PREDICTIONS`.
      variance: of the reverse step, a key of `diffusion.VARIANCES`.
      clip_denoised: whether the guess of x_start is clipped to [-1, 1], as in sampling.

    Raises:
      ValueError: shapes that do not match, an unknown prediction or variance.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, x_start.shape[1:]))(keys)
    x_t = diffusion.q_sample(schedule, x_start, t, noise)
    true_mean, _, true_log_variance = diffusion.q_posterior_mean_variance(schedule, x_start, x_t, t)
    mean, log_variance, pred_xstart = diffusion.p_mean_variance(
        schedule,
        denoise_fn(x_t, t),
        x_t,
        t,
        prediction=prediction,
        variance=variance,
        clip_denoised=clip_denoised,
    )
    divergence = _mean_bits(normal_kl(true_mean, true_log_variance, mean, log_variance))
    decoder = _mean_bits(-discretized_gaussian_log_likelihood(x_start, mean, 0.5 * log_variance))
    axes = tuple(range(1, x_start.ndim))
    pred_eps = diffusion.predict_eps_from_xstart(schedule, x_t, t, pred_xstart)
    return BoundTerms(
        bits=jnp.where(t == 0, decoder, divergence),
        xstart_mse=jnp.mean(jnp.square(pred_xstart - x_start), axis=axes),
        eps_mse=jnp.mean(jnp.square(pred_eps - noise), axis=axes),
    )


def _mean_bits(nats: Array) -> Array:
    """Nats of each element [B, ...] to bits per dimension [B]."""
    return jnp.mean(nats, axis=tuple(range(1, nats.ndim))) / jnp.log(2.0)
