"""UniPC: a predictor and a corrector of any order from the same guesses. Zhao et al. 2302.04867.

In the notation of `multistep.py`, a step from s to t of length h = λ_t - λ_s, with the guesses m_0 at s and m_i at the
points before it, r_i = (λ_i - λ_s) / h < 0, is

    x_t = (s_t / s_s) x_s - α_t (e^{-h} - 1) m_0 - α_t B Σ_i ρ_i (m_i - m_0) / r_i         eqs. 3 and 10, data prediction

with B = e^{-h} - 1 (their B_2, "bh2"). The ρ make the sum right for guesses that are polynomials in λ: with q of them,

    Σ_i ρ_i r_i^{n-1} = n! φ_n / B,   n = 1 .. q,     φ_1 = (e^{-h} - 1) / (-h) - 1,  φ_{n+1} = φ_n / (-h) - 1 / (n+1)!

The predictor of order p uses the p - 1 points before s. The corrector, one order better, adds t itself (r = 1): its guess
m_t is what the network makes of the x_t predicted, and serves in the next step as well, so that it costs nothing. With
q = 1, a single ρ, the paper takes 1/2, which is right in the limit of small h.

As many orders as there are points: 1 in the first step, 2 in the second; the last step, to λ = infinity, returns its guess.
Where steps differ much in length the predictor is that of (3) in `multistep.py` (`steps_along_signal` there). A step of more
than twice the one before has the corrector of order 1; where it is the one before the last, orders fall towards it as
towards an end.
"""

import math

import numpy as np

from ddpm_jax.diffusion.parameterization import PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.multistep import (
    Coefficients,
    Correction,
    alpha_linear_extrapolation,
    log_signal_to_noise,
    long_steps,
    multistep,
    steps_along_signal,
)
from ddpm_jax.samplers.sampler import Sampler

ORDERS = (1, 2, 3)


def unipc(schedule: NoiseSchedule, predict_x0: PredictFn, *, order: int = 2) -> Sampler:
    """UniPC over `schedule`, usually respaced to 5 .. 50 steps; one network evaluation a step. Deterministic.

    Args:
      schedule: the chain to walk.
      predict_x0: `Parameterization.denoise`.
      order: of the predictor: 1, 2 or 3; with the corrector the error falls one order faster.

    Raises:
      ValueError: another order.
    """
    if order not in ORDERS:
        raise ValueError(f"unipc has order 1, 2 or 3, not {order}")
    return multistep(schedule, predict_x0, *predictor_corrector(schedule, order))


def predictor_corrector(schedule: NoiseSchedule, order: int) -> tuple[Coefficients, Correction]:
    """The weights of all steps by the equations above. float64."""
    steps = schedule.num_timesteps
    signal = np.append(1.0, schedule.sqrt_alphas_cumprod)  # here entry k stands at k + 1, and the clean image at 0
    spread = np.append(0.0, schedule.sqrt_one_minus_alphas_cumprod)
    log_snr = np.append(np.inf, log_signal_to_noise(schedule))
    is_long, is_along, along = long_steps(schedule), steps_along_signal(schedule), alpha_linear_extrapolation(schedule)
    noisiest = int(np.isfinite(schedule.sqrt_recipm1_alphas_cumprod).sum())  # λ is finite at 1 .. noisiest

    on_x, on_guesses = np.zeros(steps), np.zeros((steps, order))
    correct_x, correct_before, correct_guesses = np.ones(steps), np.zeros(steps), np.zeros((steps, order + 1))
    for k in range(steps):
        here, there = k + 1, k
        on_x[k] = spread[there] / spread[here]
        if k == 0 or here > noisiest:  # h is infinite: all the weight is on the newest guess
            on_guesses[k, 0] = signal[there]
            continue
        h = log_snr[there] - log_snr[here]
        p = 1 if is_long[k] else min(order, k + 1 - is_long[1], 1 + noisiest - here)
        ratios = (log_snr[here + 1 : here + p] - log_snr[here]) / h
        on_guesses[k, :p] = _x0_coefficients(h, signal[there], ratios, _solve_rho(h, ratios))
        if is_along[k] and order > 1:
            on_guesses[k] = on_guesses[k].sum() * np.append([1 + along[k], -along[k]], np.zeros(order - 2))

        ratios = np.append(ratios, 1.0)
        newest, *older = _x0_coefficients(h, signal[there], ratios, _solve_rho(h, ratios))
        correct_x[there - 1], correct_before[there - 1] = 0.0, on_x[k]
        correct_guesses[there - 1, 0] = older.pop()  # the weight at t itself, which came last
        correct_guesses[there - 1, 1 : p + 1] = [newest, *older]
    return Coefficients(on_x=on_x, on_guesses=on_guesses), Correction(correct_x, correct_before, correct_guesses)


def _solve_rho(h: float, ratios: np.ndarray) -> np.ndarray:
    """The ρ [q] at r [q]."""
    q = len(ratios)
    if q <= 1:
        return np.full(q, 0.5)
    b = math.expm1(-h)
    phi, sides = b / -h - 1, []
    for n in range(1, q + 1):
        sides.append(math.factorial(n) * phi / b)
        phi = phi / -h - 1 / math.factorial(n + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, sides)


def _x0_coefficients(h: float, signal: float, ratios: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """What multiplies m_0, m_1 .. m_q in a step: [1 + q]."""
    share = rho / ratios
    return -signal * math.expm1(-h) * np.append(1 - share.sum(), share)
