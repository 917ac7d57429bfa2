"""The Fréchet distance against closed forms, and against pytorch-fid and torch-fidelity."""

import numpy as np
import pytest

from ddpm_jax.metrics import frechet
from ddpm_jax.metrics.frechet import Gaussian, fit_gaussian, frechet_distance
from ddpm_jax.runtime.errors import InvalidDataError


def test_the_gaussian_of_vectors_is_numpys(rng):
    features = rng.normal(size=(50, 7)).astype(np.float32)
    fitted = fit_gaussian(features)
    np.testing.assert_allclose(fitted.mean, features.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(fitted.covariance, np.cov(features, rowvar=False, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("reference", ["fid_pytorch_fid", "fid_torch_fidelity"])
def test_it_agrees_with_other_implementations(golden, reference):
    distance = frechet_distance(fit_gaussian(golden["generated"]), fit_gaussian(golden["real"]))
    assert distance == pytest.approx(float(golden[reference]), rel=1e-10)


def test_diagonal_gaussians_have_a_closed_form(rng):
    mean_a, mean_b = rng.normal(size=(2, 9))
    std_a, std_b = rng.uniform(0, 3, size=(2, 9))
    std_a[2] = std_b[5] = 0  # singular ones as well
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    assert frechet_distance(Gaussian(mean_a, np.diag(std_a**2)), Gaussian(mean_b, np.diag(std_b**2))) == pytest.approx(
        expected, rel=1e-12
    )


def test_commuting_covariances_have_a_closed_form(rng):
    axes, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    std_a, std_b = rng.uniform(0, 3, size=(2, 9))
    std_a[:3] = std_b[2:5] = 0
    a, b = (Gaussian(np.zeros(9), axes * std**2 @ axes.T) for std in (std_a, std_b))
    assert frechet_distance(a, b) == pytest.approx(np.sum((std_a - std_b) ** 2), rel=1e-12)


def test_one_dimension_has_a_closed_form():
    a, b = Gaussian(np.array([3.0]), np.array([[4.0]])), Gaussian(np.array([-1.0]), np.array([[25.0]]))
    assert frechet_distance(a, b) == pytest.approx(4**2 + 3**2, rel=1e-12)


def test_covariances_that_do_not_commute_agree_with_the_eigenvalues_of_their_product(rng):
    a, b = (fit_gaussian(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))) for _ in range(2))
    root = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).real).sum()
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_it_is_symmetric_and_invariant_under_rigid_motions(rng):
    a, b = (fit_gaussian(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))) for _ in range(2))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    moved = [Gaussian(rotation @ g.mean + 5, rotation @ g.covariance @ rotation.T) for g in (a, b)]
    distance = frechet_distance(a, b)
    assert distance > 1
    assert frechet_distance(*moved) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)


def test_the_order_of_images_does_not_matter(rng):
    features, other = rng.normal(size=(2, 50, 6))
    shuffled = features[rng.permutation(50)]
    distance = frechet_distance(fit_gaussian(features), fit_gaussian(other))
    assert frechet_distance(fit_gaussian(shuffled), fit_gaussian(other)) == pytest.approx(distance, rel=1e-10)


def test_moving_or_scaling_one_set_has_a_closed_form(rng):
    a = fit_gaussian(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)))
    shift = rng.normal(size=6)
    assert frechet_distance(a, Gaussian(a.mean + shift, a.covariance)) == pytest.approx(shift @ shift, rel=1e-10)
    scaled = Gaussian(a.mean, 9 * a.covariance)
    assert frechet_distance(a, scaled) == pytest.approx((3 - 1) ** 2 * np.trace(a.covariance), rel=1e-10)


@pytest.mark.parametrize("number", [2, 5, 60, 400], ids=lambda n: f"{n} vectors of 64")
def test_distance_to_itself_is_0_without_clipping(rng, number):
    spectrum = np.exp(-np.arange(64) / 4)  # 1 .. 1.4e-7, as for features
    a = fit_gaussian(rng.normal(size=(number, 64)) * spectrum + 5)
    scale = np.trace(a.covariance)
    assert frechet_distance(a, a) <= 1e-12 * scale
    # There, an error below 0 would be clipped; here it is visible.
    away = Gaussian(a.mean + np.sqrt(scale / 64), a.covariance)
    assert frechet_distance(a, away) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("number", [5, 400], ids=["singular", "regular"])
