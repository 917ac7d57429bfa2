"""DDIM: the same network, a chain of few steps, and as much or little noise as one likes. Song et al. 2010.02502.

    x_prev = sqrt(ᾱ_prev) x̂_0 + sqrt(1 - ᾱ_prev - σ²) ε̂ + σ z,    σ = η sqrt(β̃)                  (eqs. 12 and 16)

with β̃ the posterior variance of the respaced chain: η = 0 is deterministic, η = 1 is ancestral sampling with the
variance fixed_small.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import gaussian
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.guess import make_x0_predictor
from ddpm_jax.samplers.sampler import DenoiseFn, Sampler, per_image_noise


def ddim(
    schedule: NoiseSchedule,
    *,
    prediction: str,
    variance: str,
    clip_denoised: bool,
    eta: float = 0.0,
    trained: NoiseSchedule | None = None,
) -> Sampler:
    """DDIM over `schedule`, usually respaced to 10 .. 250 steps.

    Args:
      schedule: the chain to walk.
      prediction: what the network predicts: eps, x_start or v.
      variance: not read, but for the layout of the network's output; η stands in its place.
      clip_denoised: whether each guess of x_start is clipped to [-1, 1]; ε̂ is then derived from the clipped guess.
      eta: η >= 0.
      trained: not read.

    Raises:
      ValueError: eta < 0, or so large that σ² would exceed all the noise that x_prev holds; or a prediction that the
        schedule has no use for.
    """
    del trained
    guess = make_x0_predictor(schedule, prediction=prediction, variance=variance, clip_denoised=clip_denoised)
    # float64 throughout; cast once, where a step reads them.
    sigma = eta * np.sqrt(schedule.posterior_variance)
    noise_variance_prev = np.append(0.0, np.square(schedule.sqrt_one_minus_alphas_cumprod[:-1]))
    direction_squared = noise_variance_prev - np.square(sigma)
    if eta < 0 or (direction_squared < -1e-12).any():
        raise ValueError(f"eta is {eta}, out of ddim's range: set it from 0 (deterministic) to 1 (as ancestral sampling)")
    direction = np.sqrt(np.maximum(direction_squared, 0.0))
    signal = np.sqrt(schedule.alphas_cumprod_prev)

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, memory: tuple, index: jax.Array, keys: jax.Array):
        t = jnp.full(x_t.shape[:1], index, jnp.int32)
        pred_xstart = guess(denoise_fn, x_t, index)
        eps = gaussian.predict_eps_from_xstart(schedule, x_t, t, pred_xstart)
        x_prev = gaussian.extract(signal, t, x_t) * pred_xstart + gaussian.extract(direction, t, x_t) * eps
        if eta > 0:
            noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
            x_prev = x_prev + gaussian.extract(sigma, t, x_t) * noise
        return x_prev, pred_xstart, memory

    return Sampler(schedule=schedule, step=step)
