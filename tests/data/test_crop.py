"""Crops: guided-diffusion's against its own code, and both for other proportions than a square."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.crop import CROPS, adm_crop
from ddpm_jax.data.source import center_crop_and_resize, height_width
from ddpm_jax.runtime.errors import InvalidArgumentError


def picture(height, width, channels=3):
    """A smooth picture: filters change noise to gray."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    waves = [np.sin(rows / (5 + k) + k) + np.cos(columns / (7 + k)) for k in range(channels)]
    return np.stack([127 + 60 * wave for wave in waves], axis=-1).astype(np.uint8)


def guided_diffusion_crop(pil_image, image_size):
    """`center_crop_arr` of github.com/openai/guided-diffusion, guided_diffusion/image_datasets.py, with Pillow's new names."""
    while min(*pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize(tuple(x // 2 for x in pil_image.size), resample=Image.Resampling.BOX)
    scale = image_size / min(*pil_image.size)
    pil_image = pil_image.resize(tuple(round(x * scale) for x in pil_image.size), resample=Image.Resampling.BICUBIC)
    arr = np.array(pil_image)
    crop_y = (arr.shape[0] - image_size) // 2
    crop_x = (arr.shape[1] - image_size) // 2
    return arr[crop_y : crop_y + image_size, crop_x : crop_x + image_size]


@pytest.mark.parametrize("shape", [(64, 64), (375, 500), (500, 333), (65, 131), (20, 30), (33, 32), (32, 32)])
def test_the_adm_crop_is_that_of_guided_diffusion(shape):
    image = picture(*shape)
    np.testing.assert_array_equal(adm_crop(image, 32, 3), guided_diffusion_crop(Image.fromarray(image), 32))


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(8, 16), (16, 8), (5, 31)])
def test_other_proportions_than_a_square(crop, size):
    for shape in ((40, 40), (100, 30), (30, 100), (16, 16), (3, 200)):
        for channels in (1, 3):
            image = CROPS[crop](picture(*shape), size, channels)
            assert image.shape == (*size, channels)
            assert image.dtype == np.uint8
    # The part of the right proportions is kept whole and in the center: a ramp stays a ramp, symmetric about its middle.
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))
    found = CROPS[crop](ramp, (8, 16), 1)[..., 0].astype(float)
    assert np.all(np.diff(found, axis=1) > 0)
    np.testing.assert_allclose(found + found[:, ::-1], 254, atol=1.5)
    if crop == "center":
        assert found[0, 0] < 16, "the ramp has the proportions of the result, so nothing may be cropped"


def test_the_crops_differ():
    image = picture(200, 300)
    assert np.abs(adm_crop(image, 24, 3).astype(int) - center_crop_and_resize(image, 24, 3)).max() > 1


def test_image_sizes():
    assert height_width(64) == height_width((64, 64)) == (64, 64)
    assert height_width([8, 16]) == (8, 16)
    for wrong in (0, -1, 2.5, "64", True, (8,), (8, 16, 3), (8, 0), (8, 2.0), ()):
        with pytest.raises(InvalidArgumentError, match="`image_size` is"):
            height_width(wrong)
