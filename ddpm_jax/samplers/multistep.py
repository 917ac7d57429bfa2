"""Linear multistep samplers: one network evaluation per step, reusing x̂_0 of previous steps.

In terms of x̂_0, the probability-flow ODE is, with α = sqrt(ᾱ), σ = sqrt(1 - ᾱ), λ = log(α / σ),

    d(x / σ) = e^λ x̂_0(x, λ) dλ    hence    x_t = (σ_t / σ_s) x_s + σ_t ∫ e^λ x̂_0 dλ,  λ from λ_s to λ_t       (1)

(DPM-Solver++ 2211.01095, eq. 8). All methods here approximate x̂_0 by a polynomial through its latest values, so a step is a
linear combination whose coefficients depend only on the schedule,

    x_t = a x_s + b_0 x̂_0(s) + b_1 x̂_0(previous) + ... + c z                                                  (2)

and a method is a table of coefficients, computed once in float64. In the last step, to λ = infinity, all the weight of (1) is
on the newest x̂_0: it is the sample, so a lower order is exact there.

A polynomial in λ is accurate if steps have similar lengths in λ. In a step much longer than the previous one it would
amplify the last change by h/2h' and leave the range of images; in a step after a much longer one, such as the second step of
the cosine schedule, it would nearly ignore the last change. Such steps assume x̂_0 to be linear in α instead: bounded, and
exact for data N(m, I) (`alpha_linear_extrapolation`). The spacings in t end with a long step, unless they are trailing. The
step before it is the last of a sequence of growing steps, and does the same (`is_alpha_linear_step`).

A corrector repeats the step to x_t once x̂_0(x_t) is known, and the next step starts at the corrected x_t. It costs no
evaluation (UniPC 2302.04867, algorithm 1).
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
    """Coefficients of (2), float64; row k is the step that starts at index k of a chain of K.

    Attributes:
      x: [K], a of (2).
      x0: [K, P], b of (2), of x̂_0 at index k, k + 1 .. k + P - 1: the newest first.
      noise: [K], c of (2), or None for a deterministic method.
    """

    x: np.ndarray
    x0: np.ndarray
    noise: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """Coefficients of a corrector, float64; row k repeats the step to index k from the (corrected) x at index k + 1.

    Attributes:
      x: [K], of the predicted x: 1 without correction.
      previous_x: [K], of x at index k + 1.
      x0: [K, P + 1], of x̂_0 at index k, k + 1 .. k + P.
    """

    x: np.ndarray
    previous_x: np.ndarray
    x0: np.ndarray


def multistep(
    schedule: NoiseSchedule, predict_x0: PredictFn, coefficients: Coefficients, correction: Correction | None = None
) -> Sampler:
    """The sampler with steps (2) over `schedule`, with a corrector or None."""
    width = coefficients.x0.shape[1] if correction is None else correction.x0.shape[1]

    def init_carry(x: jax.Array):
        # Previous x̂_0 [B, P, ...], the newest first, and the x of the previous step. Missing x̂_0 have coefficient 0; x is a
        # placeholder that is finite and has the right shape and sharding.
        return jnp.stack([x] * (width - 1), axis=1) if width > 1 else x[:, None][:, :0], x

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, carry: tuple, index: jax.Array, keys: jax.Array):
        t = jnp.full(x_t.shape[:1], index, jnp.int32)
        previous_x0, previous_x = carry
        pred_xstart = predict_x0(denoise_fn, x_t, schedule.level(t))
        x0 = jnp.concatenate([pred_xstart[:, None], previous_x0], axis=1)

        def combine(table: np.ndarray) -> jax.Array:
            return sum(extract(table[:, i], t, x_t) * x0[:, i] for i in range(table.shape[1]))

        if correction is not None:
            corrected = extract(correction.x, t, x_t) * x_t + extract(correction.previous_x, t, x_t) * previous_x
            x_t = corrected + combine(correction.x0)
        x_prev = extract(coefficients.x, t, x_t) * x_t + combine(coefficients.x0)
        if coefficients.noise is not None:
            noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
            x_prev = x_prev + extract(coefficients.noise, t, x_t) * noise
        return x_prev, pred_xstart, (x0[:, :-1], x_t)

    return Sampler(schedule=schedule, step=step, init_carry=init_carry)


def log_signal_to_noise(schedule: NoiseSchedule) -> np.ndarray:
    """λ_k = log(sqrt(ᾱ_k) / sqrt(1 - ᾱ_k)), half the log SNR: float64 [K], descending; -inf where ᾱ = 0."""
    with np.errstate(divide="ignore"):
        return -np.log(schedule.sqrt_recipm1_alphas_cumprod)


MAX_STEP_RATIO = 2.0  # of the lengths of two steps in λ; above it, no polynomial in λ is used


def is_long_step(schedule: NoiseSchedule) -> np.ndarray:
    """Whether the step from index k is much longer than the previous one: bool [K]; False for the first and last step."""
    lengths = _lengths(schedule)
    return _pad_inner_steps(schedule, lengths[:-1] > MAX_STEP_RATIO * lengths[1:])


def is_uneven_step(schedule: NoiseSchedule) -> np.ndarray:
    """Whether the step from index k is much longer or shorter than the previous one: bool [K]; False for the first and last."""
    lengths = _lengths(schedule)
    return is_long_step(schedule) | _pad_inner_steps(schedule, lengths[1:] > MAX_STEP_RATIO * lengths[:-1])


def is_alpha_linear_step(schedule: NoiseSchedule) -> np.ndarray:
    """Whether the deterministic step from index k assumes x̂_0 to be linear in α: bool [K].

    Uneven steps do, and the step before a long one, since it is one of a sequence of growing steps, where h/2h' times the last
    change is too much.
    """
    return is_uneven_step(schedule) | _pad_inner_steps(schedule, is_long_step(schedule)[:-2])


def _lengths(schedule: NoiseSchedule) -> np.ndarray:
    """Lengths in λ of the steps from indices 1 .. K-1: float64 [K-1]; infinite for a step from zero SNR."""
    return -np.diff(log_signal_to_noise(schedule))


def _pad_inner_steps(schedule: NoiseSchedule, flags: np.ndarray) -> np.ndarray:
    """flags [K-2] of the steps from indices 1 .. K-2, padded with False for the last and the first step: bool [K]."""
    return np.concatenate([[False], flags, [False]])[: schedule.num_timesteps]


def alpha_linear_extrapolation(schedule: NoiseSchedule) -> np.ndarray:
    """r of D = x̂_0(k) + r (x̂_0(k) - x̂_0(k+1)), for a step from index k in which x̂_0 is linear in α: float64 [K].

    D is the mean of x̂_0 over the step with the weight of (1), d e^λ = d(α/σ). As ∫ α d(α/σ) = 1/σ,

        r = (a - α_k) / (α_k - α_{k+1}),     a = (1/σ_t - 1/σ_k) / (α_t/σ_t - α_k/σ_k),                       (3)

    which approaches h/2h' for short steps, and is at most (1 - α_k) / (α_k - α_{k+1}). It is 0 in the first and the last step.
    """
    alpha, sigma = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    mean = np.diff(1 / sigma) / np.diff(alpha / sigma)  # of the steps from indices 1 .. K-1
    inner = (mean[:-1] - alpha[1:-1]) / -np.diff(alpha[1:])
    return np.concatenate([[0.0], inner, [0.0]])[: len(alpha)]
