"""Features: equal on any number of devices, of exactly the given images, and errors for invalid inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.metrics import features
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

IMAGES = np.random.default_rng(0).integers(0, 256, (21, 4, 4, 3), dtype=np.uint8)


def brightness(images):
    """A custom function, as `module:function` names it."""
    return images.astype(jnp.float32).mean(axis=(1, 2))


def logarithm(images):
    return jnp.log(images.astype(jnp.float32).reshape(len(images), -1) - 255)


def classifier(images):
    return brightness(images), brightness(images)[:, :2]


def scalar(images):
    return images.sum()


def extracted(extractor, devices=8, sizes=(8, 8, 5), **options):
    batches = np.split(IMAGES, np.cumsum(sizes)[:-1])
    mesh = meshes.make_mesh(jax.devices()[:devices])
    parts = list(features.extract(extractor, mesh, batches, batch_size=8, **options))
    assert [len(part.features) for part in parts] == list(sizes)
    return np.concatenate([part.features for part in parts])


def test_pixels_are_the_pixels_on_any_number_of_devices():
    seen = []
    got = extracted(features.make_extractor("pixels"), report=seen.append)
    np.testing.assert_allclose(got, IMAGES.reshape(21, -1) / 255, rtol=1e-6)
    assert seen == [8, 16, 21]
    np.testing.assert_array_equal(extracted(features.make_extractor("pixels"), devices=1, sizes=(3, 8, 8, 2)), got)


def test_a_custom_function(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rsplit("/", 1)[0])
    extractor = features.make_extractor("test_features:brightness")
    np.testing.assert_allclose(extracted(extractor), IMAGES.mean(axis=(1, 2)), rtol=1e-5)
    assert extractor.provenance == {"features": "test_features:brightness"}
    both = next(
        features.extract(features.make_extractor("test_features:classifier"), meshes.make_mesh(), [IMAGES], batch_size=21)
    )
    assert both.features.shape == (21, 3)
    np.testing.assert_allclose(both.logits, IMAGES.mean(axis=(1, 2))[:, :2], rtol=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"returns \[\[\]\] for 8 images: it must return \[B, D\]"):
        extracted(features.make_extractor("test_features:scalar"))
    with pytest.raises(InvalidDataError, match=r"not finite for images 0\.\.7"):
        extracted(features.make_extractor("test_features:logarithm"))


def test_wrong_inputs_are_rejected():
    for name in ("magic", "module:", ":function"):
        with pytest.raises(InvalidArgumentError, match=r"choose inception, pixels, pixels_16 .*, or module:function"):
            features.make_extractor(name)
    for name in ("nowhere_at_all:f", "numpy:no_such_function"):
        with pytest.raises(InvalidArgumentError, match="cannot be imported"):
            features.make_extractor(name)
    mixed = [IMAGES[:2], IMAGES[:2, :2, :2]]
    with pytest.raises(InvalidDataError, match="all must have one size"):
        list(features.extract(features.make_extractor("pixels"), meshes.make_mesh(), mixed, batch_size=8))


@pytest.mark.parametrize(("length", "size"), [(8, 4), (12, 5), (7, 3), (4, 16), (6, 6)])
def test_small_pixels_are_means_over_areas(length, size):
    """Compared with an image enlarged until the areas hold whole pixels, in float32; small images are unchanged."""
    images = np.random.default_rng(1).integers(0, 256, (3, length, length, 2), dtype=np.uint8)
    extractor = features.make_extractor(f"pixels_{size}")
    found = np.asarray(extractor.apply(None, jnp.asarray(images)).features)
    side = min(size, length)
    fine = images.repeat(side, axis=1).repeat(side, axis=2) / 255
    expected = fine.reshape(3, side, length, side, length, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found, expected.reshape(3, -1), atol=1e-6)
    assert features.feature_size(extractor, (length, length, 2)) == found.shape[1] == side * side * 2


@pytest.mark.parametrize("name", ["pixels_", "pixels_0", "pixels_x", "pixels_-4"])
def test_an_invalid_pixel_size_is_an_error(name):
    with pytest.raises(InvalidArgumentError, match="choose inception, pixels, pixels_16"):
        features.make_extractor(name)
