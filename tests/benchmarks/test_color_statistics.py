"""Color statistics: closed forms on images made of known colors, at 1e-9 unless noted."""

import numpy as np
import pytest

from benchmarks import color_statistics as color
from ddpm_jax.runtime.errors import InvalidDataError


def plain(*colors, size=4):
    """One constant image per color: uint8 [N, size, size, 3]."""
    return np.broadcast_to(np.uint8(colors)[:, None, None], (len(colors), size, size, 3))


def test_constant_images_have_their_own_color():
    found = color.color_statistics(plain((10, 20, 60), (110, 100, 120)))
    assert found.count == 2
    assert found.brightness == pytest.approx((30 + 110) / 2)
    assert found.brightness_spread == pytest.approx(40)
    assert found.brightness_error == pytest.approx(40 / 2**0.5)
    assert found.channels == pytest.approx((60, 60, 90))
    assert (found.cast, found.largest_cast) == pytest.approx(((50 + 20) / 2, 50))
    assert found.saturation == pytest.approx((50 + 20) / 2)
    assert (found.contrast, found.flat) == (0, 1)


def test_gray_images_have_contrast_but_neither_cast_nor_saturation():
    halves = np.zeros((1, 4, 4, 1), np.uint8)
    halves[:, :2] = 200
    for images in (halves, np.repeat(halves, 3, axis=-1)):
        found = color.color_statistics(images)
        assert (found.brightness, found.contrast) == pytest.approx((100, 100))
        assert (found.cast, found.largest_cast, found.saturation, found.flat) == (0, 0, 0, 0)


def test_colors_that_cancel_over_an_image_give_saturation_but_no_cast():
    image = np.zeros((1, 3, 1, 3), np.uint8)
    image[0, :, 0] = 255 * np.eye(3, dtype=np.uint8)  # a red, a green and a blue pixel
    found = color.color_statistics(image)
    assert (found.cast, found.saturation, found.contrast) == pytest.approx((0, 255, 0))


def test_flat_is_the_fraction_below_the_threshold():
    steps = np.zeros((3, 2, 2, 3), np.uint8)
    steps[:, 0] = np.uint8([0, 46, 50])[:, None, None]  # contrast 0, 23 and 25; the threshold is 24
    assert color.color_statistics(steps).flat == pytest.approx(2 / 3)


def test_statistics_do_not_depend_on_parts_and_chunks():
    images = np.random.default_rng(0).integers(0, 256, (color.CHUNK + 7, 2, 3, 3), dtype=np.uint8)
    whole = color.color_statistics(images)
    parts = [color.image_colors(images[:5]), color.image_colors(images[5:5]), color.image_colors(images[5:])]
    assert color.summarize(color.concatenate(parts)) == whole
    assert whole.brightness == pytest.approx(images.mean())
    assert whole.contrast == pytest.approx(np.mean([image.mean(-1).std() for image in images]))


@pytest.mark.parametrize("images", [np.zeros((1, 2, 2, 3)), np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 2, 4), np.uint8)])
def test_invalid_arrays_are_an_error(images):
    with pytest.raises(ValueError, match=r"they must be uint8 \[N, H, W, 1 or 3\]"):
        color.color_statistics(images)


def test_no_images_are_an_error():
    with pytest.raises(InvalidDataError, match="at least one image"):
        color.color_statistics(np.zeros((0, 2, 2, 3), np.uint8))
