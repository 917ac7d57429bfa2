"""How a picture becomes an image of the size of the set: crop and resize.

- center: the largest centered part of the right proportions, resized once with an antialiased filter (`source.py`).
- adm: guided-diffusion's `center_crop_arr`, halved with a box filter while it is at least twice as large as the result,
  resized with a bicubic filter, then cropped in the center. Statistics and results published for ImageNet 64x64 to 512x512
  are of such images.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from ddpm_jax.data.source import (
    ImageSize,
    center_crop_and_resize,
    height_width,
    to_array,
    to_picture,
    without_alpha,
)


def adm_crop(image: np.ndarray, image_size: ImageSize, channels: int) -> np.ndarray:
    """Guided-diffusion's crop (2105.05233, `image_datasets.center_crop_arr`), for any proportions.

    Args and errors: as for `center_crop_and_resize`. For H = W the result is guided-diffusion's, of the same Pillow.
    """
    height, width = height_width(image_size)
    picture = to_picture(without_alpha(image, channels), channels)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return to_array(picture, channels)[top : top + height, left : left + width]


# name -> function of an image uint8 [h, w] or [h, w, C], the size and the channels of the result.
CROPS: dict[str, Callable[[np.ndarray, ImageSize, int], np.ndarray]] = {"center": center_crop_and_resize, "adm": adm_crop}
