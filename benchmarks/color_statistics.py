"""Color statistics of a set of images: is one set brighter, more tinted, more saturated or flatter than another?

The statistics of generated images are compared with those of the training images. They are simple on purpose: each one
measures a fault that a viewer sees at once, and 64 images show it. A Fréchet distance needs thousands of images and does
not show in what two sets differ.

All values are on the scale of uint8, 0..255. The brightness of a pixel is the mean of its channels.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ddpm_jax.runtime.errors import InvalidDataError

FLAT_CONTRAST = 24.0  # an image whose contrast is lower is nearly flat; of 600 photographs of flowers at 32x32, 4% are
CHUNK = 256  # images converted to float64 at once


class ImageColors(NamedTuple):
    """Statistics of each image, float64; `color_statistics` summarizes them. Parts of a set can be concatenated.

    Attributes:
      channels: [N, C], mean of each channel over the pixels.
      contrast: [N], standard deviation of the brightness over the pixels.
      saturation: [N], mean over the pixels of the largest channel minus the smallest. 0 for gray.
    """

    channels: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray


@dataclasses.dataclass(frozen=True)
class ColorStatistics:
    """Statistics of a set of images, on the scale 0..255 except `count` and `flat`.

    Attributes:
      count: number of images.
      brightness: mean over all pixels and channels.
      brightness_spread: standard deviation, over the images, of an image's mean brightness.
      channels: mean of each channel: (R, G, B) or (gray,).
      cast: mean over the images of the largest channel mean of an image minus the smallest. 0 for gray images.
      largest_cast: the largest of these.
      contrast: mean over the images of the standard deviation of the brightness within an image.
      saturation: mean over all pixels of the largest channel minus the smallest.
      flat: fraction of images, 0..1, whose contrast is below FLAT_CONTRAST.
    """

    count: int
    brightness: float
    brightness_spread: float
    channels: tuple[float, ...]
    cast: float
    largest_cast: float
    contrast: float
    saturation: float
    flat: float

    @property
    def brightness_error(self) -> float:
        """Standard error of `brightness`, for independent images: brightness_spread / sqrt(count)."""
        return self.brightness_spread / self.count**0.5


def image_colors(images: np.ndarray) -> ImageColors:
    """Statistics of each image of uint8 [N, H, W, C], C = 1 or 3.

    Raises:
      ValueError: wrong shape or dtype.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}: they must be uint8 [N, H, W, 1 or 3]")
    parts = [_chunk_colors(images[first : first + CHUNK].astype(np.float64)) for first in range(0, len(images), CHUNK)]
    if not parts:
        return ImageColors(np.zeros((0, images.shape[-1])), np.zeros(0), np.zeros(0))
    return concatenate(parts)


def concatenate(parts: Iterable[ImageColors]) -> ImageColors:
    """The statistics of the images of all parts, in order."""
    return ImageColors(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def summarize(colors: ImageColors) -> ColorStatistics:
    """The statistics of a set of images from those of each image.

    Raises:
      InvalidDataError: no image.
    """
    count = len(colors.contrast)
    if not count:
        raise InvalidDataError("color statistics need at least one image")
    brightness, casts = colors.channels.mean(axis=1), np.ptp(colors.channels, axis=1)
    return ColorStatistics(
        count=count,
        brightness=float(brightness.mean()),
        brightness_spread=float(brightness.std()),
        channels=tuple(colors.channels.mean(axis=0).tolist()),
        cast=float(casts.mean()),
        largest_cast=float(casts.max()),
        contrast=float(colors.contrast.mean()),
        saturation=float(colors.saturation.mean()),
        flat=float((colors.contrast < FLAT_CONTRAST).mean()),
    )


def color_statistics(images: np.ndarray) -> ColorStatistics:
    """The statistics of a set of images, uint8 [N, H, W, C], C = 1 or 3.

    Raises:
      InvalidDataError: no image.
      ValueError: wrong shape or dtype.
    """
    return summarize(image_colors(images))


def _chunk_colors(images: np.ndarray) -> ImageColors:
    pixels = images.reshape(len(images), -1, images.shape[-1])
    return ImageColors(
        channels=pixels.mean(axis=1), contrast=pixels.mean(axis=2).std(axis=1), saturation=np.ptp(pixels, axis=2).mean(axis=1)
    )
