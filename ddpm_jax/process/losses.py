"""Training losses, one number for each image.

The variational bound of the model (10) is a sum over t of Gaussian divergences, each a squared error between the true
and the predicted x_0 (or ε, or v: by (8) and (9) these errors differ only by a factor that depends on t). Leaving
out those factors gives the loss that DDPM trains with, for t drawn uniformly from 0..T-1,

    L_simple = E_{t, x_0, ε} ‖ε - ε_θ(x_t, t)‖²                                     (21)  DDPM 2006.11239, eq. 14

here as the mean over height, width and channels rather than the sum, as DDPM's own program computes it. A network
that predicts x_start or v has the same loss on that target, which weighs the timesteps differently: an error in
x_start counts ᾱ_t / (1 - ᾱ_t) times as much in ε, and one in v counts ᾱ_t times as much.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.process import diffusion
from ddpm_jax.process.schedules import NoiseSchedule

Array = jax.Array

# What the network predicts -> what it should have predicted, from (schedule, x_start, t, noise).
TARGETS: dict[str, Callable[[NoiseSchedule, Array, Array, Array], Array]] = {
    "eps": lambda schedule, x_start, t, noise: noise,
    "x_start": lambda schedule, x_start, t, noise: x_start,
    "v": diffusion.predict_v,
}


def _simple_loss(
    schedule: NoiseSchedule, model_output: Array, x_start: Array, x_t: Array, t: Array, noise: Array, *, prediction: str
) -> Array:
    """Mean squared error of the network's output; (21)."""
    target = TARGETS[prediction](schedule, x_start, t, noise)
    error = target.astype(jnp.float32) - model_output.astype(jnp.float32)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


LOSSES: dict[str, Callable[..., Array]] = {"simple": _simple_loss}


def training_losses(
    schedule: NoiseSchedule,
    model_output: Array,
    x_start: Array,
    x_t: Array,
    t: Array,
    noise: Array,
    *,
    prediction: str,
    loss: str = "simple",
) -> Array:
    """The loss of each image: float32 [B], whatever the dtype of the inputs.

    Args:
      schedule: the chain that t counts in.
      model_output: [B, ...], what the network made of x_t.
      x_start: [B, ...], the images, in [-1, 1].
      x_t: [B, ...], the noisy images, `q_sample(schedule, x_start, t, noise)`.
      t: integer [B], 0..K-1.
      noise: [B, ...], the noise in x_t.
      prediction: what the network predicts, a key of TARGETS: eps, x_start or v.
      loss: a key of LOSSES. simple: the mean squared error, DDPM eq. 14.

    Raises:
      ValueError: unknown prediction or loss, or shapes that do not match.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}")
    if prediction not in TARGETS:
        raise ValueError(f"unknown prediction {prediction!r}: choose one of {', '.join(TARGETS)}")
    diffusion.check_shapes(t, x_start=x_start, x_t=x_t, noise=noise, model_output=model_output)
    return LOSSES[loss](schedule, model_output, x_start, x_t, t, noise, prediction=prediction)
