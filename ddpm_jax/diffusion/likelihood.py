"""Terms of the variational bound in bits per dimension, each from one network output.

The likelihood of an image under a diffusion model is intractable; its lower bound is a sum of one term per step (DDPM
2006.11239, eq. 5). With t counted from 0, for an image x_0 and its noisy x_t,

    -log p(x_0) <= L_T + Σ_{t=1}^{T-1} L_t + L_0                                     (12)
    L_T = KL(q(x_{T-1} | x_0) ‖ N(0, I))                                             (13)
    L_t = KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t))                               (14)
    L_0 = -log P(x_0 | x_{t=0})                                                      (15)

each averaged over x_t. All but the last are divergences between two Gaussians,

    KL(N(μ1, σ1² I) ‖ N(μ2, σ2² I)) = ½ Σ_i [ log σ2² - log σ1² + σ1²/σ2² - 1 + (μ1_i - μ2_i)²/σ2² ]     (16)

In (14) both means contain the same c2_t x_t, so they differ by c1_t (x_0 - x̂_0). The term is computed from this
difference, without cancellation, and so is the error in ε, sqrt(ᾱ_t / (1 - ᾱ_t)) (x_0 - x̂_0).

(15) is a probability, not a density: images have 256 levels, k / 127.5 - 1, and the last Gaussian is discretized into as
many bins (DDPM eq. 13). With Φ the standard normal's distribution function, exact, and μ, σ of p at t=0,

    P(x) = Φ((x + 1/255 - μ)/σ) - Φ((x - 1/255 - μ)/σ),  at least 1e-12              (17)

where the bin of -1 extends to -∞ and that of 1 to ∞. improved-diffusion and guided-diffusion, and so most published
numbers, use an approximation of Φ, which is also available (`DECODERS`):

    Φ(z) ≈ ½ (1 + tanh(sqrt(2/π) (z + 0.044715 z³)))                                 (17b)

Dividing by the number of dimensions and by log 2 gives bits per dimension. (13) can be computed for any t: it measures how
much of the images remains.

In float32 each term is within 2e-5 bits of the same formula in float64 on the same inputs, or within a relative 2e-5 if it
is above one bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import gaussian
from ddpm_jax.diffusion.noise_level import check_shapes, extract, signal_to_noise
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule

Array = jax.Array

HALF_BIN = 1 / 255  # half the distance of neighboring levels: those of 8 bits are 2/255 apart
MIN_PROBABILITY = 1e-12  # of a level
DECODERS = ("exact", "tanh")  # the Φ of (17): the normal distribution function, or (17b)


class VlbTerms(NamedTuple):
    """Terms of the bound at one t for each image; arrays [B], or with leading axes.

    Attributes:
      bits: L_t of (14), or L_0 of (15) where t = 0, in bits per dimension.
      xstart_mse: mean over the image of (x_0 - x̂_0)², on the scale of [-1, 1].
      eps_mse: the same error, in ε.
    """

    bits: Array
    xstart_mse: Array
    eps_mse: Array


def normal_kl(mean1: Array | float, logvar1: Array | float, mean2: Array | float, logvar2: Array | float) -> Array:
    """KL(N(mean1, exp(logvar1)) ‖ N(mean2, exp(logvar2))) of each element, in nats; (16) without the sum.

    Arrays that broadcast, or plain numbers; logvar is the log of a variance, -inf for a point mass. Accurate also where the
    two nearly agree.
    """
    difference = logvar1 - logvar2
    return 0.5 * (jnp.expm1(difference) - difference + jnp.square(mean1 - mean2) * jnp.exp(-logvar2))


def discretized_gaussian_log_likelihood(
    x_start: Array, mean: Array, log_variance: Array, decoder: str = "exact", half_bin: float = HALF_BIN
) -> Array:
    """log P(x_start) of each pixel under a Gaussian discretized into bins, in nats; (17). DDPM 2006.11239, eq. 13.

    At the minimum, about 7 standard deviations from the mean, the gradient is 0.

    Args:
      x_start: floating [B, ...], levels k / 127.5 - 1.
      mean: [B, ...], mean of the Gaussian.
      log_variance: its log variance, of a shape that broadcasts.
      decoder: one of `DECODERS`.
      half_bin: half the width of a bin, 1 / (n - 1) for n levels from -1 to 1.

    Returns:
      [B, ...], from log 1e-12 to 0.

    Raises:
      ValueError: unknown decoder.
    """
    check_decoder(decoder)
    upper_tail = {"exact": _upper_tail, "tanh": _upper_tail_tanh}[decoder]
    inverse_std = jnp.exp(-0.5 * log_variance)
    offset = x_start - mean
    edge = 1 - half_bin / 4  # only the first and the last level are beyond it
    first, last = x_start < -edge, x_start > edge
    # By symmetry every bin is treated as above the mean: the difference of two small upper tails keeps its precision, while
    # that of two values of Φ near 1 would not.
    near = jnp.where(first, -offset, jnp.where(last, offset, jnp.abs(offset))) - half_bin
    beyond = jnp.where(first | last, 0.0, upper_tail((jnp.abs(offset) + half_bin) * inverse_std))
    return jnp.log(jnp.maximum(upper_tail(near * inverse_std) - beyond, MIN_PROBABILITY))


def check_decoder(decoder: str) -> None:
    """Raises ValueError unless it is one of `DECODERS`."""
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}: choose one of {', '.join(DECODERS)}")


def _upper_tail(z: Array) -> Array:
    """1 - Φ(z)."""
    return 0.5 * jax.scipy.special.erfc(z * 0.5**0.5)


def _upper_tail_tanh(z: Array) -> Array:
    """The same by (17b); the sigmoid ½ (1 - tanh u) = 1 / (1 + exp 2u) is accurate where it is small."""
    return jax.nn.sigmoid(-2 * (2 / jnp.pi) ** 0.5 * (z + 0.044715 * z * z * z))


def vb_terms(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    model_output: Array,
    x_start: Array,
    x_t: Array,
    t: Array,
    *,
    decoder: str = "exact",
    half_bin: float = HALF_BIN,
) -> VlbTerms:
    """The term of the bound at t for each image: (14), or (15) at t=0. DDPM 2006.11239, eqs. 5, 13.

    Args:
      schedule: the chain that t indexes.
      parameterization: what model_output means; the paper's numbers use a clipped x̂_0.
      model_output: [B, ...], the network's output at x_t; with a learned variance it has twice the channels.
      x_start: floating [B, ...], the images, levels k / 127.5 - 1.
      x_t: [B, ...], the noisy images.
      t: integer [B], 0..K-1; out of range gives NaN.
      decoder: Φ of L_0, one of `DECODERS`.
      half_bin: as for `discretized_gaussian_log_likelihood`.

    Returns:
      Arrays [B], at least float32.

    Raises:
      ValueError: unknown decoder, shapes that do not match, or a prediction incompatible with the schedule.
    """
    check_shapes(t, x_start=x_start, x_t=x_t)
    mean, log_variance, pred_xstart = gaussian.p_mean_variance(schedule, parameterization, model_output, x_t, t)
    error = x_start - pred_xstart
    true_log_variance = extract(schedule.posterior_log_variance_clipped, t, x_t)
    mean_difference = extract(schedule.posterior_mean_coef1, t, x_t) * error
    divergence = normal_kl(mean_difference, true_log_variance, 0.0, log_variance)
    decoder = -discretized_gaussian_log_likelihood(x_start, mean, log_variance, decoder, half_bin)
    xstart_mse = _mean(jnp.square(error))
    return VlbTerms(
        bits=jnp.where(t == 0, _mean(decoder), _mean(divergence)) / jnp.log(2.0),
        xstart_mse=xstart_mse,
        eps_mse=signal_to_noise(schedule.level(t), xstart_mse) * xstart_mse,
    )


def prior_bits_per_dim(schedule: NoiseSchedule, x_start: Array, t: Array) -> Array:
    """KL(q(x_t | x_0) ‖ N(0, I)) of (13) in bits per dimension, [B]. At t = T-1 it is L_T. DDPM eq. 5.

    Args:
      schedule: the chain that t indexes.
      x_start: floating [B, ...], the images, in [-1, 1].
      t: integer [B], 0..K-1; out of range gives NaN.

    Returns:
      At least float32; float64 where x_start is (under `jax.enable_x64`).

    Raises:
      ValueError: shapes do not match, or images are not floating.
    """
    mean, _, log_variance = gaussian.q_mean_variance(schedule, x_start, t)
    return _mean(normal_kl(mean, log_variance, 0.0, 0.0)) / jnp.log(2.0)


def _mean(values: Array) -> Array:
    """[B, ...] -> [B], the mean over each image."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))
