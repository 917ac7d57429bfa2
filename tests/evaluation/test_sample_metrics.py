"""Notes on scores."""

import numpy as np
import pytest

from ddpm_jax.data.source import ArraySource
from ddpm_jax.evaluation.class_proportions import ClassProportions
from ddpm_jax.evaluation.feature_extraction import FeatureCollector
from ddpm_jax.evaluation.reference import load_reference, measure_reference, with_features
from ddpm_jax.evaluation.sample_metrics import SampleScorer, sample_warnings
from ddpm_jax.metrics import reference_stats
from ddpm_jax.metrics.features import FeatureExtractor, Features
from ddpm_jax.metrics.frechet import fit_gaussian, frechet_distance
from ddpm_jax.runtime.errors import InvalidDataError
from ddpm_jax.runtime.mesh import make_mesh


@pytest.mark.parametrize(
    ("counts", "published", "words"),
    [
        ((50_000, 50_000, 2048), True, []),
        ((50_000, 50_000, 64), False, []),
        ((1000, 1500, 64), False, []),
        ((64, 1500, 64), False, ["64 generated images for 64 features"]),
        ((65, 1500, 64), False, []),
        ((1000, 50, 64), False, ["50 reference images for 64 features"]),
        ((2000, 50_000, 2048), True, ["2,000 generated images for 2,048 features", "FID of 2,000 images"]),
        ((9999, 50_000, 2048), True, ["FID of 9,999 images: FID decreases"]),
        ((10_000, 50_000, 2048), True, ["published ones mostly use 50,000"]),
        ((50_000, None, 2048), True, ["the number of reference images is unknown"]),
    ],
)
def test_small_samples_cause_warnings(counts, published, words):
    lines = sample_warnings(*counts, published=published)
    assert len(lines) == len(words)
    for line, expected in zip(lines, words, strict=True):
        assert expected in line
        assert "\n" not in line


def with_spatial(_, images):
    flat = images.reshape(len(images), -1) / 255
    return Features(flat[:, :3], spatial=flat[:, 3:6])


def test_sfid_is_the_distance_of_the_spatial_features(tmp_path):
    collector = FeatureCollector(FeatureExtractor("inception", with_spatial, {"weights_published": False}), make_mesh(), 8)
    real, images = (np.random.default_rng(seed).integers(0, 256, (30, 4, 4, 1), dtype=np.uint8) for seed in (0, 1))
    source = ArraySource(real, name="real", split="train")
    held = measure_reference(source, collector, {}, spatial=True)
    row = SampleScorer(held, collector, ("frechet", "sfid"), ClassProportions(0)).of_images(images)
    for name, columns in (("frechet", slice(0, 3)), ("sfid", slice(3, 6))):
        parts = [fit_gaussian((x.reshape(30, -1) / 255)[:, columns]) for x in (images, real)]
        assert row[name] == pytest.approx(frechet_distance(*parts), rel=1e-5)
    # A file of images has what is missing computed; one of statistics does not have it.
    np.savez(tmp_path / "images.npz", arr_0=real)
    found = with_features(reference_stats.load(tmp_path / "images.npz"), collector, ("sfid",))
    np.testing.assert_array_equal(found.spatial.covariance, held.spatial.covariance)
    options = {"identity": {}, "image_shape": (4, 4, 1), "metrics": ("sfid",)}
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(InvalidDataError, match="holds no mu_s and no sigma_s, which sfid needs"):
        load_reference(tmp_path / "stats.npz", collector.extractor, **options)


def test_each_process_keeps_its_part_of_images_that_all_get(monkeypatch):
    collector = FeatureCollector(FeatureExtractor("inception", with_spatial, {"weights_published": False}), make_mesh(), 8)
    scorer = SampleScorer(None, collector, (), ClassProportions(0))
    images, kept = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1), []
    monkeypatch.setattr(scorer, "of_batches", lambda batches, count: kept.extend(batches) or {"count": count})
    monkeypatch.setattr(FeatureCollector, "part", lambda self, count: range(7, 15))
    assert scorer.of_generated((images[first : first + 5] for first in range(0, 20, 5)), 20) == {"count": 20}
    assert [batch.ravel().tolist() for batch in kept] == [[7, 8, 9], [10, 11, 12, 13, 14]]
    assert kept[0].base is None
