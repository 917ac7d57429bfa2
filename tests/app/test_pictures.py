"""Pictures of the page: uploads become data, shown pictures become the same data again, and brushes become masks."""

import numpy as np
import pytest

from ddpm_jax.app import pictures
from ddpm_jax.diffusion.pixels import UINT8, PixelFormat
from ddpm_jax.runtime.errors import InvalidArgumentError


@pytest.mark.parametrize("channels", [1, 3])
def test_an_enlarged_picture_is_read_back_exactly(channels):
    image = np.random.default_rng(0).integers(0, 256, (8, 6, channels), dtype=np.uint8)
    large = pictures.enlarge(image)
    assert large.shape == (384, 288, 3)
    np.testing.assert_array_equal(pictures.read_upload(large, image.shape, UINT8), image)
    opaque = np.concatenate([large, np.full((384, 288, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(pictures.read_upload(opaque, image.shape, UINT8), image)


def test_uploads_are_cropped_and_converted():
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the center, 40x40
    np.testing.assert_array_equal(pictures.read_upload(wide, (8, 8, 1), UINT8), np.full((8, 8, 1), 200))
    transparent = np.zeros((8, 8, 4), np.uint8)
    np.testing.assert_array_equal(pictures.read_upload(transparent, (8, 8, 1), UINT8), np.full((8, 8, 1), 255))
    floats = pictures.read_upload(wide, (8, 8, 1), PixelFormat("float32", 0.0, 2.0))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, np.full((8, 8, 1), 2 * 200 / 255), rtol=1e-6)
    with pytest.raises(InvalidArgumentError, match="the image is missing"):
        pictures.read_upload(None, (8, 8, 1), UINT8)
    with pytest.raises(InvalidArgumentError, match="4 channels"):
        pictures.read_upload(wide, (8, 8, 4), UINT8)


def test_a_pixel_is_masked_if_half_of_it_is_painted():
    layer = np.zeros((80, 80, 4), np.uint8)
    layer[:10, :10] = 255  # pixel (0, 0)
    layer[10:20, 10:16] = 255  # six tenths of (1, 1)
    layer[20:30, 20:24] = 255  # four tenths of (2, 2)
    more = np.zeros((80, 80, 4), np.uint8)
    more[70:, 70:] = 255
    mask = pictures.read_mask([layer, more], (8, 8))
    assert sorted(zip(*np.nonzero(mask), strict=True)) == [(0, 0), (1, 1), (7, 7)]
    for layers, match in (([], "no pixel"), (None, "no pixel"), ([np.full((80, 80, 4), 255, np.uint8)], "all pixels")):
        with pytest.raises(InvalidArgumentError, match=match):
            pictures.read_mask(layers, (8, 8))


def test_rows_have_one_image_per_column():
    rows = [np.zeros((3, 8, 8, 1), np.uint8), np.full((2, 8, 8, 1), 99, np.uint8)]
    plain, named = pictures.rows(rows), pictures.rows(rows, ["ddim", "dpmpp_2m_sde"])
    assert plain.shape == (8 * (2 * 10 + 2), 8 * (3 * 10 + 2), 3)
    assert named.shape[0] == plain.shape[0]
    np.testing.assert_array_equal(named[:, -plain.shape[1] :], plain)
