"""Identical images in two sets and within one."""

import numpy as np
import pytest

from ddpm_jax.data import duplicates
from ddpm_jax.data.source import ArraySource


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def overlap(one, other, **options):
    return duplicates.find_overlap(duplicates.hash_source(one), other, **options)


def source(images):
    return ArraySource(images, name="s", split="train")


def test_shared_images_are_counted_for_any_order_and_number(rng):
    images = rng.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    other = np.concatenate([rng.integers(0, 256, (5, 4, 4, 1), dtype=np.uint8), images[10:3:-1]])
    assert overlap(source(images), source(other)) == (7, 40, 7, 12, 12)
    assert overlap(source(images), source(other)).share == 7 / 12  # most of the other set is in this one
    assert overlap(source(images[:20]), source(images)).share == 1
    changed = images.copy()
    changed[:, 0, 0, 0] ^= 1  # one level of one pixel
    assert overlap(source(images), source(changed)).shared == 0


def test_a_large_set_is_hashed_in_part_and_the_fraction_estimated(rng):
    """2,000 images that include all 300 held-out ones: 400 hashed, the fraction within four standard errors."""
    images = rng.integers(0, 256, (2000, 4, 4, 1), dtype=np.uint8)
    found = overlap(source(images[rng.permutation(2000)[:300]]), source(images), most=400)
    assert (found.count, found.hashed, found.total) == (300, 400, 2000)
    assert abs(found.share - 1) < 4 * np.sqrt(0.85 / (0.2 * 300))
    assert found.share > 0.5


def test_copies_within_a_set(rng):
    images = rng.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    images[3:] = images[0]
    assert duplicates.count_repeated(duplicates.hash_images(images)) == 3
    # Equal bytes of another shape are a different image.
    assert duplicates.hash_images(images[:1]) != duplicates.hash_images(images[:1].reshape(1, 2, 8, 1))
