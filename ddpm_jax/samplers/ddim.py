"""DDIM: sampling in few steps with an adjustable amount of noise. Song et al. 2010.02502.

    x_prev = sqrt(ᾱ_prev) x̂_0 + sqrt(1 - ᾱ_prev - σ²) ε̂ + σ z,    σ = η sqrt(β̃)                  (eqs. 12 and 16)

with β̃ the posterior variance of the respaced chain: η = 0 is deterministic, η = 1 is ancestral sampling with the
variance fixed_small.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.noise_level import extract
from ddpm_jax.diffusion.parameterization import DenoiseFn, PredictFn, predict_eps_from_xstart
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.sampler import Sampler, per_image_noise


def ddim(schedule: NoiseSchedule, predict_x0: PredictFn, *, eta: float = 0.0) -> Sampler:
    """DDIM over `schedule`, usually respaced to 10 .. 250 steps.

    Args:
      schedule: the sampling chain.
      predict_x0: `Parameterization.denoise`. If it clips, ε̂ is derived from the clipped x̂_0.
      eta: η >= 0.

    Raises:
      ValueError: eta < 0, or so large that σ² exceeds the noise variance of x_prev.
    """
    # float64; cast once, where a step uses them.
    sigma = eta * np.sqrt(schedule.posterior_variance)
    noise_variance_prev = np.append(0.0, np.square(schedule.sqrt_one_minus_alphas_cumprod[:-1]))
    direction_squared = noise_variance_prev - np.square(sigma)
    if eta < 0 or (direction_squared < -1e-12).any():
        raise ValueError(f"`eta` is {eta}, out of ddim's range: set it from 0 (deterministic) to 1 (ancestral sampling)")
    direction = np.sqrt(np.maximum(direction_squared, 0.0))
    alpha_prev = np.sqrt(schedule.alphas_cumprod_prev)

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, carry: tuple, index: jax.Array, keys: jax.Array):
        t = jnp.full(x_t.shape[:1], index, jnp.int32)
        level = schedule.level(t)
        pred_xstart = predict_x0(denoise_fn, x_t, level)
        eps = predict_eps_from_xstart(x_t, level, pred_xstart)
        x_prev = extract(alpha_prev, t, x_t) * pred_xstart + extract(direction, t, x_t) * eps
        if eta > 0:
            noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
            x_prev = x_prev + extract(sigma, t, x_t) * noise
        return x_prev, pred_xstart, carry

    return Sampler(schedule=schedule, step=step)
