"""Feature extractors: found by their names, and errors where a name makes no sense."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.metrics import features
from ddpm_jax.runtime.errors import InvalidArgumentError


def test_wrong_inputs_are_rejected():
    for name in ("magic", "module:", ":function"):
        with pytest.raises(InvalidArgumentError, match=r"choose inception, pixels, pixels_16 .*, or module:function"):
            features.make_extractor(name)
    for name in ("nowhere_at_all:f", "numpy:no_such_function"):
        with pytest.raises(InvalidArgumentError, match="cannot be imported"):
            features.make_extractor(name)


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
