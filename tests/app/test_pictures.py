"""Pictures of the page: data enlarged for display, and brushes become masks."""

import numpy as np
import pytest

from ddpm_jax.app import pictures
from ddpm_jax.runtime.errors import InvalidArgumentError


def test_pictures_are_enlarged_in_blocks():
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 1), dtype=np.uint8)
    large = pictures.enlarge(image)
    assert large.shape == (384, 288, 3)
    np.testing.assert_array_equal(large[24::48, 24::48], image.repeat(3, axis=2))


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
