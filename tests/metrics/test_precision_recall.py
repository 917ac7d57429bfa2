"""Precision and recall: another implementation, brute force, and sets with a known result."""

import numpy as np
import pytest

from ddpm_jax.metrics import precision_recall as module
from ddpm_jax.metrics.precision_recall import Manifold
from ddpm_jax.runtime.errors import InvalidDataError


def precision_recall(real, generated, k=3):
    return Manifold(real, k=k).compare(generated)


@pytest.fixture(params=[None, 7], ids=["at once", "in blocks"])
def blocks(request, monkeypatch):
    """All distances in memory, or a few."""
    if request.param:
        monkeypatch.setattr(module, "BLOCK", 50 * request.param)
        monkeypatch.setattr(module, "COLUMNS", request.param)


def brute_force(real, generated, k):
    def squared(a, b):
        return np.square(a[:, None] - b[None]).sum(axis=-1)

    def inside(vectors, centers):
        radii = np.sort(squared(centers, centers), axis=1)[:, k]
        return (squared(vectors, centers) <= radii).any(axis=1).mean()

    return inside(generated, real), inside(real, generated)


@pytest.mark.parametrize(
    ("sets", "metric", "k"),
    [("", "precision_recall_3", 3), ("", "precision_recall_1", 1), ("narrow_", "narrow_precision_recall_3", 3)],
    ids=["k=3", "k=1", "ties"],
)
def test_it_agrees_with_another_implementation(golden, blocks, sets, metric, k):
    """Exactly: 1e-6 is less than one vector of 300. The narrow sets are integers, mostly on the boundary of a ball."""
    real, generated = (golden[f"{sets}{name}"].astype(np.float32) for name in ("real", "generated"))
    assert precision_recall(real, generated, k=k) == pytest.approx(tuple(golden[metric]), abs=1e-6)


@pytest.mark.parametrize("scale", [1, 1 / 255, 1e3], ids=["levels", "pixels", "large"])
def test_equal_distances_stay_equal(rng, blocks, scale):
    """Gray levels as float32 pixels: rounding moves no vector across a boundary."""
    real, generated = rng.integers(0, 4, (60, 4)), rng.integers(1, 5, (50, 4))
    expected = brute_force(real, generated, 3)
    assert 0 < expected[0] < 1
    scaled = ((vectors * scale).astype(np.float32) for vectors in (real, generated))
    assert precision_recall(*scaled) == pytest.approx(expected, abs=1e-12)


def test_sets_with_a_known_result(rng, blocks):
    real = rng.normal(size=(50, 4))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1000) == (0, 0)
    assert precision_recall(1e4 + real, 1e4 + real[:20])[0] == 1  # far from the origin no digits are lost


def test_duplicates_are_neighbors_of_each_other(rng, blocks):
    """k + 1 duplicates have balls of radius 0; k of them do not."""
    real = rng.normal(size=(50, 64))
    one_image = np.repeat(real[:1], 20, axis=0)  # good images, all the same
    assert precision_recall(real, one_image) == (1, 1 / 50)
    repeated = rng.permutation(np.repeat(real, 4, axis=0))
    assert precision_recall(repeated, real) == (1, 1)  # zero, despite rounding
    few = np.concatenate([np.repeat(real[:1], 3, axis=0), real[:1] + 1e6])
    assert precision_recall(real, few)[1] == 1  # balls that reach to the fourth, a million away


@pytest.mark.parametrize("pairs", [0, 64], ids=["blocks again", "pairs again"])
@pytest.mark.parametrize("scale", [1e-15, 1, 1e18], ids=["below float32", "ordinary", "beyond float32"])
def test_float32_distances_change_no_result(rng, monkeypatch, pairs, scale):
    """Signs, whose distances are even integers, with noise that orders them: less than the rounding of float32 products."""
    monkeypatch.setattr(module, "MOST_PAIRS", pairs)
    monkeypatch.setattr(module, "FLOAT32", 0)  # the tolerance for ties of float32 features; these are float64
    sets = [(rng.choice([-1, 1], (120, 512)) + 1e-5 * rng.normal(size=(120, 512))) * scale for _ in range(2)]
    manifold = Manifold(sets[0])
    radii, result = manifold._radii, manifold.compare(sets[1])
    assert 0 < result[0] < 1
    assert result == brute_force(*sets, 3)
    squared = np.square(sets[0][:, None] - sets[0][None]).sum(axis=-1)
    np.testing.assert_allclose(radii, np.sort(squared, axis=1)[:, 3], rtol=1e-12)


def test_wrong_inputs_are_rejected():
    sound = np.zeros((9, 2))
    with pytest.raises(InvalidDataError, match="3 neighbors and need at least 4 images in each set, not 3"):
        precision_recall(sound[:3], sound)
    with pytest.raises(InvalidDataError, match="of 2 and of 3 dimensions"):
        precision_recall(sound, np.zeros((9, 3)))
    with pytest.raises(InvalidDataError, match="not finite"):
        precision_recall(sound, np.full((9, 2), np.nan))
    with pytest.raises(ValueError, match="k is 0"):
        precision_recall(sound, sound, k=0)
