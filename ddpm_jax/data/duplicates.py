"""Which images are the same, pixel by pixel: between two sets, and within one.

Images are compared by the 128-bit BLAKE2b hash of their bytes at the model's resolution, so a set of millions takes 16
bytes an image. Copies in another file format, crop or mirror image are other images here.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.source import ImageSource

MOST_HASHED = 50_000  # images of a set that does not fit into memory: more would take as long as an epoch
BATCH = 256


class Overlap(NamedTuple):
    """What two sets share.

    Attributes:
      shared: images of the first set found among those of the second that were looked at.
      count: images of the first set.
      found: images of the second set, of those looked at, found in the first.
      hashed: images of the second set that were looked at.
      total: images of the second set.
    """

    shared: int
    count: int
    found: int
    hashed: int
    total: int

    @property
    def share(self) -> float:
        """Share of the first set that is in the second, or of the second in the first, 0..1: the larger of the two.

        An estimate where not all of the second were looked at.
        """
        if not self.count or not self.hashed:
            return 0.0
        return min(1.0, max(self.shared * self.total / (self.count * self.hashed), self.found / self.hashed))


def hash_images(images: np.ndarray) -> list[bytes]:
    """A hash for each image of uint8 [N, H, W, C]; equal for equal pixels and shapes."""
    shape = str(images.shape[1:]).encode()
    return [hashlib.blake2b(np.ascontiguousarray(image), digest_size=16, key=shape).digest() for image in images]


def count_repeated(hashes: Iterable[bytes]) -> int:
    """How many are copies of an earlier one."""
    hashes = list(hashes)
    return len(hashes) - len(set(hashes))


def hash_source(source: ImageSource, most: int | None = None) -> list[bytes]:
    """Hashes of a set's images, in order; where there are more than `most`, of as many spread evenly over the set."""
    indices = np.arange(len(source))
    if most is not None and len(source) > most:
        indices = np.arange(most) * len(source) // most
    found = []
    for first in range(0, len(indices), BATCH):
        found += hash_images(source.batch(indices[first : first + BATCH])["image"])
    return found


def find_overlap(hashes: list[bytes], other: ImageSource, *, most: int | None = MOST_HASHED) -> Overlap:
    """How many images of a set, of these hashes, are in `other`, of which at most `most` are looked at (None: all)."""
    mine, theirs = hashes, hash_source(other, most)
    in_mine, in_theirs = set(mine), set(theirs)
    shared, found = (sum(image in known for image in hashes) for known, hashes in ((in_theirs, mine), (in_mine, theirs)))
    return Overlap(shared, len(mine), found, len(theirs), len(other))
