"""Ancestral sampling: draw x_{t-1} from the network's p(x_{t-1} | x_t), from t = T-1 down to 0. DDPM, algorithm 2."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import gaussian
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.samplers.guess import check_prediction, require_zero_eta
from ddpm_jax.samplers.sampler import DenoiseFn, Sampler, per_image_noise


def ancestral(
    schedule: NoiseSchedule,
    *,
    prediction: str,
    variance: str,
    clip_denoised: bool,
    eta: float = 0.0,
    trained: NoiseSchedule | None = None,
) -> Sampler:
    """Ho's sampler over `schedule`, which may be respaced to fewer steps (IDDPM 2102.09672, section 4).

    Args:
      schedule: the chain to walk.
      prediction: what the network predicts: eps, x_start or v.
      variance: of each step: a key of `diffusion.VARIANCES`.
      clip_denoised: whether each guess of x_start is clipped to [-1, 1].
      eta: must be 0; the noise of each step follows from `variance`.
      trained: not read.

    Raises:
      ValueError: eta is not 0, or a prediction that the schedule has no use for.
    """
    del trained
    require_zero_eta("ancestral", eta)
    check_prediction(schedule, prediction)

    def step(denoise_fn: DenoiseFn, x_t: jax.Array, memory: tuple, index: jax.Array, keys: jax.Array):
        t = jnp.full(x_t.shape[:1], index, jnp.int32)
        model_output = denoise_fn(x_t, jnp.asarray(schedule.timesteps)[t])
        noise = per_image_noise(keys, schedule.num_timesteps - index, x_t.shape[1:])
        x_prev, pred_xstart = gaussian.p_sample(
            schedule, model_output, x_t, t, noise, prediction=prediction, variance=variance, clip_denoised=clip_denoised
        )
        return x_prev, pred_xstart, memory

    return Sampler(schedule=schedule, step=step)
