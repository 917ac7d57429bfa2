"""Inception agrees with a reference implementation, for images of any size and color, in any batch.

Goldens are from tests/golden/inception.py: torch-fidelity 0.4.0, float32, random weights. With 94 layers in float32 two correct
implementations differ by 3e-7 of the whole vector; the tolerances are 1e-5 of it and, for each number, 1e-4 of its value and
1e-5 of the largest. A resize with half-pixel centers is off by 5e-3 or more, pixels scaled by 127.5 instead of 128 by 6e-4.
"""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import random_inception
from ddpm_jax.evaluation import feature_extraction
from ddpm_jax.metrics import features, inception
from ddpm_jax.runtime import mesh as meshes

FOLDER = pathlib.Path(__file__).parent.parent / "golden"
NAMES = ("32", "64", "256", "299", "oblong", "extreme")
BATCH = 3  # of every network call, so that it is compiled once


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "inception.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def images():
    """Name -> uint8 [N, H, W, 3], the inputs of the reference implementation."""
    spec = importlib.util.spec_from_file_location("golden_inception", FOLDER / "inception.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_images()


@pytest.fixture(scope="module")
def variables():
    return random_inception.random_variables(0)


@pytest.fixture(scope="module")
def network(variables):
    """Float images [N <= 3, 299, 299, 3] -> Features: one compilation."""
    apply = jax.jit(inception.apply)

    def compute(images):
        filled = np.asarray(images)[np.minimum(np.arange(BATCH), len(images) - 1)]
        return inception.Features(*(np.asarray(array)[: len(images)] for array in apply(variables, filled)))

    return compute


def assert_equal_to(reference, got):
    assert got.shape == reference.shape
    assert np.linalg.norm(got - reference) <= 1e-5 * np.linalg.norm(reference)
    np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-5 * abs(reference).max())


@pytest.mark.parametrize("name", NAMES)
def test_features_and_logits_agree_with_the_reference(golden, images, network, name):
    """Resize and network separately: an image of 299 pixels is not resized. The next test runs both together."""
    computed = network(inception.resize(jnp.asarray(images[name], jnp.float32)))
    assert_equal_to(golden[f"{name}_features"], computed.features)
    assert_equal_to(golden[f"{name}_logits"], computed.logits)
    assert computed.features.min() >= 0
    if f"{name}_spatial" in golden:
        assert_equal_to(golden[f"{name}_spatial"], computed.spatial)


def test_the_goldens_distinguish_images(golden):
    """Features of different images differ by 100 times the tolerance, so that agreement is meaningful."""
    for name in [*(f"{name}_features" for name in NAMES), "32_spatial", "299_spatial"]:
        first, second = golden[name][:2]
        assert np.linalg.norm(first - second) > 1e-3 * np.linalg.norm(first)


def test_the_extractor_is_the_network_with_its_resize(golden, images, variables, tmp_path):
    """uint8 32x32, through jit and `extract`, with batches larger than a group."""
    apply = functools.partial(features.apply_inception, group_size=8)
    extractor = features.FeatureExtractor("inception", apply, {}, variables)
    many = images["32"][np.arange(9) % 2]
    (got,) = feature_extraction.extract(extractor, meshes.make_mesh(jax.devices()[:1]), [many], batch_size=len(many))
    which = np.arange(len(many)) % 2
    assert_equal_to(golden["32_features"][which], got.features)
    assert_equal_to(golden["32_logits"][which], got.logits)
    assert_equal_to(golden["32_spatial"][which], got.spatial)


def test_gray_equals_three_equal_channels(variables, monkeypatch):
    """Compares the input of the network, which does not run here; 1e-6 of the range."""
    seen = []
    monkeypatch.setattr(inception.Inception, "apply", lambda self, variables, x: seen.append(np.asarray(x)))
    gray = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    inception.apply(variables, jnp.asarray(gray))
    inception.apply(variables, jnp.asarray(gray.repeat(3, -1)))
    assert seen[0].shape == (2, 299, 299, 3)
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)
    extremes = np.array([0, 255], np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    inception.apply(variables, jnp.asarray(extremes))
    np.testing.assert_array_equal(seen[2][0], np.full((299, 299, 3), -1.0))
    np.testing.assert_array_equal(seen[2][1], np.full((299, 299, 3), 127 / 128, np.float32))


def test_the_resize_against_plain_loops():
    """Output pixel i is at i * H / 299; between two pixels it is interpolated linearly.

    Expected in float64; positions in float32 are off by up to length / 2**23, and a level by 255 times that on each axis.
    """
    rng = np.random.default_rng(0)
    for height, width in ((5, 640), (1, 3), (299, 31)):
        x = rng.uniform(0, 255, (1, height, width, 2))
        rows, columns = (axis_weights(length) for length in (height, width))
        expected = np.einsum("ih,nhwc,jw->nijc", rows, x, columns, optimize=True)
        got = inception.resize(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(got, expected, atol=255 * (height + width) / 2**23)
        assert got.shape == (1, 299, 299, 2)


def axis_weights(length):
    """The weight of each input pixel in each output pixel: [299, length]."""
    matrix = np.zeros((299, length))
    for i in range(299):
        position = i * length / 299
        below = int(position)
        matrix[i, below] += 1 - (position - below)
        matrix[i, min(below + 1, length - 1)] += position - below
    return matrix


def test_pools_against_plain_loops():
    """Means over the pixels inside the image, maxima without and with a border; 1e-6."""
    x = np.random.default_rng(0).uniform(0, 1, (2, 5, 7, 3)).astype(np.float32)

    def pooled(reduce, stride, border):
        rows, columns = (range(-border, length - 2 + border, stride) for length in x.shape[1:3])
        under = lambda i, j: x[:, max(i, 0) : i + 3, max(j, 0) : j + 3]  # noqa: E731
        return np.stack([np.stack([reduce(under(i, j), (1, 2)) for j in columns], 1) for i in rows], 1)

    np.testing.assert_allclose(inception.average_pool(x), pooled(np.mean, 1, 1), rtol=1e-6)
    np.testing.assert_array_equal(inception.max_pool(x), pooled(np.max, 2, 0))
    np.testing.assert_array_equal(inception.max_pool(x, stride=1, padding="SAME"), pooled(np.max, 1, 1))


@pytest.mark.parametrize("number", [1, 4, 9, 12, 17])
def test_groups_change_nothing(number):
    sizes = []

    def function(x):
        sizes.append(len(x))
        return x.sum((1, 2)), x.astype(jnp.float32) * 2

    x = jnp.arange(number * 6, dtype=jnp.int32).reshape(number, 2, 3)
    total, doubled = inception.in_groups(function, x, 4)
    np.testing.assert_array_equal(total, x.sum((1, 2)))
    np.testing.assert_array_equal(doubled, np.asarray(x) * 2)
    assert set(sizes) == {-(-number // -(-number // 4))}
    assert max(sizes) <= 4


def test_other_shapes_are_rejected(variables):
    for shape in ((8, 8, 3), (1, 8, 8, 2), (1, 8, 8, 4), (1, 0, 8, 3), (1, 8, 0, 1)):
        with pytest.raises(ValueError, match="images must be"):
            inception.apply(variables, jnp.zeros(shape, jnp.uint8))
