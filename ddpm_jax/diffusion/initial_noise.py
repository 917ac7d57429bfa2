"""How starting from N(0, I) biases brightness and color if the terminal SNR is not zero.

In training the network gets x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε; sampling starts from noise alone. The difference is small
in a single pixel, but the mean over all D values of an image averages the noise: its standard deviation is
sqrt((1 - ᾱ_t) / D), while the mean brightness m + σ z of the images, z ~ N(0, 1), keeps its factor sqrt(ᾱ_t). A perfect
network interprets the mean of the noise, u sqrt((1 - ᾱ_t) / D) with u ~ N(0, 1), as the brightness of an image. For
Gaussian data the probability flow then ends at the brightness

    m + σ (u - r m/σ) / sqrt(1 + r²),     r = σ sqrt(D) sqrt(ᾱ_t / (1 - ᾱ_t)).

So brightness moves toward mid-gray, 0 on the scale [-1, 1], by the fraction r / sqrt(1 + r²), and its standard deviation
shrinks by the factor sqrt(1 + r²). Both effects grow with the image size. A stochastic sampler depends less on its initial
noise: ancestral sampling in many steps samples p(x_0 | x_t), and the fraction is the square of that. Lin et al. 2305.08891
describe the effect.
"""

import numpy as np

from ddpm_jax.diffusion.schedules import NoiseSchedule

BRIGHTNESS_STD = 0.25  # σ of photographs, on the scale [-1, 1]: 32 of 255; flowers have 0.26


def pull_to_gray(schedule: NoiseSchedule, dimension: int, *, brightness_std: float = BRIGHTNESS_STD) -> float:
    """The fraction, 0..1, by which sampling with `schedule` from N(0, I) moves the mean brightness toward mid-gray.

    It is r / sqrt(1 + r²) above, for a perfect network and a deterministic sampler. The standard deviation of the brightness
    over the images is multiplied by sqrt(1 - fraction²).

    Args:
      schedule: the sampling chain, usually respaced; sampling starts at its last index.
      dimension: D, number of values of an image, H W C.
      brightness_std: σ, standard deviation over the images of their mean brightness, on the scale [-1, 1].
    """
    ratio = brightness_std * np.sqrt(dimension) / schedule.sqrt_recipm1_alphas_cumprod[-1]
    return float(ratio / np.sqrt(1 + ratio**2))
