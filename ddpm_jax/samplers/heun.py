"""Heun's method with churn: EDM's sampler (Karras et al. 2206.00364, algorithm 2) for a DDPM.

In x̄ = x / sqrt(ᾱ) and σ = sqrt((1 - ᾱ) / ᾱ) (see `runge_kutta.py`), a step from σ_k to the next level, σ_t, is

    σ̂ = (1 + γ) σ_k,   x̄̂ = x̄ + S_noise sqrt(σ̂² - σ_k²) z        churn: some noise is added back
    d  = ε̂(x̄̂, σ̂)                                                 (x̄ - x̂_0) / σ is ε̂
    x̄_t = x̄̂ + (σ_t - σ̂) d                                        Euler
    x̄_t = x̄̂ + (σ_t - σ̂) (d + ε̂(x̄_t, σ_t)) / 2                    Heun; not in the last step, to σ = 0

with γ = min(S_churn / N, sqrt(2) - 1) where S_min <= σ_k <= S_max, and 0 elsewhere. σ̂ is rounded to the nearest σ of the
training chain, as EDM does for discrete-time networks; for γ = 0 all σ are in it. N steps cost 2N - 1 evaluations.
"""

import numpy as np

from ddpm_jax.diffusion.parameterization import PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.runge_kutta import euler_tableau, heun_tableau, require_finite_sigma, runge_kutta, schedule_indices
from ddpm_jax.samplers.sampler import Sampler


def heun(
    schedule: NoiseSchedule,
    predict_x0: PredictFn,
    *,
    trained: NoiseSchedule | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = 1e6,
    churn_noise: float = 1.0,
) -> Sampler:
    """EDM's sampler over `schedule`, usually respaced to 10 .. 40 steps, best with spacing karras. Order 2.

    Args:
      schedule: the sampling chain.
      predict_x0: `Parameterization.denoise`.
      trained: the chain that `schedule` was respaced from; required for churn.
      churn: S_churn >= 0, the amount of noise added back over all steps; 0 is deterministic. EDM's best: 30 .. 80.
      churn_min: S_min, the smallest σ with churn.
      churn_max: S_max, the largest σ with churn.
      churn_noise: S_noise > 0, factor on the added noise. EDM's best: 1.003 .. 1.007.

    Raises:
      ValueError: churn is out of range or `trained` is missing, or the schedule starts at infinite σ.
    """
    require_finite_sigma("heun", schedule)
    if not 0 <= churn < np.inf or not 0 < churn_noise < np.inf or not 0 <= churn_min <= churn_max:
        raise ValueError(
            f"`churn` is {churn:g} at sigma {churn_min:g} .. {churn_max:g} with noise {churn_noise:g}, out of heun's range: "
            "set `churn` >= 0, `churn_noise` > 0 and 0 <= `churn_min` <= `churn_max`"
        )
    if churn and trained is None:
        raise ValueError("churn uses noise levels between the steps, so heun needs the trained chain")
    trained = schedule if trained is None else trained

    sigmas, indices = trained.sqrt_recipm1_alphas_cumprod, schedule_indices(schedule, trained)
    gamma = min(churn / len(indices), np.sqrt(2) - 1)
    tableaus = []
    for k, index in enumerate(indices):
        first = index
        if gamma and churn_min <= sigmas[index] <= churn_max:
            first = int(np.argmin(np.abs(sigmas - (1 + gamma) * sigmas[index])))
        tableaus.append(heun_tableau(sigmas, first, indices[k - 1]) if k else euler_tableau(first))
    return runge_kutta(schedule, trained, predict_x0, tableaus, churn_noise)
