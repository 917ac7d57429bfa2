"""Likelihoods in bits: the divergence of two Gaussians, and the term of the variational bound that knows no network.

    KL(N(μ1, σ1² I) ‖ N(μ2, σ2² I)) = ½ Σ_i [ log σ2² - log σ1² + σ1²/σ2² - 1 + (μ1_i - μ2_i)²/σ2² ]     (12)

DDPM draws x_T from N(0, I), while the forward process ends in q(x_T | x_0) = N(sqrt(ᾱ_T) x_0, (1 - ᾱ_T) I). What
this costs is the first term of the bound,

    L_T = KL(q(x_T | x_0) ‖ N(0, I))                                                (13)  DDPM 2006.11239, eq. 5

and for any t the same divergence says how far the images are from being forgotten. Divided by the number of
dimensions and by log 2 it is in bits per dimension.
"""

import jax
import jax.numpy as jnp

from ddpm_jax.process import diffusion
from ddpm_jax.process.schedules import NoiseSchedule

Array = jax.Array


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


def _mean_bits(nats: Array) -> Array:
    """Nats of each element [B, ...] to bits per dimension [B]."""
    return jnp.mean(nats, axis=tuple(range(1, nats.ndim))) / jnp.log(2.0)
