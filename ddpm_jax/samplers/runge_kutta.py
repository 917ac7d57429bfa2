"""Runge-Kutta steps of the probability-flow ODE: several network evaluations in each step, none remembered.

With x̄ = x / sqrt(ᾱ) and σ = sqrt((1 - ᾱ) / ᾱ), a variance-preserving model is one that adds noise of standard deviation σ,

    x̄_t = x_0 + σ_t ε        and its probability-flow ODE is        dx̄ / dσ = ε̂(x̄, σ)                       (1)

(EDM 2206.00364, eq. 1 with their s(t) = 1; Song et al. 2011.13456, eq. 13). A step from σ_0 to σ_0 + h asks for ε̂ in stages,

    ε_j = ε̂(x̄ + h Σ_{l<j} a_jl ε_l,  σ_0 + c_j h)        x̄_new = x̄ + h Σ_j b_j ε_j                          (2)

A network of T timesteps knows T values of σ, so the c_j are not free: every stage stands at a timestep that the network
was trained on, and a and b are made for the c_j that these happen to have. So no step is less exact for the rounding.

The weights are tables in float64, one row a step. The stages of a step are run by an inner loop of as many turns as
that step has: the network is compiled once, and a step of one stage costs one evaluation.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.diffusion.parameterization import DenoiseFn, PredictFn, predict_eps_from_xstart
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.sampler import Sampler, per_image_noise


@dataclasses.dataclass(frozen=True, eq=False)
class Tableau:
    """One step (2) in σ, h being part of the weights.

    Attributes:
      stages: [S], the entries of the trained chain at which the network is asked, the first where the step sets out.
      on_eps: [S, S], row j: what stage j adds to x̄ of each ε_l, l < j.
      result: [S], what the step adds to x̄ of each ε_j. In the last step it is not read: that ends in its last guess.
    """

    stages: Sequence[int]
    on_eps: np.ndarray
    result: np.ndarray


def no_finite_sigma(
    sampler: str, schedule: NoiseSchedule, instead: str = "set sampler to ddim, dpmpp_2m, dpmpp_2m_sde or unipc"
) -> None:
    """Raise ValueError where the chain begins at σ = sqrt(1/ᾱ - 1) = infinity, for solvers that step in σ."""
    if schedule.has_zero_terminal_snr:
        raise ValueError(
            f"{sampler} steps in sigma = sqrt(1 / alphas_cumprod - 1), which is infinite where a chain starts from pure noise "
            f"(zero terminal SNR): {instead}"
        )


def runge_kutta(
    schedule: NoiseSchedule, trained: NoiseSchedule, predict_x0: PredictFn, steps: Sequence[Tableau], churn_noise: float = 1.0
) -> Sampler:
    """The sampler that takes these steps.

    Args:
      schedule: the chain to walk, K entries of `trained`.
      trained: the chain in which stages count.
      predict_x0: `Parameterization.denoise`.
      steps: K of them, step k sets out from entry k. Where its first stage is noisier than entry k, noise is added first:
        EDM's churn.
      churn_noise: factor on that noise, EDM's S_noise.
    """
    start = schedule_indices(schedule, trained)
    sigmas, signals = trained.sqrt_recipm1_alphas_cumprod, trained.sqrt_alphas_cumprod
    most = max(len(step.stages) for step in steps)
    counts = np.array([len(step.stages) for step in steps], np.int32)
    stages = np.zeros((len(steps), most), np.int32)
    on_x, on_eps = np.zeros((len(steps), most)), np.zeros((len(steps), most, most))
    result_on_x, result = np.zeros(len(steps)), np.zeros((len(steps), most))
    churned_x, churned_noise = np.zeros(len(steps)), np.zeros(len(steps))
    for k, step in enumerate(steps):
        count, first = len(step.stages), step.stages[0]
        # Back from x̄ to x of unit variance, which the network sees: a factor sqrt(ᾱ) of where a stage stands.
        scale = signals[list(step.stages)]
        stages[k, :count] = step.stages
        on_x[k, :count] = scale / signals[first]
        on_eps[k, :count, :count] = scale[:, None] * step.on_eps
        if k:
            result_on_x[k] = signals[start[k - 1]] / signals[first]
            result[k, :count] = signals[start[k - 1]] * step.result
        churned_x[k] = signals[first] / signals[start[k]]
        churned_noise[k] = churn_noise * signals[first] * np.sqrt(max(0.0, sigmas[first] ** 2 - sigmas[start[k]] ** 2))
    churns = bool((stages[:, 0] != start).any())

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, memory: tuple, index: jax.Array, keys: jax.Array):
        row = jnp.full(x_t.shape[:1], index, jnp.int32)
        if churns:
            noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
            x_t = extract(churned_x, row, x_t) * x_t + extract(churned_noise, row, x_t) * noise

        def weigh(weights: jax.Array, eps: jax.Array) -> jax.Array:
            return jnp.einsum("j,j...->...", weights.astype(eps.dtype), eps, precision="highest")

        def stage(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            eps, kept = carry
            entry = jnp.asarray(stages)[index, j]
            x = jnp.asarray(on_x, x_t.dtype)[index, j] * x_t + weigh(jnp.asarray(on_eps, x_t.dtype)[index, j], eps)
            level = trained.level(jnp.full(x.shape[:1], entry, jnp.int32))
            pred_xstart = predict_x0(denoise_fn, x, level)
            eps = eps.at[j].set(predict_eps_from_xstart(x, level, pred_xstart))
            # The first stage's guess is the step's; in the last step it is the last one's, which is the sample.
            return eps, jnp.where((j == 0) | (index == 0), pred_xstart, kept)

        # What no stage has filled yet has weight 0; x stands there, being finite and of the right shape and sharding.
        eps, pred_xstart = jax.lax.fori_loop(0, jnp.asarray(counts)[index], stage, (jnp.stack([x_t] * most), x_t))
        x_prev = extract(result_on_x, row, x_t) * x_t + weigh(jnp.asarray(result, x_t.dtype)[index], eps)
        return jnp.where(index == 0, pred_xstart, x_prev), pred_xstart, memory

    return Sampler(schedule=schedule, step=step, extra_nfe=int(counts.sum()) - len(steps))


def schedule_indices(schedule: NoiseSchedule, trained: NoiseSchedule) -> np.ndarray:
    """The entry of `trained` that each entry of `schedule` is: int [K].

    Raises:
      ValueError: `schedule` was not respaced from `trained`.
    """
    place = np.searchsorted(trained.timesteps, schedule.timesteps)
    known = np.isin(schedule.timesteps, trained.timesteps).all()
    if not known or not np.allclose(trained.alphas_cumprod[place], schedule.alphas_cumprod, rtol=1e-6, atol=0):
        raise ValueError("the schedule is not a respacing of the trained one: make it by respace(trained, timesteps)")
    return place


def heun_tableau(sigmas: np.ndarray, start: int, end: int) -> Tableau:
    """From entry `start` to `end`: to the end by Euler, and then with the mean of both slopes. Order 2, two stages."""
    h = sigmas[end] - sigmas[start]
    return Tableau((start, end), np.array([[0.0, 0.0], [h, 0.0]]), np.array([h / 2, h / 2]))


def euler_tableau(start: int) -> Tableau:
    """From entry `start` to the guess made there, which is Euler's step to σ = 0: one stage."""
    return Tableau((start,), np.zeros((1, 1)), np.zeros(1))


