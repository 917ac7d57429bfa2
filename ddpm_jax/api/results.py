"""What the methods of `ddpm_jax.Run` return."""

from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.diffusion import parameterization
from ddpm_jax.diffusion.noise_level import NoiseLevel


class Samples(NamedTuple):
    """Images of a call; NumPy.

    Attributes:
      images: uint8 [N, H, W, C], levels 0..255, or of the data's type and range; [N, V, H, W, C] with V samples of each input
        image.
      labels: int32 [N], the class of each image; the number of classes is the label of no class. None without classes.
    """

    images: np.ndarray
    labels: np.ndarray | None


class Trajectory(NamedTuple):
    """Images and the steps in which they were generated; NumPy.

    Attributes:
      images: uint8 [N, H, W, C], the results.
      labels: int32 [N], or None without classes.
      steps: int [S], the numbers of the saved steps, 0..num_steps-1; step 0 starts from noise.
      timesteps: int [S], the t of each saved step, in 0..T-1 of the trained chain.
      x_t: float32 [N, S, H, W, C], x_t before each saved step.
      pred_xstart: float32 [N, S, H, W, C], the estimate of the image at each saved step.
    """

    images: np.ndarray
    labels: np.ndarray | None
    steps: np.ndarray
    timesteps: np.ndarray
    x_t: np.ndarray
    pred_xstart: np.ndarray


class Denoised(NamedTuple):
    """What the network estimates of x_t = alpha x_start + sigma eps; JAX arrays, float32 [B, H, W, C] each.

    Attributes:
      eps: the noise.
      x_start: the image in [-1, 1], clipped as the samplers do if `diffusion.clip_denoised`.
      v: alpha eps - sigma x_start (2202.00512). eps and v are those of the x_start before clipping.
    """

    eps: jax.Array
    x_start: jax.Array
    v: jax.Array


class BitsPerDim(NamedTuple):
    """The variational bound on the negative log likelihood of images, in bits per dimension.

    Attributes:
      mean: the mean over the images.
      standard_error: its standard error over the images; NaN for one image.
      per_image: float64 [N].
    """

    mean: float
    standard_error: float
    per_image: np.ndarray


def denoised(means: parameterization.Parameterization, output: jax.Array, x_t: jax.Array, level: NoiseLevel) -> Denoised:
    """All three estimates from the network's output at x_t, [B, H, W, C]; the predicted one without rounding."""
    prediction, _ = means.split_output(output, x_t)
    x_start = parameterization.PREDICTIONS[means.prediction].pred_xstart(x_t, level, prediction)
    eps = parameterization.predict_eps_from_xstart(x_t, level, x_start)
    found = {"eps": eps, "v": parameterization.predict_v(x_start, level, eps)} | {means.prediction: prediction}
    return Denoised(**found | {"x_start": means.predict_x0(output, x_t, level)})


def bits_per_dim(bits: np.ndarray) -> BitsPerDim:
    """Mean and standard error of the bits per dimension of each image, float64 [N]."""
    error = float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else float("nan")
    return BitsPerDim(float(bits.mean()), error, bits)