def test_covariances_rounded_to_float32_do_no_harm(rng, number):
    """A rounded singular covariance has negative eigenvalues; files of other tools contain such covariances."""
    a, b = (fit_gaussian(rng.normal(size=(number, 64)) @ rng.normal(size=(64, 64))) for _ in range(2))
    rounded = [Gaussian(g.mean, g.covariance.astype(np.float32).astype(np.float64)) for g in (a, b)]
    assert frechet_distance(*rounded) == pytest.approx(frechet_distance(a, b), rel=1e-4)
    assert frechet_distance(rounded[0], rounded[0]) <= 1e-4 * np.trace(a.covariance)


def test_singular_sets_in_orthogonal_planes(rng):
    features = np.zeros((2, 30, 10))
    features[0, :, :4], features[1, :, 4:] = rng.normal(size=(30, 4)), rng.normal(size=(30, 6))
    a, b = map(fit_gaussian, features)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_one_point_many_times_is_a_gaussian_too(rng):
    point, cloud = fit_gaussian(np.full((5, 3), 2.0)), fit_gaussian(rng.normal(size=(50, 3)))
    assert frechet_distance(point, point) == 0
    expected = np.sum((2 - cloud.mean) ** 2) + np.trace(cloud.covariance)
    assert frechet_distance(point, cloud) == pytest.approx(expected, rel=1e-12)


def test_scale_of_the_features_does_not_matter(rng):
    a, b = (rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) for _ in range(2))
    distance = frechet_distance(fit_gaussian(a), fit_gaussian(b))
    for scale in (1e-20, 1e20):
        assert frechet_distance(fit_gaussian(a * scale), fit_gaussian(b * scale)) == pytest.approx(
            distance * scale**2, rel=1e-10
        )


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.zeros((0, 3)), "0 images .*at least 2"),
        (np.zeros((1, 3)), "1 image of .*at least 2"),
        (np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]]), "2 of 3 images are not finite, first those of image 1"),
    ],
    ids=["none", "one", "nan"],
)
def test_vectors_without_a_gaussian_are_a_one_line_error(features, words):
    with pytest.raises(InvalidDataError, match=words) as error:
        fit_gaussian(features)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("features", [np.zeros(3), np.zeros((2, 0)), np.array([["a"]])], ids=["flat", "empty", "text"])
def test_invalid_vectors_are_rejected(features):
    with pytest.raises(ValueError, match="features must be numbers"):
        fit_gaussian(features)


def test_vectors_of_different_dimension_are_an_error(rng):
    with pytest.raises(InvalidDataError, match="of 3 and of 4 dimensions"):
        frechet_distance(fit_gaussian(rng.normal(size=(9, 3))), fit_gaussian(rng.normal(size=(9, 4))))


def test_invalid_statistics_are_rejected():
    sound = Gaussian(np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="not \\[D\\] and \\[D, D\\]"):
        frechet_distance(sound, Gaussian(np.zeros(3), np.eye(4)))
    with pytest.raises(InvalidDataError, match="not finite"):
        frechet_distance(sound, Gaussian(np.full(3, np.nan), np.eye(3)))


def test_both_factors_of_a_covariance_are_factors_of_it(rng):
    """The triangular factor is used if it is accurate, else that of the eigenvectors."""
    sound = fit_gaussian(rng.normal(size=(5, 8))).covariance
    rounded = sound.astype(np.float32).astype(np.float64)
    for covariance, tolerance in ((sound, 1e-14), (rounded, 1e-6)):
        factor = frechet._factor(covariance)
        np.testing.assert_allclose(factor @ factor.T, covariance, atol=tolerance * np.abs(covariance).max())
    assert frechet._factor(sound).shape == (8, 4)
