"""Condition images as functions of images: against Pillow, by hand, and their errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.condition import downsample, enlarge, gray, make_condition


def random_images(shape=(3, 12, 8, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def halves(images):
    return images[:, :, : images.shape[2] // 2]


def as_floats(images):
    return images / 255.0


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_is_pillows(factor):
    """Pillow rounds after each of its two passes, so that a level may differ by one."""
    images = random_images()
    small = np.asarray(downsample(jnp.asarray(images), factor=factor))
    assert small.dtype == np.uint8
    for image, found in zip(images, small, strict=True):
        expected = Image.fromarray(image).resize((8 // factor, 12 // factor), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(expected).astype(int) - found.astype(int)).max() <= 1


def test_area_is_the_mean_of_each_square():
    images = np.zeros((1, 2, 4, 1), np.uint8)
    images[0, :, :, 0] = [[0, 1, 10, 20], [2, 4, 30, 43]]
    assert np.asarray(downsample(jnp.asarray(images), factor=2, method="area"))[0, 0, :, 0].tolist() == [2, 26]


@pytest.mark.parametrize("method", ["bicubic", "area"])
def test_the_condition_of_a_mirrored_image_is_mirrored(method):
    images = random_images()
    small, mirrored = (np.asarray(downsample(jnp.asarray(x), factor=4, method=method)) for x in (images, images[:, :, ::-1]))
    assert np.abs(small[:, :, ::-1].astype(int) - mirrored).max() <= 1  # the sums are in another order
    assert np.abs(small.astype(int) - mirrored).max() > 20


def test_gray_is_pillows():
    images = random_images()
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    assert np.abs(np.asarray(gray(jnp.asarray(images)))[..., 0].astype(int) - np.stack(expected)).max() <= 1


def test_shapes():
    assert make_condition("downsample", (12, 8, 3), factor=4).shape == (3, 2, 3)
    colors = make_condition("gray", (12, 8, 3), max_noise=0.5)
    assert (colors.name, colors.shape, colors.max_noise) == ("gray", (12, 8, 1), 0.5)
    assert make_condition("pairs", (8, 8, 3), condition_dir="x", condition_channels=1).shape == (8, 8, 1)
    assert make_condition("pairs", (8, 8, 3), condition_dir="x").shape == (8, 8, 3)
    own = make_condition(f"{__name__}:halves", (12, 8, 3))
    assert own.shape == (12, 4, 3)
    assert own.of_images(random_images()).shape == (3, 12, 4, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("downsample", {"factor": 3}, "`factor` is 3: it must be 2 or more and divide the size of the images, 8x8"),
        ("downsample", {"factor": 1}, "`factor` is 1"),
        ("downsample", {"method": "lanczos"}, "choose bicubic or area"),
        ("downsample", {"scale": 2}, "no option 'scale'"),
        ("blur", {}, "unknown condition 'blur': choose one of downsample, gray"),
        ("pairs", {"condition_channels": 2}, "`condition_channels` is 2"),
        (f"{__name__}:as_floats", {}, "returns .*float.*uint8 .* is required"),
        (f"{__name__}:nothing", {}, "cannot be imported"),
        (f"{__name__}:enlarge", {}, "2 positional parameters|needs|fails"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_condition(name, (8, 8, 3), **options)


def test_gray_needs_colors():
    with pytest.raises(ValueError, match="needs color images"):
        make_condition("gray", (8, 8, 1))


def test_enlarged_images_have_the_size_and_channels_of_images():
    small = np.full((2, 2, 2, 1), 100, np.uint8)
    assert (enlarge(small, (8, 8, 3)) == 100).all()
    assert enlarge(small, (8, 8, 3)).shape == (2, 8, 8, 3)
    images = random_images((1, 4, 4, 3))
    expected = Image.fromarray(images[0]).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(enlarge(images, (8, 8, 3))[0], np.asarray(expected))
    np.testing.assert_array_equal(enlarge(images, (8, 8, 1))[0, ..., 0], np.asarray(expected.convert("L")))
