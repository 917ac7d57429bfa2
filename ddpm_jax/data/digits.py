"""The 1,797 handwritten 8x8 digits of scikit-learn: no download, minutes of training.

The original pixels count the inked cells, 0..16, of a 4x4 block. Here they are uint8 levels, as in every other set;
`to_counts` converts back for metrics on the 0..16 scale.
"""

import numpy as np

from ddpm_jax.data import identity, splits
from ddpm_jax.data.source import ArraySource, NoSuchSplit

NUM_TRAIN = 1500
NUM_TEST = 297
MAX_COUNT = 16


def load_digits(split: str) -> ArraySource:
    """The set "digits": image uint8 [8, 8, 1], label int32 0..9.

    The file lists its digits writer by writer, so the last 297 are by writers that the rest does not contain. The split
    is random and fixed instead, so that "test" can represent perfect samples: its pixel Fréchet distance from "train" on
    the 0..16 scale is 27.51 (the last 297 in file order: 86.67).

    Args:
      split: "train" (1,500 images), "test" (the other 297), "all", or a slice such as "train[:90%]" (`splits.select`).

    Raises:
      NoSuchSplit: unknown split.
    """
    try:
        parts = splits.select(split, {"train": NUM_TRAIN, "test": NUM_TEST, "all": NUM_TRAIN + NUM_TEST})
    except ValueError as error:
        raise NoSuchSplit(f"digits has {error} (`split`, or the field that names this split)") from error
    from sklearn.datasets import load_digits as sklearn_digits  # imported lazily: takes a second

    digits = sklearn_digits()
    # RandomState, unlike Generator, returns the same numbers in every NumPy version.
    order = np.random.RandomState(0).permutation(NUM_TRAIN + NUM_TEST)
    split_order = {"train": order[:NUM_TRAIN], "test": order[NUM_TRAIN:], "all": order}  # each is already shuffled
    chosen = np.concatenate([split_order[name][positions.start : positions.stop] for name, positions in parts])
    images, labels = from_counts(digits.images[chosen])[..., None], digits.target[chosen]
    return ArraySource(
        images,
        labels,
        num_classes=10,
        class_names=[str(digit) for digit in range(10)],
        fingerprint=identity.arrays_fingerprint(images, labels),
        name="digits",
        split=split,
    )


def from_counts(counts: np.ndarray) -> np.ndarray:
    """Counts 0..16 to uint8 levels 0..255, rounded: distinct steps of 15.94, so lossless."""
    return np.rint(np.asarray(counts, np.float64) * (255 / MAX_COUNT)).astype(np.uint8)


def to_counts(images: np.ndarray) -> np.ndarray:
    """uint8 images of any shape to the 0..16 scale, float64.

    Levels between two counts, which a model may generate, keep their fraction: the scale is x * 16 / 255, and only levels
    within rounding error of an integer count are rounded to it. So `to_counts(from_counts(c)) == c` exactly.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    counts = images.astype(np.float64) * (MAX_COUNT / 255)
    whole = np.rint(counts)
    return np.where(from_counts(whole) == images, whole, counts)
