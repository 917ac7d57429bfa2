"""Ancestral sampling: sample x_{t-1} from the network's p(x_{t-1} | x_t), from t = T-1 down to 0. DDPM, algorithm 2."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import gaussian
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.sampler import Sampler, per_image_noise


def ancestral(schedule: NoiseSchedule, parameterization: Parameterization) -> Sampler:
    """Ho's sampler over `schedule`, which may be respaced to fewer steps (IDDPM 2102.09672, section 4).

    `parameterization` gives the variance of each step.
    """

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, carry: tuple, index: jax.Array, keys: jax.Array):
        t = jnp.full(x_t.shape[:1], index, jnp.int32)
        model_output = parameterization.evaluate(denoise_fn, x_t, schedule.level(t))
        noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
        x_prev, pred_xstart = gaussian.p_sample(schedule, parameterization, model_output, x_t, t, noise)
        return x_prev, pred_xstart, carry

    return Sampler(schedule=schedule, step=step)
