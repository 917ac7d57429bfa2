"""Noise schedules: the variance of each step of the forward process, and all tables derived from it.

Each step of the forward process scales its input down and adds Gaussian noise,

    q(x_t | x_{t-1}) = N(sqrt(1 - β_t) x_{t-1}, β_t I)                              (1)   DDPM 2006.11239, eq. 2

so with α_t = 1 - β_t and ᾱ_t = α_0 α_1 ... α_t the marginal of any step is known in closed form,

    q(x_t | x_0) = N(sqrt(ᾱ_t) x_0, (1 - ᾱ_t) I)                                    (2)   DDPM eq. 4

and so is the posterior of a step given x_0, equation (3) of `posterior.py`.

The index t runs from 0 to T-1, one less than in the paper: t=0 already has one step of noise, and ᾱ_{-1} = 1.

Near t=0, computing 1 - ᾱ_t as a difference would lose four or five digits to cancellation in float64 (nearly all in
float32). It is the noise variance of t + 1 steps of (1), so it is accumulated from positive terms, at full precision:

    1 - ᾱ_t = α_t (1 - ᾱ_{t-1}) + β_t                                               (4)

A schedule may also be defined by a continuous ᾱ(u), u from 0 (image) to 1 (noise), from which

    β_t = min(1 - ᾱ((t+1)/T) / ᾱ(t/T), 0.999)                                       (5)   IDDPM 2102.09672, sec. 3.2

Tables are float64 NumPy; `noise_level.lookup` casts each once, where it is used.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import NoiseLevel, lookup
from ddpm_jax.diffusion.posterior import posterior_tables
from ddpm_jax.runtime import registry


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The tables of a chain of K steps: read-only float64 NumPy [K] unless noted.

    A pytree: a jitted function can close over it (tables become constants) or take it as an argument (tables become
    tracers of JAX's default float). Build one with `make_schedule`, `respace` or `schedule_from_betas`.
    """

    betas: np.ndarray  # β_t, in (0, 1]
    alphas: np.ndarray  # α_t = 1 - β_t
    alphas_cumprod: np.ndarray  # ᾱ_t
    alphas_cumprod_prev: np.ndarray  # ᾱ_{t-1}; 1 at t=0
    sqrt_alphas_cumprod: np.ndarray  # signal scale of (2)
    sqrt_one_minus_alphas_cumprod: np.ndarray  # noise scale of (2), without cancellation (4)
    sqrt_recip_alphas_cumprod: np.ndarray  # 1 / sqrt(ᾱ_t)
    sqrt_recipm1_alphas_cumprod: np.ndarray  # sqrt(1 / ᾱ_t - 1)
    posterior_variance: np.ndarray  # β̃_t of (3), as the next three in `posterior.py`
    posterior_log_variance_clipped: np.ndarray  # log β̃_t, finite at t=0
    posterior_mean_coef1: np.ndarray  # c1_t, coefficient of x_start
    posterior_mean_coef2: np.ndarray  # c2_t, coefficient of x_t
    timesteps: np.ndarray  # int32 [K], t in the training chain: 0..T-1 unless respaced
    train_timesteps: int  # T of the training chain

    @property
    def num_timesteps(self) -> int:
        """K, the number of steps of this chain."""
        return self.betas.shape[0]

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether ᾱ_{K-1} = 0: x_{K-1} is pure noise. False for a traced schedule, where it is unknown."""
        table = self.alphas_cumprod
        return not isinstance(table, jax.core.Tracer) and float(table[-1]) == 0

    def level(self, t: jax.Array) -> NoiseLevel:
        """The noise levels at t, integer [B], in JAX's default float; NaN for t outside 0..K-1.

        Raises:
          ValueError: t is not an integer array [B].
        """
        if jnp.ndim(t) != 1 or not jnp.issubdtype(jnp.result_type(t), jnp.integer):
            raise ValueError(f"t is {jnp.result_type(t)} of shape {jnp.shape(t)}: it must hold one integer for each image")
        return NoiseLevel(
            alpha=lookup(self.sqrt_alphas_cumprod, t),
            sigma=lookup(self.sqrt_one_minus_alphas_cumprod, t),
            time=jnp.asarray(self.timesteps)[t],
            recip_alpha=lookup(self.sqrt_recip_alphas_cumprod, t),
            sigma_over_alpha=lookup(self.sqrt_recipm1_alphas_cumprod, t),
        )


jax.tree_util.register_dataclass(
    NoiseSchedule,
    data_fields=[field.name for field in dataclasses.fields(NoiseSchedule) if field.name != "train_timesteps"],
    meta_fields=["train_timesteps"],
)


def make_schedule(name: str, num_timesteps: int, /, *, zero_terminal_snr: bool = False, **options: Any) -> NoiseSchedule:
    """The noise schedule called `name` with `num_timesteps` steps.

    Args:
      name: a key of SCHEDULES, or module:function for a function `(T, **options)` -> βs, float64 [T] in (0, 1).
      num_timesteps: T, at least 1.
      zero_terminal_snr: whether to rescale to zero terminal SNR, see `with_zero_terminal_snr`.
      options: options of the schedule, such as beta_start and beta_end of linear.

    Raises:
      ValueError: unknown name or option, T < 1 (or < 2 with zero_terminal_snr), or βs outside (0, 1).
    """
    num_timesteps = operator.index(num_timesteps)
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps is {num_timesteps}: a diffusion process has at least 1 step")
    made = registry.make(name, SCHEDULES, "schedule", num_timesteps, options=options)
    try:
        betas = np.asarray(made, np.float64)
    except (TypeError, ValueError) as error:  # made by a function of the user's own
        raise ValueError(
            f"the schedule {name} returns a {type(made).__name__}: [{num_timesteps}] numbers are required"
        ) from error
    if np.shape(betas) != (num_timesteps,):
        raise ValueError(
            f"the schedule {name} returns shape {np.shape(betas)}: [{num_timesteps}], one beta per step, is required"
        )
    schedule = schedule_from_betas(betas)
    return with_zero_terminal_snr(schedule) if zero_terminal_snr else schedule


def linear_betas(num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Equally spaced βs, times 1000/T so that the terminal SNR hardly depends on T. DDPM 2006.11239, section 4.

    Returns float64 [T]. Raises ValueError if a scaled β is outside (0, 1), as for T <= 20 at the default β_end.
    """
    scale = 1000 / num_timesteps
    if not 0 < beta_start <= beta_end:
        raise ValueError(f"a linear schedule needs 0 < beta_start <= beta_end, not {beta_start} and {beta_end}")
    if scale * beta_end >= 1:
        raise ValueError(
            f"a linear schedule of {num_timesteps} steps would need beta = {scale * beta_end:.4g}, but beta must be below 1: "
            f"set num_timesteps above {1000 * beta_end:.4g}, or schedule to cosine or sigmoid"
        )
    return np.linspace(scale * beta_start, scale * beta_end, num_timesteps, dtype=np.float64)


