"""Feature extraction: independent of the number of devices, one row per image, and errors for invalid features."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluation import feature_extraction
from ddpm_jax.metrics import features
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

IMAGES = np.random.default_rng(0).integers(0, 256, (21, 4, 4, 3), dtype=np.uint8)


def brightness(images):
    """A user-defined extractor, named by `module:function`."""
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
    parts = list(feature_extraction.extract(extractor, mesh, batches, batch_size=8, **options))
    assert [len(part.features) for part in parts] == list(sizes)
    return np.concatenate([part.features for part in parts])


def test_pixel_features_on_any_number_of_devices():
    seen = []
    got = extracted(features.make_extractor("pixels"), report=seen.append)
    np.testing.assert_allclose(got, IMAGES.reshape(21, -1) / 255, rtol=1e-6)
    assert seen == [8, 16, 21]
    np.testing.assert_array_equal(extracted(features.make_extractor("pixels"), devices=1, sizes=(3, 8, 8, 2)), got)


def test_a_user_defined_function(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rsplit("/", 1)[0])
    extractor = features.make_extractor("test_feature_extraction:brightness")
    np.testing.assert_allclose(extracted(extractor), IMAGES.mean(axis=(1, 2)), rtol=1e-5)
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:12]
    assert extractor.provenance == {"features": "test_feature_extraction:brightness", "test_feature_extraction.py": digest}
    extractor = features.make_extractor("test_feature_extraction:classifier")
    (both,) = feature_extraction.extract(extractor, meshes.make_mesh(), [IMAGES], batch_size=21)
    assert both.features.shape == (21, 3)
    np.testing.assert_allclose(both.logits, IMAGES.mean(axis=(1, 2))[:, :2], rtol=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"returns \[\[\]\] for 8 images: it must return \[B, D\]"):
        extracted(features.make_extractor("test_feature_extraction:scalar"))
    with pytest.raises(InvalidDataError, match=r"not finite for images 0\.\.7"):
        extracted(features.make_extractor("test_feature_extraction:logarithm"))


def test_statistics_do_not_depend_on_the_sizes_of_the_batches():
    """Chunks of generated images may be of any size, such as one that replaces a damaged one."""
    collector = feature_extraction.FeatureCollector(features.make_extractor("pixels"), meshes.make_mesh(), 8)
    want = collector.collect([IMAGES[:8], IMAGES[8:16], IMAGES[16:]], 21)
    for sizes in ((1,) * 21, (3, 0, 18), (21,), (5, 8, 8)):
        found = collector.collect(np.split(IMAGES, np.cumsum(sizes)[:-1]), 21)
        np.testing.assert_array_equal(found.features, want.features)
        np.testing.assert_array_equal(found.gaussian.covariance, want.gaussian.covariance)


def test_images_of_two_sizes_are_an_error():
    mixed = [IMAGES[:2], IMAGES[:2, :2, :2]]
    with pytest.raises(InvalidDataError, match="all must be equal"):
        list(feature_extraction.extract(features.make_extractor("pixels"), meshes.make_mesh(), mixed, batch_size=8))


HOSTS = """
import numpy as np
from ddpm_jax.data import duplicates
from ddpm_jax.data.source import ArraySource
from ddpm_jax.evaluation import feature_extraction, reference
from ddpm_jax.metrics import features
images = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)
images[20] = images[1]
read = []
class Counting(ArraySource):
    def batch(self, indices):
        read.extend(indices.tolist())
        return super().batch(indices)
def measure():
    source = Counting(images, np.arange(23) % 3, num_classes=3, name="noise", split="train")
    collector = feature_extraction.FeatureCollector(features.make_extractor("pixels"), mesh.make_mesh(), 8, max_features=9)
    found = reference.measure_reference(source, collector, {})
    return found, [found.gaussian.mean.tolist(), found.gaussian.covariance.tolist(), found.features.tolist()]
"""


@pytest.mark.slow
def test_two_processes_measure_what_one_does_and_read_half_each(two):
    results, codes = two(f"""
{HOSTS}
found, arrays = measure()
broken = Counting(images, name="noise", split="train")
def fail():
    collector = feature_extraction.FeatureCollector(features.make_extractor("pixels"), mesh.make_mesh(), 8)
    batches = collector.read(broken)
    def failing():
        yield next(batches)["image"]
        if me == 1:
            raise errors.InvalidDataError("a.png is broken")
        yield from (batch["image"] for batch in batches)
    collector.collect(failing(), 23)
write(read=read[:12], arrays=arrays, provenance=found.provenance, error=error_of(fail))
""")
    assert codes == [0, 0]
    zero, one = results
    assert zero["read"] == list(range(11))
    assert one["read"] == list(range(11, 23))
    assert zero["arrays"] == one["arrays"]  # to the bit
    assert zero["provenance"] == one["provenance"]
    assert one["error"] == ["InvalidDataError", "a.png is broken"]
    assert zero["error"] == ["DistributedError", "process 1 stopped: a.png is broken"]
    here = {"mesh": meshes}
    exec(HOSTS, here)
    found, arrays = here["measure"]()
    assert found.provenance == zero["provenance"]
    assert found.provenance["class_counts"] == [8, 8, 7]
    assert found.provenance["repeated_images"] == 1
    for ours, theirs in zip(arrays, zero["arrays"], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-13, atol=1e-14)
