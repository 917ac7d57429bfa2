"""The network's guess of x_start, as every sampler asks for it, and the questions that no sampler can answer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import gaussian
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.sampler import DenoiseFn

X0Predictor = Callable[[DenoiseFn, jax.Array, jax.Array], jax.Array]


def make_x0_predictor(schedule: NoiseSchedule, *, prediction: str, variance: str, clip_denoised: bool) -> X0Predictor:
    """(denoise_fn, x_t [B, H, W, C], index int32) -> x̂_0 [B, H, W, C], one evaluation of the network.

    Args:
      schedule: the chain whose entry `index` is where x_t stands.
      prediction: what the network predicts: eps, x_start or v.
      variance: a key of `diffusion.VARIANCES`; where it is learned, the second half of the network's channels is left out.
      clip_denoised: whether the guess is clipped to [-1, 1].

    Raises:
      ValueError: unknown prediction, or one that a chain that begins in pure noise (ᾱ = 0) cannot use.
    """
    check_prediction(schedule, prediction)

    def guess(denoise_fn: DenoiseFn, x_t: jax.Array, index: jax.Array) -> jax.Array:
        t = jnp.full(x_t.shape[:1], index, jnp.int32)
        model_output = denoise_fn(x_t, jnp.asarray(schedule.timesteps)[t])
        model_output, _ = gaussian.split_output(model_output, x_t, variance=variance)
        pred_xstart = gaussian.predict_xstart(schedule, model_output, x_t, t, prediction=prediction)
        return jnp.clip(pred_xstart, -1.0, 1.0) if clip_denoised else pred_xstart

    return guess


def check_prediction(schedule: NoiseSchedule, prediction: str) -> None:
    """Raise ValueError for an unknown prediction, or for eps where x_T holds nothing of the image."""
    if prediction not in gaussian.PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}: choose one of {', '.join(gaussian.PREDICTIONS)}")
    if prediction == "eps" and schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            "a chain that starts from pure noise (zero terminal SNR) needs a network of prediction v or x_start: at SNR 0 eps "
            "holds nothing of the image"
        )


def require_zero_eta(sampler: str, eta: float) -> None:
    """Raise ValueError unless eta is 0, which is DDIM's alone."""
    if eta != 0:
        raise ValueError(f"eta is {eta:g}, an option of ddim that {sampler} does not read: set eta=0, or sampler=ddim")


def require_finite_sigma(
    sampler: str, schedule: NoiseSchedule, instead: str = "set sampler to ddim, dpmpp_2m, dpmpp_2m_sde or unipc"
) -> None:
    """Raise ValueError where the chain begins at σ = sqrt(1/ᾱ - 1) = infinity, for solvers that step in σ."""
    if schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            f"{sampler} steps in sigma = sqrt(1 / alphas_cumprod - 1), which is infinite where a chain starts from pure noise "
            f"(zero terminal SNR): {instead}"
        )
