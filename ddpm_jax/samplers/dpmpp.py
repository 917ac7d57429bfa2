"""DPM-Solver++: second order from two guesses of x_start, with noise or without. Lu et al. 2211.01095.

With λ = log(sqrt(ᾱ) / sqrt(1 - ᾱ)), α = sqrt(ᾱ), s = sqrt(1 - ᾱ), a step from entry k to the next, t, of length
h = λ_t - λ_k, where the step before had length h' = λ_k - λ_{k+1}:

    D   = x̂_0(k) + (h / 2h') (x̂_0(k) - x̂_0(k+1))                                   the guesses, extrapolated
    2M        x_t = (s_t / s_k) x_k + α_t (1 - e^{-h}) D                              algorithm 2
    2M-SDE    x_t = (s_t / s_k) e^{-h} x_k + α_t (1 - e^{-2h}) D + s_t sqrt(1 - e^{-2h}) z     section 5, appendix C

The first step has no step before it and takes D = x̂_0; so does the last, to λ = infinity, where D extrapolated would
not be finite and the guess is exact (lower-order final). Where steps differ much in length, the
extrapolation is another: without noise that of (3) in `multistep.py`, with noise `keeping_variance`.

With D = x̂_0 throughout, 2M is DDIM with η = 0 and 2M-SDE is DDIM with η = 1, that is ancestral sampling with the variance
fixed_small. Both make one network evaluation a step.
"""

import numpy as np

from ddpm_jax.diffusion.parameterization import PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.multistep import (
    Coefficients,
    alpha_linear_extrapolation,
    log_signal_to_noise,
    multistep,
    steps_along_signal,
    uneven_steps,
)
from ddpm_jax.samplers.sampler import Sampler


def dpmpp_2m(schedule: NoiseSchedule, predict_x0: PredictFn) -> Sampler:
    """DPM-Solver++ (2M) over `schedule`, usually respaced to 10 .. 50 steps. Deterministic, of order 2.

    Args:
      schedule: the chain to walk.
      predict_x0: `Parameterization.denoise`.
    """
    return multistep(schedule, predict_x0, second_order_coefficients(schedule, noise=False))


def dpmpp_2m_sde(schedule: NoiseSchedule, predict_x0: PredictFn) -> Sampler:
    """SDE-DPM-Solver++ (2M) over `schedule`: as `dpmpp_2m`, with fresh noise in every step."""
    return multistep(schedule, predict_x0, second_order_coefficients(schedule, noise=True))


def second_order_coefficients(schedule: NoiseSchedule, *, noise: bool) -> Coefficients:
    """The equations above, as weights of x_k, x̂_0(k), x̂_0(k+1) and z. float64."""
    spread = schedule.sqrt_one_minus_alphas_cumprod
    spread_next = np.append(0.0, spread[:-1])
    signal_next = np.sqrt(schedule.alphas_cumprod_prev)
    log_snr = log_signal_to_noise(schedule)
    h = np.append(np.inf, log_snr[:-1]) - log_snr
    h_before = np.append(h[1:], np.inf)  # infinite: nothing to extrapolate from
    extrapolation = np.divide(h, 2 * h_before, out=np.zeros_like(h), where=np.isfinite(h_before))
    if noise:
        extrapolation = np.where(uneven_steps(schedule), variance_preserving_extrapolation(schedule), extrapolation)
    else:
        extrapolation = np.where(steps_along_signal(schedule), alpha_linear_extrapolation(schedule), extrapolation)
    extrapolation[0] = 0.0

    on_x = spread_next / spread
    on_guess = signal_next * -np.expm1(-2 * h if noise else -h)
    on_guesses = np.stack([on_guess * (1 + extrapolation), -on_guess * extrapolation], axis=1)
    if not noise:
        return Coefficients(on_x=on_x, on_guesses=on_guesses)
    return Coefficients(on_x=on_x * np.exp(-h), on_guesses=on_guesses, on_noise=spread_next * np.sqrt(-np.expm1(-2 * h)))


def variance_preserving_extrapolation(schedule: NoiseSchedule) -> np.ndarray:
    """r of D = x̂_0(k) + r (x̂_0(k) - x̂_0(k+1)) by which a 2M-SDE step keeps the variance of data N(m, I): float64 [K].

    With noise the guess is a martingale: what it will still learn in a step is not a line that could be gone on with, but it
    spreads the samples, and the last change stands in for it. For such data the guess is m + α (x - α m), x has variance 1
    at every entry and covariance α_{k+1} / α_k with the one before; the step's result has it as well if, with q = 1 - e^{-2h},

        ᾱ_t q (ᾱ_k - ᾱ_{k+1}) r² + 2 (ᾱ_k - ᾱ_{k+1}) r = ᾱ_t - ᾱ_k

    In short steps this is half their ratio in ᾱ. 0 in the first step, which has none before it, and in the last.
    """
    signal, noise = schedule.alphas_cumprod, 1 - schedule.alphas_cumprod
    changes = -np.diff(signal)
    ratio = changes[:-1] / changes[1:]
    bend = changes[:-1] / noise[1:-1]  # ᾱ_t q
    inner = (np.sqrt(1 + bend * ratio) - 1) / bend
    return np.concatenate([[0.0], inner, [0.0]])[: len(signal)]
