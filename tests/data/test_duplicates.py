"""The same images in two sets, and within one."""

import numpy as np
import pytest

from ddpm_jax.data import duplicates
from ddpm_jax.data.source import ArraySource


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def source(images):
    return ArraySource(images, name="s", split="train")


def test_shared_images_are_counted_whatever_their_order_and_number(rng):
    images = rng.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    other = np.concatenate([rng.integers(0, 256, (5, 4, 4, 1), dtype=np.uint8), images[10:3:-1]])
    assert duplicates.find_overlap(source(images), source(other)) == (7, 40, 12, 12)
    assert duplicates.find_overlap(source(images), source(other)).share == 7 / 40
    assert duplicates.find_overlap(source(images[:20]), source(images)).share == 1
    changed = images.copy()
    changed[:, 0, 0, 0] ^= 1  # one level of one pixel
    assert duplicates.find_overlap(source(images), source(changed)).shared == 0


def test_a_large_set_is_looked_at_in_part_and_the_share_estimated(rng):
    """2,000 images of which all 300 held out are: 400 looked at, the share within four of its standard errors."""
    images = rng.integers(0, 256, (2000, 4, 4, 1), dtype=np.uint8)
    found = duplicates.find_overlap(source(images[rng.permutation(2000)[:300]]), source(images), most=400)
    assert (found.count, found.hashed, found.total) == (300, 400, 2000)
    assert abs(found.share - 1) < 4 * np.sqrt(0.85 / (0.2 * 300))
    assert 0.5 < found.share


def test_copies_within_a_set(rng):
    images = rng.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    images[3:] = images[0]
    assert duplicates.count_repeated(duplicates.hash_images(images)) == 3
    # Equal bytes of another shape are another image.
    assert duplicates.hash_images(images[:1]) != duplicates.hash_images(images[:1].reshape(1, 2, 8, 1))
