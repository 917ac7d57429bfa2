"""Noise schedules: how much noise each step of the forward process adds, and every table that follows from it.

The forward process is a Markov chain that shrinks its input a little and adds a little Gaussian noise,

    q(x_t | x_{t-1}) = N(sqrt(1 - β_t) x_{t-1}, β_t I)                              (1)   DDPM 2006.11239, eq. 2

Products of Gaussians are Gaussians, so with α_t = 1 - β_t and ᾱ_t = α_0 α_1 ... α_t any step is reached in one go,

    q(x_t | x_0) = N(sqrt(ᾱ_t) x_0, (1 - ᾱ_t) I)                                    (2)   DDPM eq. 4

and a step backwards is known in closed form once x_0 is,

    q(x_{t-1} | x_t, x_0) = N(c1_t x_0 + c2_t x_t, β̃_t I)                           (3)   DDPM eqs. 6, 7
    c1_t = β_t sqrt(ᾱ_{t-1}) / (1 - ᾱ_t)        c2_t = (1 - ᾱ_{t-1}) sqrt(α_t) / (1 - ᾱ_t)
    β̃_t = β_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t)

The index t runs from 0 to T-1, one less than in the paper: t=0 already holds one step of noise, and ᾱ_{-1} = 1.

Near t=0, 1 - ᾱ_t is the difference of two numbers close to one; even in float64 it would lose four or five digits
(in float32 nearly all of them). It is the noise variance after t steps of (1), so it is summed up as one instead,
out of positive terms only, and keeps its full precision:

    1 - ᾱ_t = α_t (1 - ᾱ_{t-1}) + β_t                                               (4)

A schedule may also be given as a continuous signal level ᾱ(u), u from 0 (image) to 1 (noise), from which

    β_t = min(1 - ᾱ((t+1)/T) / ᾱ(t/T), 0.999)                                       (5)   IDDPM 2102.09672, sec. 3.2

Tables are float64 NumPy and stay so: `noise_level.entries` casts each of them once, where it is used.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import NoiseLevel, entries


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The tables of one chain of K steps: read-only float64 NumPy [K], unless said otherwise.

    A pytree: it can be closed over by a jitted function (tables become constants) or passed to one (tables become
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
    posterior_variance: np.ndarray  # β̃_t of (3); 0 at t=0
    posterior_log_variance_clipped: np.ndarray  # log β̃_t; at t=0, where that is -inf, the value of t=1 (β_0 if K=1)
    posterior_mean_coef1: np.ndarray  # c1_t of (3), on x_start
    posterior_mean_coef2: np.ndarray  # c2_t of (3), on x_t
    timesteps: np.ndarray  # int32 [K], the t that the network was trained with: 0..T-1 unless respaced
    train_timesteps: int  # T of the chain that the network was trained on; a network sees t * 1000 / T

    @property
    def num_timesteps(self) -> int:
        """K, the number of steps of this chain."""
        return self.betas.shape[0]

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether ᾱ_{K-1} = 0, so that nothing of the image is left. Of a traced schedule it cannot be known: False."""
        table = self.alphas_cumprod
        return not isinstance(table, jax.core.Tracer) and float(table[-1]) == 0

    def level(self, t: jax.Array) -> NoiseLevel:
        """The noise levels of the entries t, integer [B], in JAX's default float; NaN for t outside 0..K-1.

        Raises:
          ValueError: t is not an integer array [B].
        """
        if jnp.ndim(t) != 1 or not jnp.issubdtype(jnp.result_type(t), jnp.integer):
            raise ValueError(f"t is {jnp.result_type(t)} of shape {jnp.shape(t)}: it must hold one integer for each image")
        return NoiseLevel(
            alpha=entries(self.sqrt_alphas_cumprod, t),
            sigma=entries(self.sqrt_one_minus_alphas_cumprod, t),
            time=jnp.asarray(self.timesteps)[t],
            recip_alpha=entries(self.sqrt_recip_alphas_cumprod, t),
            sigma_over_alpha=entries(self.sqrt_recipm1_alphas_cumprod, t),
        )


jax.tree_util.register_dataclass(
    NoiseSchedule,
    data_fields=[field.name for field in dataclasses.fields(NoiseSchedule) if field.name != "train_timesteps"],
    meta_fields=["train_timesteps"],
)


