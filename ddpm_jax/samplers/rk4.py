"""The probability-flow ODE by a fourth-order Runge-Kutta method. Song et al. 2011.13456, section 4.3.

Each step between indices of the chain has four stages: at both ends, and at the two timesteps nearest to one third and two
thirds of the step in σ. If no timestep is near enough, a step has three stages and order 3, or two and order 2 (Heun's), which
is accurate enough for such short steps. The last evaluation is at t=0 for any spacing, and its x̂_0 is the sample: 4N - 3
evaluations in N steps that end at t=0, 4N + 1 in N steps that do not.

Use it for latents and interpolation, and as the reference solution for faster solvers.
"""

import itertools

import numpy as np

from ddpm_jax.diffusion.parameterization import PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.runge_kutta import (
    Tableau,
    euler_tableau,
    fourth_order_coefficients,
    heun_tableau,
    require_finite_sigma,
    runge_kutta,
    schedule_indices,
    third_order_coefficients,
)
from ddpm_jax.samplers.sampler import Sampler

# Largest distance of a stage from its target, as a fraction of the step. Two stages never share a timestep.
STAGE_TOLERANCE = 0.15
# Largest coefficient of a step; Kutta's third-order rule has 2. Large ones amplify errors of the network.
MAX_COEFFICIENT = 3.0


def rk4(schedule: NoiseSchedule, predict_x0: PredictFn, *, trained: NoiseSchedule | None = None) -> Sampler:
    """The probability-flow ODE over `schedule`. Deterministic, of order 4.

    Args:
      schedule: the sampling chain.
      predict_x0: `Parameterization.denoise`.
      trained: the chain that `schedule` was respaced from, which provides the timesteps of inner stages; without it, every
        step is Heun's.

    Raises:
      ValueError: the schedule starts at infinite σ.
    """
    require_finite_sigma("ode", schedule)
    trained = schedule if trained is None else trained
    sigmas, indices = trained.sqrt_recipm1_alphas_cumprod, schedule_indices(schedule, trained)
    tableaus = [_final_step(sigmas, int(indices[0]))]
    tableaus += [tableau_between(sigmas, int(start), int(end)) for end, start in itertools.pairwise(indices)]
    return runge_kutta(schedule, trained, predict_x0, tableaus)


def tableau_between(sigmas: np.ndarray, start: int, end: int) -> Tableau:
    """A step from index `start` to `end`, of the highest order that the timesteps in between allow."""
    h = sigmas[end] - sigmas[start]
    inner = np.arange(start - 1, end, -1)
    c = (sigmas[inner] - sigmas[start]) / h
    for targets, make_coefficients in (((1 / 3, 2 / 3), fourth_order_coefficients), ((1 / 2,), third_order_coefficients)):
        if not len(inner):
            break
        chosen = [int(np.argmin(np.abs(c - target))) for target in targets]
        if len(set(chosen)) < len(targets) or any(
            abs(c[i] - target) > STAGE_TOLERANCE for i, target in zip(chosen, targets, strict=True)
        ):
            continue
        a, b = make_coefficients(*c[chosen])
        if max(np.abs(a).max(), np.abs(b).max()) <= MAX_COEFFICIENT:
            return Tableau((start, *inner[chosen].tolist(), end), h * a, h * b)
    return heun_tableau(sigmas, start, end)


def _final_step(sigmas: np.ndarray, start: int) -> Tableau:
    """A step from index `start` to 0, if it is not 0, and x̂_0 there."""
    if start == 0:
        return euler_tableau(0)
    tableau = tableau_between(sigmas, start, 0)
    stages = len(tableau.stages)
    a = np.zeros((stages + 1, stages + 1))
    a[:stages, :stages], a[stages, :stages] = tableau.a, tableau.b
    return Tableau((*tableau.stages, 0), a, np.zeros(stages + 1))
