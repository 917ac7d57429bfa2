"""Runge-Kutta methods for the probability-flow ODE: several network evaluations per step, no carry.

With x̄ = x / sqrt(ᾱ) and σ = sqrt((1 - ᾱ) / ᾱ), a variance-preserving process becomes a variance-exploding one,

    x̄_t = x_0 + σ_t ε        and its probability-flow ODE is        dx̄ / dσ = ε̂(x̄, σ)                       (1)

(EDM 2206.00364, eq. 1 with their s(t) = 1; Song et al. 2011.13456, eq. 13). A step from σ_0 to σ_0 + h evaluates ε̂ in stages,

    ε_j = ε̂(x̄ + h Σ_{l<j} a_jl ε_l,  σ_0 + c_j h)        x̄_new = x̄ + h Σ_j b_j ε_j                          (2)

A network of T timesteps has T values of σ, so the c_j are not free: every stage is at a timestep of the training chain, and a
and b are computed for its actual c_j. The order of a step does not suffer from this rounding.

The coefficients are float64 tables with one row per step. An inner loop runs the stages of a step, as many as it has: the
network is compiled once, and a step of one stage costs one evaluation.
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
    """Butcher tableau of one step (2), multiplied by h.

    Attributes:
      stages: [S], indices of the training chain at which the network is evaluated; the first is the start of the step.
      a: [S, S], h a_jl.
      b: [S], h b_j. Unused in the last step, whose result is its last x̂_0.
    """

    stages: Sequence[int]
    a: np.ndarray
    b: np.ndarray


def require_finite_sigma(
    sampler: str, schedule: NoiseSchedule, instead: str = "set sampler to ddim, dpmpp_2m, dpmpp_2m_sde or unipc"
) -> None:
    """Raise ValueError if the chain starts at σ = sqrt(1/ᾱ - 1) = infinity, for solvers that step in σ."""
    if schedule.has_zero_terminal_snr:
        raise ValueError(
            f"{sampler} steps in sigma = sqrt(1 / alphas_cumprod - 1), which is infinite where a chain starts from pure noise "
            f"(zero terminal SNR): {instead}"
        )


def runge_kutta(
    schedule: NoiseSchedule,
    trained: NoiseSchedule,
    predict_x0: PredictFn,
    tableaus: Sequence[Tableau],
    churn_noise: float = 1.0,
) -> Sampler:
    """The sampler with these steps.

    Args:
      schedule: the sampling chain, K indices of `trained`.
      trained: the chain that stages index.
      predict_x0: `Parameterization.denoise`.
      tableaus: K of them; tableau k is the step from index k. If its first stage is noisier than index k, noise is added first:
        EDM's churn.
      churn_noise: factor on that noise, EDM's S_noise.
    """
    start = schedule_indices(schedule, trained)
    sigmas, alphas = trained.sqrt_recipm1_alphas_cumprod, trained.sqrt_alphas_cumprod
    most = max(len(tableau.stages) for tableau in tableaus)
    counts = np.array([len(tableau.stages) for tableau in tableaus], np.int32)
    stages = np.zeros((len(tableaus), most), np.int32)
    stage_x, stage_eps = np.zeros((len(tableaus), most)), np.zeros((len(tableaus), most, most))
    result_x, result_eps = np.zeros(len(tableaus)), np.zeros((len(tableaus), most))
    churned_x, churned_noise = np.zeros(len(tableaus)), np.zeros(len(tableaus))
    for k, tableau in enumerate(tableaus):
        count, first = len(tableau.stages), tableau.stages[0]
        # The network's x has unit variance: a stage's x is its x̄ times sqrt(ᾱ).
        scale = alphas[list(tableau.stages)]
        stages[k, :count] = tableau.stages
        stage_x[k, :count] = scale / alphas[first]
        stage_eps[k, :count, :count] = scale[:, None] * tableau.a
        if k:
            result_x[k] = alphas[start[k - 1]] / alphas[first]
            result_eps[k, :count] = alphas[start[k - 1]] * tableau.b
        churned_x[k] = alphas[first] / alphas[start[k]]
        churned_noise[k] = churn_noise * alphas[first] * np.sqrt(max(0.0, sigmas[first] ** 2 - sigmas[start[k]] ** 2))
    has_churn = bool((stages[:, 0] != start).any())

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, carry: tuple, index: jax.Array, keys: jax.Array):
        row = jnp.full(x_t.shape[:1], index, jnp.int32)
        if has_churn:
            noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
            x_t = extract(churned_x, row, x_t) * x_t + extract(churned_noise, row, x_t) * noise

        def combine(coefficients: jax.Array, eps: jax.Array) -> jax.Array:
            return jnp.einsum("j,j...->...", coefficients.astype(eps.dtype), eps, precision="highest")

        def stage(j: jax.Array, results: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            eps, step_pred_xstart = results
            trained_index = jnp.asarray(stages)[index, j]
            x = jnp.asarray(stage_x, x_t.dtype)[index, j] * x_t + combine(jnp.asarray(stage_eps, x_t.dtype)[index, j], eps)
            level = trained.level(jnp.full(x.shape[:1], trained_index, jnp.int32))
            pred_xstart = predict_x0(denoise_fn, x, level)
            eps = eps.at[j].set(predict_eps_from_xstart(x, level, pred_xstart))
            # pred_xstart of a step is that of its first stage, but of its last stage in the last step, where it is the sample.
            return eps, jnp.where((j == 0) | (index == 0), pred_xstart, step_pred_xstart)

        # Missing eps have coefficient 0; x is a placeholder that is finite and has the right shape and sharding.
        eps, pred_xstart = jax.lax.fori_loop(0, jnp.asarray(counts)[index], stage, (jnp.stack([x_t] * most), x_t))
        x_prev = extract(result_x, row, x_t) * x_t + combine(jnp.asarray(result_eps, x_t.dtype)[index], eps)
        return jnp.where(index == 0, pred_xstart, x_prev), pred_xstart, carry

    return Sampler(schedule=schedule, step=step, extra_nfe=int(counts.sum()) - len(tableaus))


def schedule_indices(schedule: NoiseSchedule, trained: NoiseSchedule) -> np.ndarray:
    """The index in `trained` of each index of `schedule`: int [K].

    Raises:
      ValueError: `schedule` was not respaced from `trained`.
    """
    indices = np.searchsorted(trained.timesteps, schedule.timesteps)
    known = np.isin(schedule.timesteps, trained.timesteps).all()
    if not known or not np.allclose(trained.alphas_cumprod[indices], schedule.alphas_cumprod, rtol=1e-6, atol=0):
        raise ValueError("the schedule is not a respacing of the trained one: build it with respace(trained, timesteps)")
    return indices


def heun_tableau(sigmas: np.ndarray, start: int, end: int) -> Tableau:
    """Heun's step from index `start` to `end`: order 2, two stages."""
    h = sigmas[end] - sigmas[start]
    return Tableau((start, end), np.array([[0.0, 0.0], [h, 0.0]]), np.array([h / 2, h / 2]))