def cosine_betas(num_timesteps: int, *, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """ᾱ(u) = f(u) / f(0), f(u) = cos²(π/2 · (u + s) / (1 + s)), discretized by (5). IDDPM 2102.09672, eq. 17. float64 [T]."""

    _check_max_beta(max_beta)
    if not 0 <= s < math.inf:
        raise ValueError(f"s of a cosine schedule is {s}: it must be 0 or more")

    def alpha_bar(u):
        return (np.cos((u + s) / (1 + s) * np.pi / 2) / np.cos(s / (1 + s) * np.pi / 2)) ** 2

    return _betas_from_alpha_bar(alpha_bar, num_timesteps, max_beta)


def sigmoid_betas(
    num_timesteps: int, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> np.ndarray:
    """ᾱ(u) = (σ(end/τ) - σ(w/τ)) / (σ(end/τ) - σ(start/τ)), w = start + u (end - start), discretized by (5).

    The continuous-time sigmoid schedule of Jabri et al. 2212.11972 (RIN). float64 [T].
    """

    _check_max_beta(max_beta)
    if not (start < end and tau > 0):
        raise ValueError(f"a sigmoid schedule needs start < end and tau > 0, not {start}, {end} and {tau}")

    def sigmoid(w):
        return 1 / (1 + np.exp(-w / tau))

    def alpha_bar(u):
        return (sigmoid(end) - sigmoid(start + u * (end - start))) / (sigmoid(end) - sigmoid(start))

    return _betas_from_alpha_bar(alpha_bar, num_timesteps, max_beta)


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}


def schedule_from_betas(betas: Sequence[float] | np.ndarray) -> NoiseSchedule:
    """The chain with these βs, by equations (1) to (4). Use it for custom schedules.

    β = 1 (zero terminal SNR) is allowed: 1/sqrt(ᾱ) is then infinite, and the network must predict x_start or v.

    Args:
      betas: [K], each in (0, 1].

    Raises:
      ValueError: no βs, or a β outside (0, 1].
    """
    betas = np.array(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a list of at least one number, not an array of shape {betas.shape}")
    if not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"betas must be in (0, 1], got {betas.min():.4g} to {betas.max():.4g}")
    return _tables(betas, 1 - betas, np.arange(len(betas)), train_timesteps=len(betas))


def _tables(betas: np.ndarray, alphas: np.ndarray, timesteps: np.ndarray, train_timesteps: int) -> NoiseSchedule:
    """All tables from βs and αs. αs are given separately, since 1 - β loses digits for β near 1."""
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    one_minus = _cumulative_noise_variance(betas, alphas)
    posterior = posterior_tables(betas, alphas, alphas_cumprod_prev, one_minus)
    with np.errstate(divide="ignore"):  # ᾱ = 0 at zero terminal SNR
        sqrt_recip_alphas_cumprod = 1 / np.sqrt(alphas_cumprod)
        sqrt_recipm1_alphas_cumprod = np.sqrt(one_minus / alphas_cumprod)

    schedule = NoiseSchedule(
        betas=betas,
        alphas=alphas,
        alphas_cumprod=alphas_cumprod,
        alphas_cumprod_prev=alphas_cumprod_prev,
        sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(one_minus),
        sqrt_recip_alphas_cumprod=sqrt_recip_alphas_cumprod,
        sqrt_recipm1_alphas_cumprod=sqrt_recipm1_alphas_cumprod,
        posterior_variance=posterior.variance,
        posterior_log_variance_clipped=posterior.log_variance_clipped,
        posterior_mean_coef1=posterior.mean_coef1,
        posterior_mean_coef2=posterior.mean_coef2,
        timesteps=timesteps.astype(np.int32),
        train_timesteps=train_timesteps,
    )
    for table in jax.tree.leaves(schedule):
        table.setflags(write=False)
    return schedule


def with_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The same chain, rescaled to zero terminal SNR: ᾱ_{T-1} = 0. Lin et al. 2305.08891, algorithm 1.

    sqrt(ᾱ_t) is shifted so that the last becomes 0 and scaled so that the first is unchanged. Without it the initial noise of
    sampling differs from the last x_t of training (the linear chain's last sqrt(ᾱ) of .006 still reveals the mean
    brightness), which biases samples to medium brightness. Such a chain

    - needs the prediction v or x_start: x_{T-1} is pure noise, so eps does not determine the image;
    - must be sampled from its last timestep: spacing trailing or linspace;
    - needs a loss weighting that is not 0 at SNR = 0: `loss_weighting.trained_at_zero_snr`.

    `losses.check_loss`, `Parameterization.check_terminal_snr` and `respace` raise ValueError otherwise. A chain with zero
    terminal SNR is unchanged, up to rounding. On the host only.

    Raises:
      ValueError: a chain of a single step.
    """
    scales = schedule.sqrt_alphas_cumprod
    if len(scales) < 2:
        raise ValueError("a chain of 1 step cannot be rescaled to zero terminal SNR: set num_timesteps to 2 or more")
    scales = (scales - scales[-1]) * (scales[0] / (scales[0] - scales[-1]))
    alphas = np.square(scales / np.append(1.0, scales[:-1]))
    return _tables(1 - alphas, alphas, schedule.timesteps, schedule.train_timesteps)


def respace(schedule: NoiseSchedule, timesteps: Sequence[int] | np.ndarray, *, from_noise: bool = True) -> NoiseSchedule:
    """The shorter chain at the indices `timesteps` of `schedule`, with the same ᾱ at each. On the host only.

    Each of its steps merges all steps since the previous index, β' = 1 - ᾱ_t / ᾱ_prev (IDDPM 2102.09672, section 4),
    accumulated as in (4). Keeping every index gives bit-identical tables.

    Args:
      schedule: a chain of K steps.
      timesteps: integers in 0..K-1, strictly ascending, as from `spaced_timesteps`. They index `schedule`, and equal the
        network's t unless `schedule` was itself respaced.
      from_noise: whether sampling starts from pure noise; False for inversion and for noised images.

    Raises:
      ValueError: `timesteps` is empty, not strictly ascending or out of range; or omits the last index of a chain with zero
        terminal SNR, so that the initial noise would not match training.
    """
    indices = np.asarray(timesteps)
    num_timesteps = schedule.num_timesteps
    if indices.ndim != 1 or indices.size == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"timesteps must be a list of at least one integer, not {indices.dtype} of shape {indices.shape}")
    if indices.min() < 0 or indices.max() >= num_timesteps:
        raise ValueError(f"timesteps must be in 0..{num_timesteps - 1}, got {indices.min()} to {indices.max()}")
    if (indices[1:] <= indices[:-1]).any():
        raise ValueError("timesteps must be strictly ascending")
    if from_noise and schedule.has_zero_terminal_snr and indices[-1] != num_timesteps - 1:
        raise ValueError(
            f"a chain with zero terminal SNR must be sampled from its last timestep, {num_timesteps - 1}, not "
            f"{indices[-1]}: set spacing=trailing"
        )
    segments = [slice(start, end + 1) for start, end in zip([0, *(indices[:-1] + 1)], indices, strict=True)]
    alphas = np.array([np.prod(schedule.alphas[segment]) for segment in segments])
    betas = np.array(
        [_cumulative_noise_variance(schedule.betas[segment], schedule.alphas[segment])[-1] for segment in segments]
    )
    return _tables(betas, alphas, schedule.timesteps[indices], schedule.train_timesteps)


def _check_max_beta(max_beta: float) -> None:
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta is {max_beta}: it must be above 0 and below 1")


def _betas_from_alpha_bar(alpha_bar: Callable[[np.ndarray], np.ndarray], num_timesteps: int, max_beta: float) -> np.ndarray:
    """Equation (5): the βs of a continuous ᾱ(u), clipped to `max_beta`."""
    levels = alpha_bar(np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps)
    return np.minimum(1 - levels[1:] / levels[:-1], max_beta)


def _cumulative_noise_variance(betas: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Equation (4): the noise variance after each of these steps, starting from 0. float64 [K]."""
    variance, variances = 0.0, []
    for beta, alpha in zip(betas.tolist(), alphas.tolist(), strict=True):
        variance = alpha * variance + beta
        variances.append(variance)
    return np.array(variances)
