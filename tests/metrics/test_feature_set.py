"""What is kept of features as they pass is what the whole would give; the choice among them is the same every time."""

import numpy as np
import pytest

from ddpm_jax.metrics.feature_set import accumulate_features, subsample_indices
from ddpm_jax.metrics.features import Features
from ddpm_jax.metrics.frechet import fit_gaussian
from ddpm_jax.runtime.errors import InvalidDataError


def parts(vectors, logits=None, sizes=(7, 1, 20, 12)):
    ends = np.cumsum(sizes)
    for begin, end in zip(ends - sizes, ends, strict=True):
        yield Features(vectors[begin:end], None if logits is None else logits[begin:end])


@pytest.mark.parametrize("kept", [0, 5, 39, 40, 1000])
def test_any_batches_leave_the_same(rng, kept):
    vectors, logits = (rng.normal(size=(40, size)).astype(np.float32) for size in (3, 4))
    found = accumulate_features(parts(vectors, logits), 40, kept, logits=True)
    indices = subsample_indices(40, kept)
    assert len(found.features) == (min(kept, 40) or 40)
    np.testing.assert_array_equal(found.features, vectors[indices])
    np.testing.assert_array_equal(found.logits, logits)
    for ours, whole in zip(found.gaussian, fit_gaussian(vectors), strict=True):  # of all, whatever is kept
        np.testing.assert_allclose(ours, whole, rtol=1e-12, atol=1e-12)


def test_the_choice_is_from_the_whole_and_the_same_in_any_version():
    found = subsample_indices(50_000, 10_000)
    assert len(np.unique(found)) == 10_000
    assert (np.diff(found) > 0).all()
    assert np.mean(found) == pytest.approx(25_000, abs=500)  # three standard errors are 390
    assert subsample_indices(20, 4).tolist() == [1, 8, 18, 19]  # written down: a file made elsewhere holds the same
    assert subsample_indices(4, 20).tolist() == subsample_indices(4, 0).tolist() == [0, 1, 2, 3]


def test_what_nobody_asks_for_is_not_made(rng):
    vectors = rng.normal(size=(40, 3))
    found = accumulate_features(parts(vectors), 40, 0, gaussian=False)
    assert found.gaussian is None
    assert found.logits is None
    assert accumulate_features(parts(vectors[:1], sizes=(1,)), 1, 0, gaussian=False).count == 1


def test_bad_input_is_told(rng):
    vectors = rng.normal(size=(40, 3))
    with pytest.raises(InvalidDataError, match="1 image of features: a covariance needs at least 2"):
        accumulate_features(parts(vectors, sizes=(1,)), 1, 0)
    with pytest.raises(ValueError, match="come without logits"):
        accumulate_features(parts(vectors), 40, 0, logits=True)
    with pytest.raises(ValueError, match="features of 40 images, where 41"):
        accumulate_features(parts(vectors), 41, 0)
    with pytest.raises(InvalidDataError, match="not finite"):
        accumulate_features(parts(np.full((40, 3), np.nan)), 40, 0)
