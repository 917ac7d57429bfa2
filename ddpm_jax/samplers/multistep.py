"""Linear multistep samplers: one network evaluation a step, and the guesses of the steps before it used again.

Written in the guess of x_start, the probability-flow ODE is, with α = sqrt(ᾱ), s = sqrt(1 - ᾱ), λ = log(α / s),

    d(x / s) = e^λ x̂_0(x, λ) dλ    hence    x_t = (s_t / s_s) x_s + s_t ∫ e^λ x̂_0 dλ,  λ from λ_s to λ_t       (1)

(DPM-Solver++ 2211.01095, eq. 8). Only x̂_0 is not known; every method here puts a polynomial through the guesses at
hand in its place, so that a step is a sum whose weights depend on the schedule alone,

    x_t = a x_s + b_0 x̂_0(t_s) + b_1 x̂_0(before that) + ... + c z                                             (2)

and a method is a table of those weights, made once in float64. The last step goes to λ = infinity, where all the weight
of (1) is on the newest guess: the sample is that guess, and the step of lower order is the exact one.

A polynomial in λ through the last guesses holds where steps are of about the same length in λ. Where they are not, it fails:
a step much longer than the one before it would add the last change h/2h' times more and throw the guess beyond every image;
a step after a much longer one, as the second one of the cosine schedule is, would add next to nothing of a change that is
still to come. Such steps take x̂_0 to be linear in α: a bounded line, and the exact one for data N(m, I) (`along_signal`).
The spacings by t end with a long step, unless they are trailing. The step before that one is the last of a row of growing
steps, and takes the same line (`steps_along_signal`).

A corrector may look back: once the network has seen x_t, the step that led there is taken again with this guess among
the others, and the improved x_t is where the next step sets out. That costs no evaluation (UniPC 2302.04867, algorithm 1).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.diffusion.parameterization import DenoiseFn, PredictFn
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.sampler import Sampler, per_image_noise


@dataclasses.dataclass(frozen=True, eq=False)
class Coefficients:
    """Row k of each table, float64, belongs to the step that sets out from entry k of a chain of K.

    Attributes:
      on_x: [K], a of (2).
      on_guesses: [K, P], b of (2), on the guess at entry k, k + 1 .. k + P - 1: the newest first.
      on_noise: [K], c of (2), or None for a method without noise.
    """

    on_x: np.ndarray
    on_guesses: np.ndarray
    on_noise: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """Row k, float64, takes the step to entry k again, from the (corrected) x at entry k + 1.

    Attributes:
      on_x: [K], on x as the predictor left it: 1 where nothing is corrected.
      on_before: [K], on x at entry k + 1.
      on_guesses: [K, P + 1], on the guess at entry k, k + 1 .. k + P.
    """

    on_x: np.ndarray
    on_before: np.ndarray
    on_guesses: np.ndarray


def multistep(
    schedule: NoiseSchedule, predict_x0: PredictFn, weights: Coefficients, correction: Correction | None = None
) -> Sampler:
    """The sampler that takes the steps (2).

    Args:
      schedule: the chain to walk.
      predict_x0: `Parameterization.denoise`.
      weights: of every step.
      correction: of every step, or None.
    """
    width = weights.on_guesses.shape[1] if correction is None else correction.on_guesses.shape[1]

    def init_carry(x: jax.Array):
        # Guesses [B, P, ...], the newest first, and the x that the last step set out from. What has not been guessed
        # yet has weight 0; x stands there, being finite and of the right shape and sharding.
        return jnp.stack([x] * (width - 1), axis=1) if width > 1 else x[:, None][:, :0], x

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, memory: tuple, index: jax.Array, keys: jax.Array):
        t = jnp.full(x_t.shape[:1], index, jnp.int32)
        before, x_before = memory
        pred_xstart = predict_x0(denoise_fn, x_t, schedule.level(t))
        guesses = jnp.concatenate([pred_xstart[:, None], before], axis=1)

        def weigh(table: np.ndarray) -> jax.Array:
            return sum(extract(table[:, i], t, x_t) * guesses[:, i] for i in range(table.shape[1]))

        if correction is not None:
            corrected = extract(correction.on_x, t, x_t) * x_t + extract(correction.on_before, t, x_t) * x_before
            x_t = corrected + weigh(correction.on_guesses)
        x_prev = extract(weights.on_x, t, x_t) * x_t + weigh(weights.on_guesses)
        if weights.on_noise is not None:
            noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
            x_prev = x_prev + extract(weights.on_noise, t, x_t) * noise
        return x_prev, pred_xstart, (guesses[:, :-1], x_t)

    return Sampler(schedule=schedule, step=step, init_carry=init_carry)


def log_signal_to_noise(schedule: NoiseSchedule) -> np.ndarray:
    """λ_k = log(sqrt(ᾱ_k) / sqrt(1 - ᾱ_k)) of each entry, half the log SNR: float64 [K], descending; -inf where ᾱ = 0."""
    with np.errstate(divide="ignore"):
        return -np.log(schedule.sqrt_recipm1_alphas_cumprod)


MAX_STEP_RATIO = 2.0  # ratio of the lengths of two steps, in λ, above which no polynomial in λ joins them


def long_steps(schedule: NoiseSchedule) -> np.ndarray:
    """Whether the step from entry k is much longer than the one before it: bool [K]. Not the first step, nor the last."""
    lengths = _lengths(schedule)
    return _of_inner_steps(schedule, lengths[:-1] > MAX_STEP_RATIO * lengths[1:])


def uneven_steps(schedule: NoiseSchedule) -> np.ndarray:
    """Whether the step from entry k is much longer or shorter than the one before it: bool [K]. Not the first, nor the last."""
    lengths = _lengths(schedule)
    return long_steps(schedule) | _of_inner_steps(schedule, lengths[1:] > MAX_STEP_RATIO * lengths[:-1])


def steps_along_signal(schedule: NoiseSchedule) -> np.ndarray:
    """Whether the step from entry k, without noise, takes x̂_0 to be linear in α: bool [K].

    Uneven steps do, and the step that leads to a long one: it is one of a row of steps that grow, where the last change, times
    h/2h', is too much already.
    """
    return uneven_steps(schedule) | _of_inner_steps(schedule, long_steps(schedule)[:-2])


def _lengths(schedule: NoiseSchedule) -> np.ndarray:
    """In λ, of the steps from entries 1 .. K-1: float64 [K-1]; the first step of a chain from pure noise is infinite."""
    return -np.diff(log_signal_to_noise(schedule))


def _of_inner_steps(schedule: NoiseSchedule, flags: np.ndarray) -> np.ndarray:
    """flags [K-2] of the steps from entries 1 .. K-2, and False for the last and the first: bool [K]."""
    return np.concatenate([[False], flags, [False]])[: schedule.num_timesteps]


def alpha_linear_extrapolation(schedule: NoiseSchedule) -> np.ndarray:
    """r of D = x̂_0(k) + r (x̂_0(k) - x̂_0(k+1)), for a step from entry k that takes x̂_0 to be linear in α: float64 [K].

    D is the mean of that line over the step, as (1) weighs it, by d e^λ = d(α/s). As ∫ α d(α/s) = 1/s,

        r = (a - α_k) / (α_k - α_{k+1}),     a = (1/s_t - 1/s_k) / (α_t/s_t - α_k/s_k),                       (3)

    which is h/2h' where steps are short, and at most (1 - α_k) / (α_k - α_{k+1}) where they are long. 0 in the first step,
    which has none before it, and in the last.
    """
    alpha, spread = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    mean = np.diff(1 / spread) / np.diff(alpha / spread)  # of the steps that set out from entries 1 .. K-1
    inner = (mean[:-1] - alpha[1:-1]) / -np.diff(alpha[1:])
    return np.concatenate([[0.0], inner, [0.0]])[: len(alpha)]