def third_order_coefficients(c: float) -> tuple[np.ndarray, np.ndarray]:
    """(a [3, 3], b [3]) of the method of order 3 whose stages stand at 0, c and 1; Kutta's for c = 1/2. Not for c = 2/3.

    The conditions Σ b_j c_j^n = 1/(n+1), n = 0, 1, 2, give b, and b_3 a_32 c_2 = 1/6 gives a.
    """
    b2 = 1 / (6 * c * (1 - c))
    b3 = 1 / 2 - b2 * c
    a32 = 1 / (6 * b3 * c)
    return np.array([[0, 0, 0], [c, 0, 0], [1 - a32, a32, 0]]), np.array([1 - b2 - b3, b2, b3])


def fourth_order_coefficients(c2: float, c3: float) -> tuple[np.ndarray, np.ndarray]:
    """(a [4, 4], b [4]) of the method of order 4 whose stages stand at 0, c2, c3 and 1; Kutta's 3/8 rule for 1/3 and 2/3.

    Σ b_j c_j^n = 1/(n+1), n = 0 .. 3, gives b. The conditions on Σ_jl b_j c_j^m a_jl c_l^n for trees of height 3 and 4 give
    a: with b_j (1 - c_j) = Σ_i b_i a_ij (Butcher's D(1)), a_43 from j = 3 and the rest from it. Not for c2 = 1/2.
    """
    b = np.linalg.solve(np.vander([0.0, c2, c3, 1.0], increasing=True).T, [1, 1 / 2, 1 / 3, 1 / 4])
    a43 = b[2] * (1 - c3) / b[3]
    a32 = 1 / (24 * b[3] * a43 * c2)  # b_4 a_43 a_32 c_2 = 1/24
    a42 = (b[1] * (1 - c2) - b[2] * a32) / b[3]
    a = np.array([[0, 0, 0, 0], [c2, 0, 0, 0], [c3 - a32, a32, 0, 0], [1 - a42 - a43, a42, a43, 0]])
    return a, b
