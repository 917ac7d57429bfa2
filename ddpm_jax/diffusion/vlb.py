"""The variational bound of images: all terms, or an unbiased estimate from a few of them.

    bits/dim <= L_T + Σ_{t=1}^{T-1} L_t + L_0         (terms (13)-(15) in `likelihood.py`)

**All terms.** One x_t and one network evaluation for each t, as DDPM and Improved DDPM report it: an unbiased estimate of
the expectation over x_t, summed over all t. Terms of different t are independent, so `scan_vlb_terms` computes any range of
consecutive t, and the caller concatenates the ranges.

**Rate and distortion** (DDPM 2006.11239, section 4.3). Sending an image progressively costs L_T + ... + L_1, the rate, for
x_{t=0}, and L_0, the distortion, for the remainder. A receiver that has x_t can already show x̂_0(x_t). The rate so far
against the error of x̂_0 is the progressive-coding curve.

**A few terms.** With each t_i sampled with probability p(t_i),

    E[ 1/n Σ_i L_{t_i} / p(t_i) ] = Σ_{t>=1} L_t                                     (18)

for any p > 0; the variance is low if p is nearly proportional to the terms. For white Gaussian data of variance 1, the
exact network and the posterior variance, (14) is close to

    p(t) ∝ log(1 - ᾱ_t) - log(1 - ᾱ_{t-1})                                           (19)

(uniform in log SNR where the SNR is above 1); a tenth of uniform is mixed in to limit the weights. The t of an image are
stratified: one from each of m equal parts of p's mass. L_0, often half of the total, is a stratum of its own. Each stratum
is sampled twice, and the differences estimate the variance without bias,

    standard error² = Σ_images Σ_strata (a - b)² / N²                                (20)

where a and b are the contributions of the two samples to an image's estimate. It covers the randomness of t and x_t: the
deviation from the exact bound *of these images*, not from that of the population.

All noise comes from one key per image, usually fold_in(root, image index), so the terms of an image do not depend on its
batch. Sums over t and images are computed in float64 on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import gaussian, likelihood
from ddpm_jax.diffusion.likelihood import VlbTerms
from ddpm_jax.diffusion.noise_level import check_shapes
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule

Array = jax.Array

UNIFORM_FRACTION = 0.1  # of the mixture with (19)
LEVELS_PER_UNIT = 127.5  # 8-bit levels per unit on the scale [-1, 1]


def vlb_terms(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    denoise_fn: DenoiseFn,
    x_start: Array,
    t: Array,
    keys: Array,
    *,
    decoder: str = "exact",
    half_bin: float = likelihood.HALF_BIN,
) -> VlbTerms:
    """The term of the bound at t for each image, with fresh noise: arrays [B]. (14), (15).

    Args:
      schedule: the chain that t indexes; the network gets its `timesteps`.
      parameterization: what the network's output means.
      denoise_fn: (x_t [B, ...], t int32 [B]) -> model output.
      x_start: floating [B, ...], the images, levels k / 127.5 - 1.
      t: integer [B], 0..K-1; out of range gives NaN.
      keys: [B], one per image; the noise uses fold_in(key, t).
      decoder: Φ of L_0, one of `likelihood.DECODERS`.
      half_bin: half the distance of neighboring levels, as for `likelihood.discretized_gaussian_log_likelihood`.

    Raises:
      ValueError: unknown decoder, shapes that do not match, or a prediction incompatible with the schedule.
    """
    check_shapes(t, x_start=x_start)
    dtype = jnp.promote_types(x_start.dtype, jnp.float32)
    noise = jax.vmap(lambda key, t: jax.random.normal(jax.random.fold_in(key, t), x_start.shape[1:], dtype))(keys, t)
    x_t = gaussian.q_sample(schedule, x_start, t, noise)
    model_output = parameterization.evaluate(denoise_fn, x_t, schedule.level(t))
    return likelihood.vb_terms(schedule, parameterization, model_output, x_start, x_t, t, decoder=decoder, half_bin=half_bin)


def scan_vlb_terms(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    denoise_fn: DenoiseFn,
    x_start: Array,
    keys: Array,
    *,
    first_t: int | Array,
    count: int,
    decoder: str = "exact",
    half_bin: float = likelihood.HALF_BIN,
) -> VlbTerms:
    """The terms of t = first_t .. first_t + count - 1 under one `lax.scan`: arrays [count, B], in order of t.

    Other arguments and errors as in `vlb_terms`.

    Args:
      first_t: may be traced, so that one compilation serves all ranges. Terms past the end of the chain are NaN.
      count: number of t, static. With first_t=0 and count=K, row t holds the terms of t.
    """

    def body(_: None, t: Array) -> tuple[None, VlbTerms]:
        ts = jnp.full(x_start.shape[:1], t, jnp.int32)
        return None, vlb_terms(schedule, parameterization, denoise_fn, x_start, ts, keys, decoder=decoder, half_bin=half_bin)

    return jax.lax.scan(body, None, first_t + jnp.arange(count, dtype=jnp.int32))[1]


def prior_bpd(schedule: NoiseSchedule, x_start: Array) -> Array:
    """L_T of each image, [B], in bits per dimension. (13)."""
    last = jnp.full(x_start.shape[:1], schedule.num_timesteps - 1, jnp.int32)
    return likelihood.prior_bits_per_dim(schedule, x_start, last)


def bits_to_noise(schedule: NoiseSchedule, x_start: np.ndarray, t: np.ndarray) -> np.ndarray:
    """KL(q(x_t | x_0) ‖ N(0, I)) in bits per dimension: float64 [K, N] for t [K] and images [N, H, W, C] in [-1, 1]."""
    with jax.enable_x64(True):  # near T-1 it is a millionth of what it is at t=0
        x_start = jnp.asarray(x_start, jnp.float64)

        def at(step: Array) -> Array:
            return likelihood.prior_bits_per_dim(schedule, x_start, jnp.full(len(x_start), step, jnp.int32))

        return np.asarray(jax.lax.map(at, jnp.asarray(t, jnp.int32)))


def rate_distortion_curve(prior: np.ndarray, terms: VlbTerms) -> tuple[np.ndarray, np.ndarray]:
    """The progressive-coding curve of a set of images: rate and error after x_t was received, for t = 0..K-1.

    DDPM 2006.11239, figure 5; float64, on the host.

    Args:
      prior: [N], from `prior_bpd`, or its mean [].
      terms: arrays [K, N] whose row t holds the terms of t, or their means [K].

    Returns:
      rate [K]: bits per dimension sent so far, L_T and the terms of all noisier steps; decreasing in t.
      rmse [K]: root mean squared error of x̂_0(x_t), on the scale 0..255.
    """
    bits = _image_mean(terms.bits, 1)
    later = np.append(np.cumsum(bits[:0:-1])[::-1], 0.0)
    return _image_mean(prior, 0) + later, LEVELS_PER_UNIT * np.sqrt(_image_mean(terms.xstart_mse, 1))


def _image_mean(values: np.ndarray, first_axis: int) -> np.ndarray:
    """The mean over all axes from `first_axis` on, float64."""
    values = np.asarray(values)
    return np.mean(values, axis=tuple(range(first_axis, values.ndim)), dtype=np.float64)


# A few terms.


def timestep_proposal(schedule: NoiseSchedule) -> np.ndarray:
    """p(t) of (19), mixed with uniform: float64 [K], sums to 1, 0 at t=0. On the host only."""
    noise_variance = np.square(schedule.sqrt_one_minus_alphas_cumprod)
    steps = np.maximum(np.diff(np.log(noise_variance)), 0.0)  # rounding may make flat parts decrease
    probability = (1 - UNIFORM_FRACTION) * steps / max(steps.sum(), np.finfo(np.float64).tiny)
    return np.append(0.0, probability + UNIFORM_FRACTION / max(len(steps), 1))


def sample_timesteps(schedule: NoiseSchedule, keys: Array, num_strata: int) -> tuple[Array, Array]:
    """Timesteps for each image, and weights such that Σ weight · L_t is unbiased. (18).

    Rows 2s and 2s + 1 are the two samples of stratum s; stratum 0 is t=0, the others divide t = 1..K-1.

    Args:
      schedule: concrete, not traced.
      keys: [B], the keys of `vlb_terms`.
      num_strata: at least 2, or 1 for a chain of a single step. Each costs two network evaluations.

    Returns:
      t int32 [2 num_strata, B], and weights float32 of the same shape.

    Raises:
      ValueError: num_strata is too small.
    """
    num_timesteps, num_parts = schedule.num_timesteps, num_strata - 1
    if num_strata < 1 or (num_timesteps > 1) != (num_strata > 1):
        raise ValueError(f"a chain of {num_timesteps} steps cannot be estimated from {num_strata} strata: use 2 or more")
    first_t, first_weight = jnp.zeros((2, keys.shape[0]), jnp.int32), jnp.full((2, keys.shape[0]), 0.5)
    if not num_parts:
        return first_t, first_weight
    p = timestep_proposal(schedule)

    def one_image(key: Array) -> Array:
        within = jax.random.uniform(jax.random.fold_in(key, num_timesteps), (num_parts, 2))
        u = (jnp.arange(num_parts, dtype=jnp.float32)[:, None] + within) / num_parts
        # float32 rounding moves mass between neighbors, whose terms are nearly equal: a bias below 1e-6.
        t = jnp.searchsorted(jnp.asarray(np.cumsum(p), jnp.float32), u, side="right")
        return jnp.clip(t, 1, num_timesteps - 1).reshape(-1)

    t = jax.vmap(one_image)(keys).T.astype(jnp.int32)
    with np.errstate(divide="ignore"):  # p(0) is 0, and t=0 is never sampled
        weights = jnp.asarray(0.5 / (num_parts * p), jnp.float32)[t]
    return jnp.concatenate([first_t, t]), jnp.concatenate([first_weight, weights])


def scan_sampled_vlb_terms(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    denoise_fn: DenoiseFn,
    x_start: Array,
    t: Array,
    keys: Array,
    *,
    first_row: int | Array = 0,
    decoder: str = "exact",
    half_bin: float = likelihood.HALF_BIN,
) -> VlbTerms:
    """The terms at sampled t under one `lax.scan`: arrays [n, B]. Each row has independent noise.

    Other arguments and errors as in `vlb_terms`.

    Args:
      t: integer [n, B], all or consecutive rows of the result of `sample_timesteps`.
      first_row: index of the first of these rows; may be traced.
    """

    def body(_: None, row: tuple[Array, Array]) -> tuple[None, VlbTerms]:
        number, ts = row
        row_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, schedule.num_timesteps + 1 + number)
        return None, vlb_terms(
            schedule, parameterization, denoise_fn, x_start, ts, row_keys, decoder=decoder, half_bin=half_bin
        )

    rows = first_row + jnp.arange(t.shape[0], dtype=jnp.int32)
    return jax.lax.scan(body, None, (rows, t))[1]


def sampling_error(bits: np.ndarray, weights: np.ndarray) -> float:
    """The standard error (20) of the mean bound of N images from sampled terms, in bits per dimension. float64, on the host.

    Args:
      bits: [2 num_strata, N], from `scan_sampled_vlb_terms`.
      weights: [2 num_strata, N], from `sample_timesteps`.
    """
    contributions = np.asarray(bits, np.float64) * np.asarray(weights, np.float64)
    return float(np.sqrt(np.square(contributions[::2] - contributions[1::2]).sum())) / contributions.shape[1]
