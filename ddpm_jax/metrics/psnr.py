"""Peak signal-to-noise ratio, 10 log10(255^2 / MSE), in dB: how close images are to given ones, pixel by pixel.

It rewards the mean of all plausible images, which is blurred. Samples of a generative model therefore often score below
bicubic interpolation or a regression network that users find worse (SR3 2104.07636).
"""

import numpy as np


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """The PSNR of each image in dB over all pixels and channels: float64 [N]; infinite for equal images.

    Args:
      images: uint8 [N, H, W, C].
      originals: uint8 of the same shape.

    Raises:
      ValueError: the shapes differ.
    """
    if images.shape != originals.shape:
        raise ValueError(f"images of shape {images.shape} and originals of shape {originals.shape}")
    error = images.astype(np.float64) - originals
    mse = np.mean(np.square(error), axis=tuple(range(1, error.ndim)))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / mse)