def euler_tableau(start: int) -> Tableau:
    """Euler's step from index `start` to σ = 0, whose result is x̂_0: one stage."""
    return Tableau((start,), np.zeros((1, 1)), np.zeros(1))


def third_order_coefficients(c: float) -> tuple[np.ndarray, np.ndarray]:
    """(a [3, 3], b [3]) of the method of order 3 with stages at 0, c and 1; Kutta's for c = 1/2. Singular for c = 2/3.

    The conditions Σ b_j c_j^n = 1/(n+1), n = 0, 1, 2, give b, and b_3 a_32 c_2 = 1/6 gives a.
    """
    b2 = 1 / (6 * c * (1 - c))
    b3 = 1 / 2 - b2 * c
    a32 = 1 / (6 * b3 * c)
    return np.array([[0, 0, 0], [c, 0, 0], [1 - a32, a32, 0]]), np.array([1 - b2 - b3, b2, b3])


def fourth_order_coefficients(c2: float, c3: float) -> tuple[np.ndarray, np.ndarray]:
    """(a [4, 4], b [4]) of the method of order 4 with stages at 0, c2, c3 and 1; Kutta's 3/8 rule for 1/3 and 2/3.

    Σ b_j c_j^n = 1/(n+1), n = 0 .. 3, gives b. The conditions on Σ_jl b_j c_j^m a_jl c_l^n for trees of height 3 and 4 give
    a: with b_j (1 - c_j) = Σ_i b_i a_ij (Butcher's D(1)), a_43 from j = 3 and the rest from it. Singular for c2 = 1/2.
    """
    b = np.linalg.solve(np.vander([0.0, c2, c3, 1.0], increasing=True).T, [1, 1 / 2, 1 / 3, 1 / 4])
    a43 = b[2] * (1 - c3) / b[3]
    a32 = 1 / (24 * b[3] * a43 * c2)  # b_4 a_43 a_32 c_2 = 1/24
    a42 = (b[1] * (1 - c2) - b[2] * a32) / b[3]
    a = np.array([[0, 0, 0, 0], [c2, 0, 0, 0], [c3 - a32, a32, 0, 0], [1 - a42 - a43, a42, a43, 0]])
    return a, b
