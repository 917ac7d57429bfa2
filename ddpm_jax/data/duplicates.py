"""Finds identical images, pixel by pixel, between two sets and within one.

Images are compared by the 128-bit BLAKE2b hash of their bytes at the model's resolution, which takes 16 bytes per image.
Copies in another lossy format, crops and mirror images count as different.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.source import ImageSource

MOST_HASHED = 50_000  # images per set that is not in memory: more would take as long as an epoch
BATCH = 256
HASH_BYTES = 16


class Overlap(NamedTuple):
    """The overlap of two sets.

    Attributes:
      shared: images of the first set found among the hashed images of the second.
      count: images of the first set.
      found: hashed images of the second set found in the first.
      hashed: images of the second set that were hashed.
      total: images of the second set.
    """

    shared: int
    count: int
    found: int
    hashed: int
    total: int

    @property
    def share(self) -> float:
        """Fraction of the first set that is in the second, or of the second in the first, 0..1: the larger of the two.

        An estimate if not all of the second set was hashed.
        """
        if not self.count or not self.hashed:
            return 0.0
        return min(1.0, max(self.shared * self.total / (self.count * self.hashed), self.found / self.hashed))


def hash_images(images: np.ndarray) -> list[bytes]:
    """A hash for each image of uint8 [N, H, W, C]; equal for equal pixels and shapes."""
    shape = str(images.shape[1:]).encode()
    return [hashlib.blake2b(np.ascontiguousarray(image), digest_size=HASH_BYTES, key=shape).digest() for image in images]


def digest(hashes: list[bytes]) -> str:
    """The SHA-256 of the hashes of images, in order: 64 hex digits that identify the images."""
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def count_repeated(hashes: Iterable[bytes]) -> int:
    """Number of hashes that repeat an earlier one."""
    hashes = list(hashes)
    return len(hashes) - len(set(hashes))


def hash_source(source: ImageSource, most: int | None = None) -> list[bytes]:
    """Hashes of a set's images, in order; at most `most` of them, spread evenly over the set."""
    indices = np.arange(len(source))
    if most is not None and len(source) > most:
        indices = np.arange(most) * len(source) // most
    found = []
    for first in range(0, len(indices), BATCH):
        found += hash_images(source.batch(indices[first : first + BATCH])["image"])
    return found


def find_overlap(hashes: list[bytes], other: ImageSource, *, most: int | None = MOST_HASHED) -> Overlap:
    """The overlap of a set with these hashes and `other`, of which at most `most` images are hashed (None: all)."""
    own, others = hashes, hash_source(other, most)
    in_own, in_others = set(own), set(others)
    shared, found = (sum(image in known for image in hashes) for known, hashes in ((in_others, own), (in_own, others)))
    return Overlap(shared, len(own), found, len(others), len(other))
