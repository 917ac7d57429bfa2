"""Streaming moments compared with those of the whole set."""

import numpy as np
import pytest

from ddpm_jax.metrics import moments
from ddpm_jax.metrics.frechet import fit_gaussian
from ddpm_jax.metrics.moments import Moments
from ddpm_jax.runtime.errors import InvalidDataError


def moments_of(features, batch_size=7):
    accumulated = Moments()
    for begin in range(0, len(features), batch_size):
        accumulated.update(features[begin : begin + batch_size])
    return accumulated


def assert_same(a, b, rtol=1e-12):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=rtol, atol=rtol * np.abs(b.scatter).max())


@pytest.mark.parametrize("batch_size", [1, 7, 50, 99, 200])
def test_any_batches_give_the_gaussian_of_the_whole(rng, monkeypatch, batch_size):
    monkeypatch.setattr(moments, "BLOCK", 16)  # several blocks, and a last one that is not full
    features = (rng.normal(size=(99, 5)) @ rng.normal(size=(5, 5)) + 3).astype(np.float32)
    accumulated = moments_of(features, batch_size)
    assert (accumulated.count, accumulated.dimension) == (99, 5)
    for ours, whole in zip(accumulated.gaussian(), fit_gaussian(features), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-12, atol=1e-12)


def test_a_mean_far_larger_than_the_deviation_costs_no_digits(rng, monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 16)
    features = rng.normal(size=(200, 3)).round(3)
    near, far = moments_of(features).gaussian(), moments_of(features + 2.0**20).gaussian()
    # The mean takes 6 of a feature's 16 digits; running sums of squares would leave 4 for the covariance.
    np.testing.assert_allclose(far.covariance, near.covariance, atol=1e-9)


def test_updates_may_continue_after_a_read(rng):
    features = rng.normal(size=(40, 4))
    accumulated = moments_of(features[:10])
    accumulated.gaussian()
    accumulated.update(features[10:])
    assert_same(accumulated, moments_of(features))


def test_the_callers_array_may_be_reused(rng):
    first, second = rng.normal(size=(2, 6, 3))
    accumulated, buffer = Moments(), np.empty((6, 3))
    for features in (first, second):
        buffer[:] = features
        accumulated.update(buffer)
    assert_same(accumulated, moments_of(np.concatenate([first, second])))


def test_an_empty_batch_changes_nothing(rng):
    accumulated = Moments()
    accumulated.update(np.zeros((0, 3)))
    assert accumulated.count == 0
    accumulated.update(rng.normal(size=(4, 5)))
    assert accumulated.dimension == 5


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_vectors_are_an_error(count):
    accumulated = Moments()
    accumulated.update(np.ones((count, 3)))
    with pytest.raises(InvalidDataError, match=f"{count} image.* at least 2"):
        accumulated.gaussian()


@pytest.mark.parametrize(
    ("features", "kind", "words"),
    [
        (np.array([[1.0, np.nan, 0.0]]), InvalidDataError, "1 of 1 images are not finite"),
        (np.array([[1.0, np.inf, 0.0]]), InvalidDataError, "not finite"),
        (np.zeros((2, 4)), InvalidDataError, "of 3 and of 4 dimensions"),
        (np.zeros(3), ValueError, r"\[N, D\]"),
        (np.zeros((2, 3, 1)), ValueError, r"\[N, D\]"),
    ],
)
def test_bad_features_are_an_error_and_not_added(rng, features, kind, words):
    accumulated = moments_of(rng.normal(size=(9, 3)))
    before = accumulated.gaussian()
    with pytest.raises(kind, match=words) as error:
        accumulated.update(features)
    assert "\n" not in str(error.value)
    assert accumulated.count == 9
    np.testing.assert_array_equal(accumulated.gaussian().covariance, before.covariance)


def test_small_samples_do_raise_the_distance(rng):
    """As the warnings state: the distance between two samples of one distribution decreases with their size."""
    from ddpm_jax.metrics.frechet import frechet_distance

    reference = fit_gaussian(rng.normal(size=(4000, 16)))
    distances = [frechet_distance(fit_gaussian(rng.normal(size=(n, 16))), reference) for n in (16, 64, 256, 4000)]
    assert distances[0] > 3 * distances[1] > 9 * distances[2] > 18 * distances[3]
