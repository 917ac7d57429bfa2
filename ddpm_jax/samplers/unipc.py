"""UniPC: a predictor and a corrector of any order that share network evaluations. Zhao et al. 2302.04867.

In the notation of `multistep.py`, a step from s to t of length h = λ_t - λ_s, with x̂_0 = m_0 at s and m_i at previous levels
λ_i, r_i = (λ_i - λ_s) / h < 0, is

    x_t = (σ_t / σ_s) x_s - α_t (e^{-h} - 1) m_0 - α_t B Σ_i ρ_i (m_i - m_0) / r_i         eqs. 3 and 10, data prediction

with B = e^{-h} - 1 (their B_2, "bh2"). The ρ make the step exact if x̂_0 is a polynomial in λ: with q of them,

    Σ_i ρ_i r_i^{n-1} = n! φ_n / B,   n = 1 .. q,     φ_1 = (e^{-h} - 1) / (-h) - 1,  φ_{n+1} = φ_n / (-h) - 1 / (n+1)!

The predictor of order p uses the p - 1 levels before s. The corrector, one order higher, adds t itself (r = 1): its m_t is
x̂_0 at the predicted x_t, which the next step uses as well, so it costs no evaluation. For q = 1 the paper sets the single ρ
to 1/2, the limit for small h.

The order is limited by the number of previous levels: 1 in the first step, 2 in the second. The last step, to λ = infinity,
returns x̂_0. If consecutive steps differ much in length, the predictor is (3) of `multistep.py` (`is_alpha_linear_step`
there). A step more than twice as long as the previous one has a corrector of order 1; if it is the last but one, orders
decrease toward it as toward the end of the chain.
"""

import math

import numpy as np

from ddpm_jax.diffusion.parameterization import PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.multistep import (
    Coefficients,
    Correction,
    alpha_linear_extrapolation,
    is_alpha_linear_step,
    is_long_step,
    log_signal_to_noise,
    multistep,
)
from ddpm_jax.samplers.sampler import Sampler

ORDERS = (1, 2, 3)


def unipc(schedule: NoiseSchedule, predict_x0: PredictFn, *, order: int = 2) -> Sampler:
    """UniPC over `schedule`, usually respaced to 5 .. 50 steps; one network evaluation per step. Deterministic.

    Args:
      schedule: the sampling chain.
      predict_x0: `Parameterization.denoise`.
      order: order of the predictor, 1, 2 or 3; the corrector raises it by one.

    Raises:
      ValueError: order out of range.
    """
    if order not in ORDERS:
        raise ValueError(f"`order` is {order}: unipc has the orders 1, 2 and 3")
    return multistep(schedule, predict_x0, *predictor_corrector(schedule, order))


def predictor_corrector(schedule: NoiseSchedule, order: int) -> tuple[Coefficients, Correction]:
    """The coefficients of all steps by the equations above. float64."""
    num_steps = schedule.num_timesteps
    alpha = np.append(1.0, schedule.sqrt_alphas_cumprod)  # index k of the schedule is k + 1 here, and the clean image 0
    sigma = np.append(0.0, schedule.sqrt_one_minus_alphas_cumprod)
    log_snr = np.append(np.inf, log_signal_to_noise(schedule))
    is_long, is_linear = is_long_step(schedule), is_alpha_linear_step(schedule)
    extrapolation = alpha_linear_extrapolation(schedule)
    noisiest = int(np.isfinite(schedule.sqrt_recipm1_alphas_cumprod).sum())  # λ is finite at 1 .. noisiest

    x, x0 = np.zeros(num_steps), np.zeros((num_steps, order))
    corrected_x, corrected_previous_x = np.ones(num_steps), np.zeros(num_steps)
    corrected_x0 = np.zeros((num_steps, order + 1))
    for k in range(num_steps):
        start, end = k + 1, k
        x[k] = sigma[end] / sigma[start]
        if k == 0 or start > noisiest:  # h is infinite: all the weight is on the newest x̂_0
            x0[k, 0] = alpha[end]
            continue
        h = log_snr[end] - log_snr[start]
        p = 1 if is_long[k] else min(order, k + 1 - is_long[1], 1 + noisiest - start)
        ratios = (log_snr[start + 1 : start + p] - log_snr[start]) / h
        x0[k, :p] = _x0_coefficients(h, alpha[end], ratios, _solve_rho(h, ratios))
        if is_linear[k] and order > 1:
            x0[k] = x0[k].sum() * np.append([1 + extrapolation[k], -extrapolation[k]], np.zeros(order - 2))

        ratios = np.append(ratios, 1.0)
        newest, *older = _x0_coefficients(h, alpha[end], ratios, _solve_rho(h, ratios))
        corrected_x[end - 1], corrected_previous_x[end - 1] = 0.0, x[k]
        corrected_x0[end - 1, 0] = older.pop()  # the coefficient at t itself, which is the last
        corrected_x0[end - 1, 1 : p + 1] = [newest, *older]
    return Coefficients(x=x, x0=x0), Correction(x=corrected_x, previous_x=corrected_previous_x, x0=corrected_x0)


def _solve_rho(h: float, ratios: np.ndarray) -> np.ndarray:
    """ρ [q] for r [q]."""
    q = len(ratios)
    if q <= 1:
        return np.full(q, 0.5)
    b = math.expm1(-h)
    phi, right_hand_side = b / -h - 1, []
    for n in range(1, q + 1):
        right_hand_side.append(math.factorial(n) * phi / b)
        phi = phi / -h - 1 / math.factorial(n + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, right_hand_side)


def _x0_coefficients(h: float, alpha: float, ratios: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """The coefficients of m_0, m_1 .. m_q in a step: [1 + q]."""
    weights = rho / ratios
    return -alpha * math.expm1(-h) * np.append(1 - weights.sum(), weights)
