"""KID compared with explicit sums and torch-fidelity, its unbiasedness and its standard error."""

import itertools

import numpy as np
import pytest

from ddpm_jax.metrics.kid import SEED, kernel_distance, squared_mmd
from ddpm_jax.runtime.errors import InvalidDataError


def test_it_agrees_with_explicit_sums(rng):
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)) + 1

    def kernel(a, b):
        return (sum(a[d] * b[d] for d in range(3)) / 3 + 1) ** 3

    within_x = np.mean([kernel(a, b) for a, b in itertools.permutations(x, 2)])
    within_y = np.mean([kernel(a, b) for a, b in itertools.permutations(y, 2)])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


@pytest.mark.parametrize(("num_subsets", "subset_size", "seed"), [(100, 50, SEED), (10, 130, 7)])
def test_it_agrees_with_another_implementation_subset_by_subset(golden, num_subsets, subset_size, seed):
    found = kernel_distance(golden["real"], golden["generated"], num_subsets=num_subsets, subset_size=subset_size, seed=seed)
    np.testing.assert_allclose([found.mean, found.std], golden[f"kid_{num_subsets}_of_{subset_size}"], rtol=1e-10)


def test_symmetries(rng):
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(30, 4)) + 0.5
    distance = squared_mmd(x, y)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert squared_mmd(rng.permutation(x), rng.permutation(y)) == pytest.approx(distance, rel=1e-10)
    assert squared_mmd(y, x) == pytest.approx(distance, rel=1e-10)
    assert squared_mmd(x @ rotation, y @ rotation) == pytest.approx(distance, rel=1e-10)
    assert abs(squared_mmd(x + 3, y + 3) - distance) > 0.1 * distance  # the kernel is not translation-invariant


def test_it_is_unbiased_at_any_size(rng):
    """For many samples of one distribution its mean is 0 within four standard errors; the biased estimate is far off."""
    for size in (3, 20):
        samples = rng.normal(size=(2, 1000, size, 4)) + 0.5
        distances = np.array([squared_mmd(x, y) for x, y in zip(*samples, strict=True)])
        error = distances.std(ddof=1) / np.sqrt(len(distances))
        assert abs(distances.mean()) < 4 * error
        assert 0.2 < np.mean(distances < 0) < 0.8
        diagonal = np.mean([((np.square(x).sum(1) / 4 + 1) ** 3).mean() / size for x in samples[0]])
        assert diagonal > 10 * error  # the diagonal would add this twice


def test_its_expectation_is_the_distance_of_the_distributions(rng):
    """For point masses at x and y the squared discrepancy is k(x, x) + k(y, y) - 2 k(x, y), exactly."""
    x, y = rng.normal(size=(2, 4))
    kernel = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731
    found = kernel_distance(np.tile(x, (40, 1)), np.tile(y, (50, 1)))
    assert found.mean == pytest.approx(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y), rel=1e-10)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("num", "subset_size"), [(200, 20), (60, 1000)], ids=["a tenth of the set", "half of the set"])
def test_the_standard_error_is_correct(rng, num, subset_size):
    """Over samples of two distributions, the standard deviation of the means is as estimated, within a third."""
    found = [
        kernel_distance(rng.normal(size=(num, 3)), rng.normal(size=(num, 3)) + 0.7, num_subsets=20, subset_size=subset_size)
        for _ in range(200)
    ]
    spread = np.std([each.mean for each in found])
    claimed = np.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert 0.75 < claimed / spread < 1.5
    # The standard error over subsets alone, which some tools report, is far too small.
    assert np.mean([each.std for each in found]) / np.sqrt(20) < 0.6 * spread


@pytest.mark.parametrize(("counts", "size"), [((30, 21), 10), ((4, 9), 2)])
def test_small_sets_get_smaller_subsets(rng, counts, size):
    sets = [rng.normal(size=(count, 3)) for count in counts]
    assert kernel_distance(*sets) == kernel_distance(*sets, subset_size=size)


def test_the_seed_determines_the_subsets(rng):
    x, y = rng.normal(size=(2, 40, 3))
    assert kernel_distance(x, y, seed=1) == kernel_distance(x, y, seed=1)
    assert kernel_distance(x, y, seed=1).mean != kernel_distance(x, y, seed=2).mean


def test_bad_input_is_an_error(rng):
    sound = rng.normal(size=(9, 3))
    with pytest.raises(InvalidDataError, match="at least 4 images in each set, not 3"):
        kernel_distance(sound, sound[:3])
    with pytest.raises(InvalidDataError, match="of 3 and of 2 dimensions"):
        kernel_distance(sound, sound[:, :2])
    with pytest.raises(InvalidDataError, match="not finite"):
        kernel_distance(sound, np.full_like(sound, np.nan))
    with pytest.raises(ValueError, match="num_subsets 1"):
        kernel_distance(sound, sound, num_subsets=1)
