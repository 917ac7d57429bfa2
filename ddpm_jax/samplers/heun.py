"""Heun's method with churn: EDM's sampler (Karras et al. 2206.00364, algorithm 2), seen through a DDPM.

In x̄ = x / sqrt(ᾱ) and σ = sqrt((1 - ᾱ) / ᾱ) (see `runge_kutta.py`), a step from σ_k to the next, σ_t:

    σ̂ = (1 + γ) σ_k,   x̄̂ = x̄ + S_noise sqrt(σ̂² - σ_k²) z        a little noise is put back: the churn
    d  = ε̂(x̄̂, σ̂)                                                 (x̄ - x̂_0) / σ is ε̂
    x̄_t = x̄̂ + (σ_t - σ̂) d                                        Euler
    x̄_t = x̄̂ + (σ_t - σ̂) (d + ε̂(x̄_t, σ_t)) / 2                    Heun; not in the last step, to σ = 0

with γ = min(S_churn / N, sqrt(2) - 1) where S_min <= σ_k <= S_max, and 0 elsewhere. σ̂ is moved to the nearest σ that the
network was trained on, as EDM does for networks of discrete time; at γ = 0 all σ are. N steps cost 2N - 1 evaluations.
"""

import numpy as np

from ddpm_jax.diffusion.parameterization import PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.runge_kutta import euler_tableau, heun_tableau, no_finite_sigma, runge_kutta, schedule_indices
from ddpm_jax.samplers.sampler import Sampler


def heun(
    schedule: NoiseSchedule,
    predict_x0: PredictFn,
    *,
    trained: NoiseSchedule | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = np.inf,
    churn_noise: float = 1.0,
) -> Sampler:
    """EDM's sampler over `schedule`, usually respaced to 10 .. 40 steps, best by the spacing karras. Order 2.

    Args:
      schedule: the chain to walk.
      predict_x0: `Parameterization.denoise`.
      trained: the chain that `schedule` was respaced from, whose timesteps the network knows; churn needs it.
      churn: S_churn >= 0, how much noise all steps together put back; 0 is deterministic. EDM's best: 30 .. 80.
      churn_min: S_min, of the σ at which noise is put back.
      churn_max: S_max, likewise.
      churn_noise: S_noise > 0, factor on that noise. EDM's best: 1.003 .. 1.007.

    Raises:
      ValueError: churn is out of range or comes without `trained`, or a schedule that starts from infinite σ.
    """
    no_finite_sigma("heun", schedule)
    if not 0 <= churn < np.inf or not 0 < churn_noise < np.inf or not 0 <= churn_min <= churn_max:
        raise ValueError(
            f"churn = {churn:g} at sigma {churn_min:g} .. {churn_max:g} with noise {churn_noise:g} is out of heun's range: "
            "churn is 0 or more, the noise above 0, and the range of sigma ascends from 0 or more"
        )
    if churn and trained is None:
        raise ValueError("churn stops at noise levels between the steps: heun needs the trained chain for it")
    trained = schedule if trained is None else trained

    sigmas, entries = trained.sqrt_recipm1_alphas_cumprod, schedule_indices(schedule, trained)
    gamma = min(churn / len(entries), np.sqrt(2) - 1)
    steps = []
    for k, entry in enumerate(entries):
        first = entry
        if gamma and churn_min <= sigmas[entry] <= churn_max:
            first = int(np.argmin(np.abs(sigmas - (1 + gamma) * sigmas[entry])))
        steps.append(heun_tableau(sigmas, first, entries[k - 1]) if k else euler_tableau(first))
    return runge_kutta(schedule, trained, predict_x0, steps, churn_noise)
