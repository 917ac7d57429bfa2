"""The probability-flow ODE, solved well: Runge-Kutta of order 4. Song et al. 2011.13456, section 4.3.

Each step from one entry of the chain to the next has four stages: at both ends, and at two timesteps between, those
nearest to a third and two thirds of the way in σ. Where so few timesteps lie between that none is near, a step has
three stages and order 3, or two and order 2 (Heun's), which such short steps do not suffer from. The way ends at t=0
whatever the spacing, with a last evaluation whose guess is the sample: 4N - 3 evaluations in N steps that end there,
4N + 1 in N steps that do not.

For latents and interpolation, and as the truth that quicker solvers are measured by. For pictures they are quicker.
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
    no_finite_sigma,
    runge_kutta,
    schedule_indices,
    third_order_coefficients,
)
from ddpm_jax.samplers.sampler import Sampler

STAGE_TOLERANCE = (
    0.15  # how far a stage may stand from its place, as a share of the step; two stages never meet at one timestep
)
MAX_COEFFICIENT = (
    3.0  # weight that a step may have; Kutta's third-order rule has 2. Large ones amplify what the network gets wrong
)


def rk4(schedule: NoiseSchedule, predict_x0: PredictFn, *, trained: NoiseSchedule | None = None) -> Sampler:
    """The probability-flow ODE over `schedule`. Deterministic, of order 4.

    Args:
      schedule: the chain to walk.
      predict_x0: `Parameterization.denoise`.
      trained: the chain that `schedule` was respaced from, where the stages between find their timesteps; without it
        there are none, and every step is Heun's.

    Raises:
      ValueError: a schedule that starts from infinite σ.
    """
    no_finite_sigma("ode", schedule)
    trained = schedule if trained is None else trained
    sigmas, entries = trained.sqrt_recipm1_alphas_cumprod, schedule_indices(schedule, trained)
    steps = [_final_step(sigmas, int(entries[0]))]
    steps += [tableau_between(sigmas, int(start), int(end)) for end, start in itertools.pairwise(entries)]
    return runge_kutta(schedule, trained, predict_x0, steps)


def tableau_between(sigmas: np.ndarray, start: int, end: int) -> Tableau:
    """From entry `start` down to `end`, with the highest order that the timesteps between allow."""
    h = sigmas[end] - sigmas[start]
    inner = np.arange(start - 1, end, -1)
    places = (sigmas[inner] - sigmas[start]) / h
    for targets, make_weights in (((1 / 3, 2 / 3), fourth_order_coefficients), ((1 / 2,), third_order_coefficients)):
        if not len(inner):
            break
        chosen = [int(np.argmin(np.abs(places - target))) for target in targets]
        if len(set(chosen)) < len(targets) or any(
            abs(places[i] - target) > STAGE_TOLERANCE for i, target in zip(chosen, targets, strict=True)
        ):
            continue
        a, b = make_weights(*places[chosen])
        if max(np.abs(a).max(), np.abs(b).max()) <= MAX_COEFFICIENT:
            return Tableau((start, *inner[chosen].tolist(), end), h * a, h * b)
    return heun_tableau(sigmas, start, end)


def _final_step(sigmas: np.ndarray, start: int) -> Tableau:
    """From entry `start` down to entry 0, if it is not there, and the guess from there."""
    if start == 0:
        return euler_tableau(0)
    way = tableau_between(sigmas, start, 0)
    stages = len(way.stages)
    on_eps = np.zeros((stages + 1, stages + 1))
    on_eps[:stages, :stages], on_eps[stages, :stages] = way.on_eps, way.result
    return Tableau((*way.stages, 0), on_eps, np.zeros(stages + 1))
