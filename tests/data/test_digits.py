"""The digits: the split, the scale and the labels."""

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from ddpm_jax.data import digits
from ddpm_jax.data.source import ImageSource
from ddpm_jax.runtime.errors import InvalidArgumentError


def everything(source):
    return source.batch(np.arange(len(source)))


def frechet(a, b):
    """Fréchet distance of two sets of vectors, float64, trace of the square root by eigenvalues."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


def test_splits_partition_the_set():
    train, test = everything(digits.load_digits("train")), everything(digits.load_digits("test"))
    assert train["image"].shape == (1500, 8, 8, 1)
    assert test["image"].shape == (297, 8, 8, 1)

    def multiset(images, labels):
        return sorted(digits.to_counts(i).tobytes() + bytes([k]) for i, k in zip(images, labels, strict=True))

    both = multiset(np.concatenate([train["image"], test["image"]]), np.concatenate([train["label"], test["label"]]))
    original = sklearn_digits()
    counts = original.images[..., None].astype(np.float64)
    assert both == sorted(c.tobytes() + bytes([k]) for c, k in zip(counts, original.target, strict=True))


def test_held_out_digits_have_the_documented_score():
    train, test = (digits.to_counts(everything(digits.load_digits(s))["image"]).reshape(-1, 64) for s in ("train", "test"))
    assert frechet(test, train) == pytest.approx(27.511, abs=0.001)


def test_source_attributes():
    source = digits.load_digits("train")
    assert isinstance(source, ImageSource)
    assert (source.name, source.split, source.image_shape, source.num_classes) == ("digits", "train", (8, 8, 1), 10)
    batch = everything(source)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert set(batch["label"]) == set(range(10))
    assert set(batch["image"].ravel()) == {round(k * 255 / 16) for k in range(17)}  # 127.5 rounds to even in both


def test_counts_round_trip_exactly():
    counts = np.arange(17.0)
    levels = digits.from_counts(counts)
    assert levels[0] == 0
    assert levels[-1] == 255
    np.testing.assert_array_equal(digits.to_counts(levels), counts)


def test_to_counts_is_monotone_and_linear_between_counts():
    levels = np.arange(256, dtype=np.uint8)
    counts = digits.to_counts(levels)
    assert (np.diff(counts) > 0).all()
    # Rounding to a count moves a level by at most half a level: 16 / 255 / 2.
    np.testing.assert_allclose(counts, levels * (16 / 255), atol=16 / 255 / 2 + 1e-12)
    with pytest.raises(ValueError, match="uint8"):
        digits.to_counts(counts)


def test_unknown_split():
    with pytest.raises(InvalidArgumentError, match=r"'validation'.*train"):
        digits.load_digits("validation")
