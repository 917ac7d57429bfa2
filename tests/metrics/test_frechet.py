"""The Fréchet distance against closed forms."""

import numpy as np
import pytest

from ddpm_jax.metrics.frechet import Gaussian, fit_gaussian, frechet_distance


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_gaussian_of_vectors_is_numpys(rng):
    features = rng.normal(size=(50, 7)).astype(np.float32)
    fitted = fit_gaussian(features)
    np.testing.assert_allclose(fitted.mean, features.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(fitted.covariance, np.cov(features, rowvar=False, dtype=np.float64), rtol=1e-12)


def test_diagonal_gaussians_have_a_closed_form(rng):
    mean_a, mean_b = rng.normal(size=(2, 9))
    std_a, std_b = rng.uniform(0, 3, size=(2, 9))
    std_a[2] = std_b[5] = 0  # singular ones as well
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    assert frechet_distance(Gaussian(mean_a, np.diag(std_a**2)), Gaussian(mean_b, np.diag(std_b**2))) == pytest.approx(
        expected, rel=1e-12
    )


def test_a_rotation_of_both_changes_nothing_and_order_does_not_matter(rng):
    a, b = (fit_gaussian(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))) for _ in range(2))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    rotated = [Gaussian(rotation @ g.mean, rotation @ g.covariance @ rotation.T) for g in (a, b)]
    assert frechet_distance(a, b) > 1
    assert frechet_distance(*rotated) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)


@pytest.mark.parametrize("number", [5, 400], ids=["fewer vectors than dimensions", "more"])
def test_distance_to_oneself_is_0(rng, number):
    a = fit_gaussian(rng.normal(size=(number, 64)) * 5)
    assert frechet_distance(a, a) < 1e-6 * np.trace(a.covariance)


@pytest.mark.parametrize(
    "features", [np.zeros((1, 3)), np.zeros(3), np.array([[0.0, 1.0], [np.nan, 1.0]])], ids=["one", "flat", "nan"]
)
def test_what_has_no_gaussian_is_refused(features):
    with pytest.raises(ValueError, match="features"):
        fit_gaussian(features)


def test_vectors_of_different_dimension_are_refused(rng):
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        frechet_distance(fit_gaussian(rng.normal(size=(9, 3))), fit_gaussian(rng.normal(size=(9, 4))))
