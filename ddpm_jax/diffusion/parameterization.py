"""What the network's output means: the prediction, an optional learned variance, and clipping.

Given x_t = α x_0 + σ ε (`noise_level.py`), any one of x_0, ε and

    v = α ε - σ x_0                                                                 (7)   2202.00512, sec. 4

determines the other two. For α² + σ² = 1, (7) and x_t are a rotation by the angle whose cosine is α, and rotating back gives

    x_0 = α x_t - σ v                        ε = σ x_t + α v                        (8)

while for any α and σ

    x_0 = x_t / α - (σ / α) ε                ε = (x_t - α x_0) / σ                  (9)   DDPM 2006.11239, eq. 9 ff.

To add a prediction, add an entry to PREDICTIONS; no other code depends on the prediction.

x_start, x_t, noise and the network's output are floating arrays [B, ...], images [B, H, W, C] in [-1, 1]; a level holds one
noise level per image. Arithmetic is in float32 (float64 for float64 inputs), whatever dtype the network computes in.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import variances
from ddpm_jax.diffusion.noise_level import NoiseLevel, check_level, expand

Array = jax.Array
DenoiseFn = Callable[[Array, Array], Array]  # (x_t [B, ...], t [B]) -> model output
PredictFn = Callable[[DenoiseFn, Array, NoiseLevel], Array]  # one evaluation: (denoise_fn, x_t, level) -> x̂_0


# Conversions between x_start, eps and v, given x_t. All arrays [B, ...].


def predict_xstart_from_eps(x_t: Array, level: NoiseLevel, eps: Array) -> Array:
    """x_0 from x_t and its noise; (9). Scales errors in eps by σ / α. Undefined for α = 0."""
    check_level(level, x_t=x_t, eps=eps)
    return expand(level.recip_alpha, x_t) * x_t - expand(level.sigma_over_alpha, x_t) * eps


def predict_eps_from_xstart(x_t: Array, level: NoiseLevel, x_start: Array) -> Array:
    """ε from x_t and its image; (9). Scales errors in x_start by α / σ."""
    check_level(level, x_t=x_t, x_start=x_start)
    return (x_t - expand(level.alpha, x_t) * x_start) / expand(level.sigma, x_t)


def predict_v(x_start: Array, level: NoiseLevel, noise: Array) -> Array:
    """v of an image and its noise. Salimans and Ho 2202.00512, section 4; (7)."""
    check_level(level, x_start=x_start, noise=noise)
    return expand(level.alpha, x_start) * noise - expand(level.sigma, x_start) * x_start


def predict_xstart_from_v(x_t: Array, level: NoiseLevel, v: Array) -> Array:
    """x_0 from x_t and its v, for α² + σ² = 1. 2202.00512, section 4; (8)."""
    check_level(level, x_t=x_t, v=v)
    return expand(level.alpha, x_t) * x_t - expand(level.sigma, x_t) * v


def predict_eps_from_v(x_t: Array, level: NoiseLevel, v: Array) -> Array:
    """ε from x_t and its v, for α² + σ² = 1. 2202.00512, section 4; (8)."""
    check_level(level, x_t=x_t, v=v)
    return expand(level.sigma, x_t) * x_t + expand(level.alpha, x_t) * v


def _xstart_identity(x_t: Array, level: NoiseLevel, x_start: Array) -> Array:
    check_level(level, x_t=x_t, x_start=x_start)
    return x_start.astype(jnp.promote_types(x_start.dtype, jnp.float32))


class Prediction(NamedTuple):
    """A quantity that a network can be trained to predict.

    Attributes:
      target: (x_start, level, noise) -> what the network should output, [B, ...].
      pred_xstart: (x_t, level, output) -> x̂_0, [B, ...].
      velocity: (x, alpha, sigma, output) -> dx/dφ = α ε̂ - σ x̂_0 of the probability flow, with α = cos φ and σ = sin φ
        shaped to multiply x; equation (26) of `evaluation/ode_likelihood.py`.
      error_scale: SNR -> the squared error in the output per squared error in x_start; (23) of `loss_weighting.py`.
      at_zero_snr: whether the output determines x_start at α = 0.
    """

    target: Callable[[Array, NoiseLevel, Array], Array]
    pred_xstart: Callable[[Array, NoiseLevel, Array], Array]
    velocity: Callable[[Array, Array, Array, Array], Array]
    error_scale: Callable[[Array], Array]
    at_zero_snr: bool


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(
        target=lambda x_start, level, noise: noise,
        pred_xstart=predict_xstart_from_eps,
        velocity=lambda x, alpha, sigma, output: (output - sigma * x) / alpha,
        error_scale=lambda snr: snr,
        at_zero_snr=False,
    ),
    "x_start": Prediction(
        target=lambda x_start, level, noise: x_start,
        pred_xstart=_xstart_identity,
        velocity=lambda x, alpha, sigma, output: (alpha * x - output) / sigma,
        error_scale=jnp.ones_like,
        at_zero_snr=True,
    ),
    "v": Prediction(
        target=predict_v,
        pred_xstart=predict_xstart_from_v,
        velocity=lambda x, alpha, sigma, output: output,
        error_scale=lambda snr: snr + 1.0,
        at_zero_snr=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Parameterization:
    """How to scale the network's input and interpret its output.

    Attributes:
      prediction: what the network predicts, a key of PREDICTIONS.
      variance: variance of the reverse step, a key of `variances.VARIANCES`. A learned one doubles the output's channels.
      clip_denoised: whether pred_xstart is clipped to [-1, 1].
      time_scale: factor on t as input of the network: 1000 / T for a chain of T steps, since time embeddings are designed for
        0..1000.

    Raises:
      ValueError: unknown prediction or variance.
    """

    prediction: str
    variance: str
    clip_denoised: bool
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {self.prediction!r}: choose one of {', '.join(PREDICTIONS)}")
        variances.check_variance(self.variance)

    @property
    def learns_variance(self) -> bool:
        """Whether the output also contains a variance, and so has twice the channels of the image."""
        return variances.VARIANCES[self.variance].learned

    def check_terminal_snr(self, *, zero: bool) -> None:
        """Raise ValueError if the chain has zero terminal SNR and the prediction does not determine x_0 there.

        Args:
          zero: `NoiseSchedule.has_zero_terminal_snr` of the chain.
        """
        if zero and not PREDICTIONS[self.prediction].at_zero_snr:
            usable = " or ".join(name for name, prediction in PREDICTIONS.items() if prediction.at_zero_snr)
            raise ValueError(f"a chain with zero terminal SNR needs the prediction {usable}, not {self.prediction}")

    # Input.

    def scale_input(self, x_t: Array, level: NoiseLevel) -> Array:
        """The network's input for x_t [B, ...]: x_t itself, which has unit variance at every level."""
        del level
        return x_t

    def network_time(self, t: Array) -> Array:
        """The network's time input for t of any shape; t itself, with its dtype, if time_scale is 1."""
        return t if self.time_scale == 1 else t * self.time_scale

    def evaluate(self, denoise_fn: DenoiseFn, x_t: Array, level: NoiseLevel) -> Array:
        """The output of the network at x_t [B, ...]: one evaluation."""
        return denoise_fn(self.scale_input(x_t, level), level.time)

    # Output.

    def target(self, x_start: Array, level: NoiseLevel, noise: Array) -> Array:
        """The training target for x_t = α x_start + σ noise: [B, ...]."""
        return PREDICTIONS[self.prediction].target(x_start, level, noise)

    def split_output(self, model_output: Array, x_t: Array) -> tuple[Array, Array | None]:
        """Split the network's output into prediction [B, ...] and variance_output [B, ...], None if it is not learned.

        With a learned variance model_output has twice the channels of x_t: first those of the prediction, then those of the
        variance. IDDPM 2102.09672, section 3.1.

        Raises:
          ValueError: the number of channels does not match the variance.
        """
        if not self.learns_variance:
            return model_output, None
        shape = jnp.shape(x_t)
        if jnp.ndim(x_t) < 2 or jnp.shape(model_output) != (*shape[:-1], 2 * shape[-1]):
            raise ValueError(
                f"model_output has shape {jnp.shape(model_output)} and x_t {shape}: "
                f"for the variance {self.variance} it must have twice the channels of x_t"
            )
        return model_output[..., : shape[-1]], model_output[..., shape[-1] :]

    def predict_x0(self, model_output: Array, x_t: Array, level: NoiseLevel) -> Array:
        """pred_xstart [B, ...], the estimate of x_0, clipped if `clip_denoised`; (8) or (9).

        Args:
          model_output: [B, ...], the network's output at x_t; with a learned variance it has twice the channels.
          x_t: [B, ...], the noisy images.
          level: their noise levels.

        Raises:
          ValueError: shapes do not match.
        """
        output, _ = self.split_output(model_output, x_t)
        pred_xstart = PREDICTIONS[self.prediction].pred_xstart(x_t, level, output)
        return jnp.clip(pred_xstart, -1.0, 1.0) if self.clip_denoised else pred_xstart

    def denoise(self, denoise_fn: DenoiseFn, x_t: Array, level: NoiseLevel) -> Array:
        """pred_xstart [B, ...] from one network evaluation: the `predict_x0` of the samplers."""
        return self.predict_x0(self.evaluate(denoise_fn, x_t, level), x_t, level)

    def error_scale(self, snr: Array) -> Array:
        """The squared error in the prediction per squared error in x_start, in snr's shape; (23)."""
        return PREDICTIONS[self.prediction].error_scale(snr)

    def velocity(self, model_output: Array, x: Array, level: NoiseLevel) -> Array:
        """dx/dφ of the probability flow at x [B, ...], in x's dtype and without clipping. For α² + σ² = 1, α = cos φ.

        2202.00512, section 4; equation (26) of `evaluation/ode_likelihood.py`.
        """
        output = self.split_output(model_output, x)[0].astype(x.dtype)
        return PREDICTIONS[self.prediction].velocity(x, expand(level.alpha, x), expand(level.sigma, x), output)