def make_schedule(
    name: str, num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """The noise schedule called `name` with `num_timesteps` steps.

    Args:
      name: a key of SCHEDULES: linear, cosine or sigmoid.
      num_timesteps: T, at least 1.
      beta_start: first β of the linear schedule at T=1000; the other schedules do not read it.
      beta_end: last β of the linear schedule at T=1000; likewise.
      zero_terminal_snr: whether it is rescaled to end in pure noise, see `with_zero_terminal_snr`.

    Raises:
      ValueError: unknown name, T < 1 (or < 2 with zero_terminal_snr), or a linear schedule whose βs leave (0, 1).
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    num_timesteps = operator.index(num_timesteps)
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps is {num_timesteps}: a diffusion process has at least 1 step")
    options = {"beta_start": beta_start, "beta_end": beta_end} if name == "linear" else {}
    schedule = schedule_from_betas(SCHEDULES[name](num_timesteps, **options))
    return with_zero_terminal_snr(schedule) if zero_terminal_snr else schedule


def linear_betas(num_timesteps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """βs in equal steps, times 1000/T so that a chain of any length ends in the same noise. DDPM 2006.11239, section 4.

    Returns float64 [T]. Raises ValueError where a scaled β leaves (0, 1), as it does for T <= 20 at the default β_end.
    """
    scale = 1000 / num_timesteps
    if not 0 < beta_start <= beta_end:
        raise ValueError(f"a linear schedule needs 0 < beta_start <= beta_end, not {beta_start} and {beta_end}")
    if scale * beta_end >= 1:
        raise ValueError(
            f"a linear schedule of {num_timesteps} steps would need beta = {scale * beta_end:.4g}, and beta must stay below 1: "
            f"set num_timesteps above {1000 * beta_end:.4g}, or schedule to cosine or sigmoid"
        )
    return np.linspace(scale * beta_start, scale * beta_end, num_timesteps, dtype=np.float64)


def cosine_betas(num_timesteps: int, *, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """ᾱ(u) = f(u) / f(0), f(u) = cos²(π/2 · (u + s) / (1 + s)), discretised by (5). IDDPM 2102.09672, eq. 17. float64 [T]."""

    def alpha_bar(u):
        return (np.cos((u + s) / (1 + s) * np.pi / 2) / np.cos(s / (1 + s) * np.pi / 2)) ** 2

    return _betas_from_alpha_bar(alpha_bar, num_timesteps, max_beta)


def sigmoid_betas(
    num_timesteps: int, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> np.ndarray:
    """ᾱ(u) = (σ(end/τ) - σ(w/τ)) / (σ(end/τ) - σ(start/τ)), w = start + u (end - start), discretised by (5).

    The sigmoid schedule of Jabri et al. 2212.11972 (RIN), which they define for continuous time. float64 [T].
    """

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
    """Every table of the chain with these βs, by equations (1) to (4). A chain of the user's own starts here.

    β = 1 (a step that leaves nothing of the image: zero terminal SNR) is allowed. There, 1/sqrt(ᾱ) is infinite, and
    the network must predict x_start or v.

    Args:
      betas: [K], each in (0, 1].

    Raises:
      ValueError: no βs, or a β outside (0, 1].
    """
    betas = np.array(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a list of at least one number, not an array of shape {betas.shape}")
    if not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"betas must lie in (0, 1], but go from {betas.min():.4g} to {betas.max():.4g}")
    return _tables(betas, 1 - betas, np.arange(len(betas)), train_timesteps=len(betas))


def _tables(betas: np.ndarray, alphas: np.ndarray, timesteps: np.ndarray, train_timesteps: int) -> NoiseSchedule:
    """Every table from βs and αs, given separately: where β is close to 1, 1 - β would lose the digits of α."""
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    one_minus = _cumulative_noise_variance(betas, alphas)
    one_minus_prev = np.append(0.0, one_minus[:-1])

    posterior_variance = betas * one_minus_prev / one_minus
    first = posterior_variance[1:2] if len(betas) > 1 else betas  # stands in at t=0, where β̃ is 0
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
        posterior_variance=posterior_variance,
        posterior_log_variance_clipped=np.log(np.append(first, posterior_variance[1:])),
        posterior_mean_coef1=betas * np.sqrt(alphas_cumprod_prev) / one_minus,
        posterior_mean_coef2=one_minus_prev * np.sqrt(alphas) / one_minus,
        timesteps=timesteps.astype(np.int32),
        train_timesteps=train_timesteps,
    )
    for table in jax.tree.leaves(schedule):
        table.setflags(write=False)
    return schedule


def with_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The same chain, rescaled to end in pure noise, as sampling begins: ᾱ_{T-1} = 0. Lin et al. 2305.08891, algorithm 1.

    sqrt(ᾱ_t) is shifted so that the last is 0 and scaled so that the first stays what it is. Otherwise sampling starts
    with a noise that training has never shown (a last sqrt(ᾱ) of .006 in the linear chain still tells the mean
    brightness), and images come out of medium brightness. Such a chain

    - needs the prediction v or x_start: x_{T-1} is the noise itself, and eps says nothing of the image;
    - must be sampled from its last timestep: spacing trailing, or linspace;
    - needs a loss weighting that is not 0 at SNR = 0: `weightings.trained_at_zero_snr`.

    `losses.check_loss`, `Parameterization.check_terminal_snr` and `respace` raise ValueError otherwise. A chain that
    already ends in pure noise stays as it is, up to rounding. On the host only.

    Raises:
      ValueError: a chain of a single step, which would be pure noise from the start.
    """
    scales = schedule.sqrt_alphas_cumprod
    if len(scales) < 2:
        raise ValueError("a chain of 1 step cannot be rescaled to zero terminal SNR: set num_timesteps to 2 or more")
    scales = (scales - scales[-1]) * (scales[0] / (scales[0] - scales[-1]))
    alphas = np.square(scales / np.append(1.0, scales[:-1]))
    return _tables(1 - alphas, alphas, schedule.timesteps, schedule.train_timesteps)


def respace(schedule: NoiseSchedule, timesteps: Sequence[int] | np.ndarray, *, from_noise: bool = True) -> NoiseSchedule:
    """The shorter chain that visits only the entries `timesteps` of `schedule`, with the same ᾱ at each. On the host only.

    One step of it does the work of all the steps since the entry kept before, β' = 1 - ᾱ_t / ᾱ_prev (IDDPM 2102.09672,
    section 4), summed up as in (4). Keeping every entry gives the same tables, to the last bit.

    Args:
      schedule: a chain of K steps.
      timesteps: integers in 0..K-1, strictly ascending; `spaced_timesteps` makes such a list. They count entries of
        `schedule`, which are the network's t unless `schedule` was itself respaced.
      from_noise: whether the chain will be walked from pure noise; False where an image stands at its end.

    Raises:
      ValueError: `timesteps` is empty, not ascending, repeats an entry or is out of range; or leaves out the last
        entry of a chain that ends in pure noise, so that sampling would start from a noise it was not trained for.
    """
    kept = np.asarray(timesteps)
    num_timesteps = schedule.num_timesteps
    if kept.ndim != 1 or kept.size == 0 or not np.issubdtype(kept.dtype, np.integer):
        raise ValueError(f"timesteps must be a list of at least one integer, not {kept.dtype} of shape {kept.shape}")
    if kept.min() < 0 or kept.max() >= num_timesteps:
        raise ValueError(f"timesteps must lie in 0..{num_timesteps - 1}, but go from {kept.min()} to {kept.max()}")
    if (kept[1:] <= kept[:-1]).any():
        raise ValueError("timesteps must be strictly ascending, each one once")
    if from_noise and schedule.has_zero_terminal_snr and kept[-1] != num_timesteps - 1:
        raise ValueError(
            f"a chain with zero terminal SNR must be sampled from its last timestep, {num_timesteps - 1}, and these end "
            f"at {kept[-1]}: set spacing=trailing"
        )
    stretches = [slice(start, end + 1) for start, end in zip([0, *(kept[:-1] + 1)], kept, strict=True)]
    alphas = np.array([np.prod(schedule.alphas[stretch]) for stretch in stretches])
    betas = np.array(
        [_cumulative_noise_variance(schedule.betas[stretch], schedule.alphas[stretch])[-1] for stretch in stretches]
    )
    return _tables(betas, alphas, schedule.timesteps[kept], schedule.train_timesteps)


def _betas_from_alpha_bar(alpha_bar: Callable[[np.ndarray], np.ndarray], num_timesteps: int, max_beta: float) -> np.ndarray:
    """Equation (5): the βs of a continuous signal level, none above `max_beta`."""
    levels = alpha_bar(np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps)
    return np.minimum(1 - levels[1:] / levels[:-1], max_beta)


def _cumulative_noise_variance(betas: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Equation (4): the noise variance after each of these steps, starting from none. float64 [K]."""
    variance, variances = 0.0, []
    for beta, alpha in zip(betas.tolist(), alphas.tolist(), strict=True):
        variance = alpha * variance + beta
        variances.append(variance)
    return np.array(variances)
