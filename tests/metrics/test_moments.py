"""Streaming moments compared with those of the whole set, and the warnings about small samples."""

import numpy as np
import pytest

from ddpm_jax.metrics import moments
from ddpm_jax.metrics.frechet import fit_gaussian
from ddpm_jax.metrics.moments import Moments, sample_warnings
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


def test_merging_is_the_moments_of_both_in_any_order(rng, monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 8)
    features = rng.normal(size=(60, 4)) + np.repeat(rng.normal(size=(3, 1)) * 10, 20, axis=0)
    a, b, c = (moments_of(part) for part in np.split(features, [10, 31]))
    whole = moments_of(features)
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        assert_same(merged, whole)
    assert a.count == 10  # the parts are as they were
    assert_same(a, moments_of(features[:10]))


def test_merging_with_none_changes_nothing(rng):
    a = moments_of(rng.normal(size=(9, 4)))
    for merged in (a.merge(Moments()), Moments().merge(a)):
        assert_same(merged, a, rtol=0)
    assert Moments().merge(Moments()).count == 0


def test_count_mean_and_scatter_rebuild_the_moments(rng):
    features = rng.normal(size=(30, 4))
    here, there = moments_of(features[:12]), moments_of(features[12:])
    sent = Moments.of(there.count, there.mean, there.scatter)
    sent.update(features[:5])  # a copy: later updates of the original have no effect
    assert there.count == 18
    assert_same(here.merge(Moments.of(there.count, there.mean, there.scatter)), moments_of(features))
    with pytest.raises(ValueError, match="do not go together"):
        Moments.of(3, np.zeros(4), np.zeros((3, 3)))


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


def test_sets_of_different_dimension_do_not_merge(rng):
    with pytest.raises(InvalidDataError, match="of 3 and of 4 dimensions"):
        moments_of(rng.normal(size=(9, 3))).merge(moments_of(rng.normal(size=(9, 4))))


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


def test_small_samples_do_raise_the_distance(rng):
    """As the warnings state: the distance between two samples of one distribution decreases with their size."""
    from ddpm_jax.metrics.frechet import frechet_distance

    reference = fit_gaussian(rng.normal(size=(4000, 16)))
    distances = [frechet_distance(fit_gaussian(rng.normal(size=(n, 16))), reference) for n in (16, 64, 256, 4000)]
    assert distances[0] > 3 * distances[1] > 9 * distances[2] > 18 * distances[3]
