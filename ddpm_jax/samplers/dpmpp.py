"""DPM-Solver++: second-order multistep solvers, deterministic and stochastic. Lu et al. 2211.01095.

With α = sqrt(ᾱ), σ = sqrt(1 - ᾱ), λ = log(α / σ), for a step from index k to the next level, t, of length h = λ_t - λ_k,
where the previous step had length h' = λ_k - λ_{k+1}:

    D   = x̂_0(k) + (h / 2h') (x̂_0(k) - x̂_0(k+1))                                   extrapolated x̂_0
    2M        x_t = (σ_t / σ_k) x_k + α_t (1 - e^{-h}) D                              algorithm 2
    2M-SDE    x_t = (σ_t / σ_k) e^{-h} x_k + α_t (1 - e^{-2h}) D + σ_t sqrt(1 - e^{-2h}) z     section 5, appendix C

The first step has no previous one and uses D = x̂_0; so does the last, to λ = infinity, where the extrapolated D is not
finite (lower-order final). If consecutive steps differ much in length, the extrapolation is (3) of `multistep.py` without
noise and `variance_preserving_extrapolation` with noise.

With D = x̂_0 throughout, 2M is DDIM with η = 0 and 2M-SDE is DDIM with η = 1, i.e. ancestral sampling with the variance
fixed_small. Both use one network evaluation per step.
"""

import numpy as np

from ddpm_jax.diffusion.parameterization import PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.multistep import (
    Coefficients,
    alpha_linear_extrapolation,
    is_alpha_linear_step,
    is_uneven_step,
    log_signal_to_noise,
    multistep,
)
from ddpm_jax.samplers.sampler import Sampler


def dpmpp_2m(schedule: NoiseSchedule, predict_x0: PredictFn) -> Sampler:
    """DPM-Solver++ (2M) over `schedule`, usually respaced to 10 .. 50 steps. Deterministic, of order 2."""
    return multistep(schedule, predict_x0, second_order_coefficients(schedule, noise=False))


def dpmpp_2m_sde(schedule: NoiseSchedule, predict_x0: PredictFn) -> Sampler:
    """SDE-DPM-Solver++ (2M) over `schedule`: as `dpmpp_2m`, with noise added in every step."""
    return multistep(schedule, predict_x0, second_order_coefficients(schedule, noise=True))


def second_order_coefficients(schedule: NoiseSchedule, *, noise: bool) -> Coefficients:
    """The coefficients of x_k, x̂_0(k), x̂_0(k+1) and z in the equations above. float64."""
    sigma = schedule.sqrt_one_minus_alphas_cumprod
    sigma_next = np.append(0.0, sigma[:-1])
    alpha_next = np.sqrt(schedule.alphas_cumprod_prev)
    log_snr = log_signal_to_noise(schedule)
    h = np.append(np.inf, log_snr[:-1]) - log_snr
    h_before = np.append(h[1:], np.inf)  # infinite: nothing to extrapolate from
    extrapolation = np.divide(h, 2 * h_before, out=np.zeros_like(h), where=np.isfinite(h_before))
    if noise:
        extrapolation = np.where(is_uneven_step(schedule), variance_preserving_extrapolation(schedule), extrapolation)
    else:
        extrapolation = np.where(is_alpha_linear_step(schedule), alpha_linear_extrapolation(schedule), extrapolation)
    extrapolation[0] = 0.0

    x = sigma_next / sigma
    d = alpha_next * -np.expm1(-2 * h if noise else -h)
    x0 = np.stack([d * (1 + extrapolation), -d * extrapolation], axis=1)
    if not noise:
        return Coefficients(x=x, x0=x0)
    return Coefficients(x=x * np.exp(-h), x0=x0, noise=sigma_next * np.sqrt(-np.expm1(-2 * h)))


def variance_preserving_extrapolation(schedule: NoiseSchedule) -> np.ndarray:
    """r of D = x̂_0(k) + r (x̂_0(k) - x̂_0(k+1)) such that a 2M-SDE step preserves the variance of data N(m, I): float64 [K].

    With noise, x̂_0 is a martingale: its next change is independent of the last one, but contributes to the variance of the
    samples. For such data x̂_0 = m + α (x - α m), and x has variance 1 at every level and covariance α_{k+1} / α_k with the
    previous one. The result of the step has variance 1 if, with q = 1 - e^{-2h},

        ᾱ_t q (ᾱ_k - ᾱ_{k+1}) r² + 2 (ᾱ_k - ᾱ_{k+1}) r = ᾱ_t - ᾱ_k

    In short steps r is half their ratio in ᾱ. It is 0 in the first and the last step.
    """
    alphas_cumprod, noise = schedule.alphas_cumprod, 1 - schedule.alphas_cumprod
    changes = -np.diff(alphas_cumprod)
    ratio = changes[:-1] / changes[1:]
    a = changes[:-1] / noise[1:-1]  # ᾱ_t q
    inner = (np.sqrt(1 + a * ratio) - 1) / a
    return np.concatenate([[0.0], inner, [0.0]])[: len(alphas_cumprod)]
