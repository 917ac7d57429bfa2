"""The posterior of a forward step given x_0: its variance, and the coefficients of its mean.

With β_t, α_t and ᾱ_t of `schedules.py`, by Bayes' rule for the Gaussians (1) and (2) there,

    q(x_{t-1} | x_t, x_0) = N(c1_t x_0 + c2_t x_t, β̃_t I)                           (3)   DDPM 2006.11239, eqs. 6, 7
    c1_t = β_t sqrt(ᾱ_{t-1}) / (1 - ᾱ_t)        c2_t = (1 - ᾱ_{t-1}) sqrt(α_t) / (1 - ᾱ_t)
    β̃_t = β_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t)

`gaussian.q_posterior_mean_variance` evaluates it, and `variances.py` uses β̃_t as one choice of the network's variance.
"""

from typing import NamedTuple

import numpy as np


class PosteriorTables(NamedTuple):
    """The tables of (3): float64 NumPy [K].

    Attributes:
      variance: β̃_t; 0 at t=0.
      log_variance_clipped: log β̃_t, but the value of t=1 at t=0 (log β_0 if K=1), where it is -inf.
      mean_coef1: c1_t, coefficient of x_start.
      mean_coef2: c2_t, coefficient of x_t.
    """

    variance: np.ndarray
    log_variance_clipped: np.ndarray
    mean_coef1: np.ndarray
    mean_coef2: np.ndarray


def posterior_tables(
    betas: np.ndarray, alphas: np.ndarray, alphas_cumprod_prev: np.ndarray, noise_variance: np.ndarray
) -> PosteriorTables:
    """The posterior of each step of a chain.

    Args:
      betas: β_t, float64 [K], in (0, 1].
      alphas: 1 - β_t, without cancellation.
      alphas_cumprod_prev: ᾱ_{t-1}; 1 at t=0.
      noise_variance: 1 - ᾱ_t, without cancellation.
    """
    noise_variance_prev = np.append(0.0, noise_variance[:-1])
    variance = betas * noise_variance_prev / noise_variance
    first = variance[1:2] if len(betas) > 1 else betas  # used at t=0, where β̃ is 0
    return PosteriorTables(
        variance=variance,
        log_variance_clipped=np.log(np.append(first, variance[1:])),
        mean_coef1=betas * np.sqrt(alphas_cumprod_prev) / noise_variance,
        mean_coef2=noise_variance_prev * np.sqrt(alphas) / noise_variance,
    )
