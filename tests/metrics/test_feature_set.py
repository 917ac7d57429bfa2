"""Accumulated features equal those of the whole set; the subsample is deterministic."""

import numpy as np
import pytest

from ddpm_jax.metrics.feature_set import accumulate_features, subsample_indices
from ddpm_jax.metrics.features import Features
from ddpm_jax.metrics.frechet import fit_gaussian
from ddpm_jax.runtime.errors import InvalidDataError


def parts(vectors, logits=None, spatial=None, sizes=(7, 1, 20, 12)):
    ends = np.cumsum(sizes)
    for begin, end in zip(ends - sizes, ends, strict=True):
        yield Features(*(array if array is None else array[begin:end] for array in (vectors, logits, spatial)))


@pytest.mark.parametrize("kept", [0, 5, 39, 40, 1000])
def test_the_result_does_not_depend_on_the_batches(rng, kept):
    vectors, logits, spatial = (rng.normal(size=(40, size)).astype(np.float32) for size in (3, 4, 2))
    found = accumulate_features(parts(vectors, logits, spatial), 40, kept, logits=True, spatial=True)
    indices = subsample_indices(40, kept)
    assert len(found.features) == (min(kept, 40) or 40)
    np.testing.assert_array_equal(found.features, vectors[indices])
    np.testing.assert_array_equal(found.logits, logits)
    for ours, whole in zip(found.gaussian, fit_gaussian(vectors), strict=True):  # of all vectors, whatever is kept
        np.testing.assert_allclose(ours, whole, rtol=1e-12, atol=1e-12)
    for ours, whole in zip(found.spatial, fit_gaussian(spatial), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-12, atol=1e-12)


def test_the_subsample_covers_the_whole_set_and_never_changes():
    found = subsample_indices(50_000, 10_000)
    assert len(np.unique(found)) == 10_000
    assert (np.diff(found) > 0).all()
    assert np.mean(found) == pytest.approx(25_000, abs=500)  # three standard errors are 390
    assert subsample_indices(20, 4).tolist() == [1, 8, 18, 19]  # files written elsewhere use the same indices
    assert subsample_indices(4, 20).tolist() == subsample_indices(4, 0).tolist() == [0, 1, 2, 3]


def test_only_requested_statistics_are_computed(rng):
    vectors = rng.normal(size=(40, 3))
    found = accumulate_features(parts(vectors), 40, 0, gaussian=False)
    assert found.gaussian is None
    assert found.logits is None
    assert found.spatial is None
    assert accumulate_features(parts(vectors[:1], sizes=(1,)), 1, 0, gaussian=False).count == 1


def test_bad_input_is_an_error(rng):
    vectors = rng.normal(size=(40, 3))
    with pytest.raises(InvalidDataError, match="1 image of features: a covariance needs at least 2"):
        accumulate_features(parts(vectors, sizes=(1,)), 1, 0)
    with pytest.raises(ValueError, match="come without logits"):
        accumulate_features(parts(vectors), 40, 0, logits=True)
    with pytest.raises(ValueError, match="come without spatial ones"):
        accumulate_features(parts(vectors), 40, 0, spatial=True)
    with pytest.raises(ValueError, match="features of 40 images, expected 41"):
        accumulate_features(parts(vectors), 41, 0)
    with pytest.raises(InvalidDataError, match="not finite"):
        accumulate_features(parts(np.full((40, 3), np.nan)), 40, 0)
