"""What it does to brightness and color that sampling starts from N(0, I) where x_t still contains some of the image.

Training shows the network x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε. Sampling starts from noise alone. In a single pixel the
difference may not matter, but the mean over all D values of an image averages the noise: its standard deviation there
is sqrt((1 - ᾱ_t) / D), while the mean brightness m + σ z of the images, z ~ N(0, 1), keeps its factor sqrt(ᾱ_t). A
perfect network reads the mean of the noise, u sqrt((1 - ᾱ_t) / D) with u ~ N(0, 1), as the brightness of an image. For
Gaussian data the probability flow then leads to the brightness

    m + σ (u - r m/σ) / sqrt(1 + r²),     r = σ sqrt(D) sqrt(ᾱ_t / (1 - ᾱ_t)),

so that images are pulled toward mid-gray, 0 on the scale [-1, 1], by the share r / sqrt(1 + r²) of the way, and their
brightness varies by sqrt(1 + r²) less. Both grow with the size of the images. A sampler that adds noise forgets a part of
where it started: ancestral sampling in many steps draws from p(x_0 | x_t), and pulls by the square of that share. Lin et al.
2305.08891 describe the effect.
"""

import numpy as np

from ddpm_jax.diffusion.schedules import NoiseSchedule

BRIGHTNESS_STD = 0.25  # σ of photographs, on the scale [-1, 1]: 32 of 255; flowers have 0.26


def pull_to_gray(schedule: NoiseSchedule, dimension: int, *, brightness_std: float = BRIGHTNESS_STD) -> float:
    """The share, 0..1, of the way to mid-gray that sampling down `schedule` from N(0, I) takes the mean brightness.

    It is r / sqrt(1 + r²) above, for a perfect network and a sampler without noise. The spread of the brightness over the
    images becomes sqrt(1 - share²) of the data's.

    Args:
      schedule: the chain that is sampled, respaced; its last entry is where sampling starts.
      dimension: D, number of values of an image, H W C.
      brightness_std: σ, standard deviation over the images of their mean brightness, on the scale [-1, 1].
    """
    ratio = brightness_std * np.sqrt(dimension) / schedule.sqrt_recipm1_alphas_cumprod[-1]
    return float(ratio / np.sqrt(1 + ratio**2))
