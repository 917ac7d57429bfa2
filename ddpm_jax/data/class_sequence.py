"""Class labels for generated images in given proportions, which every prefix of the sequence has as well.

Class i has the proportion p_i = counts_i / total. Among the first n images it occurs a_i times, with

    |a_i - n p_i| <= 1 - 1 / (2K - 2)        for all i and n, K classes

(Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics 32, whose algorithm this is). The counts are exact
wherever all n p_i are integers and within one image elsewhere, and a longer sequence extends a shorter one. Equal
proportions give 0, 1, ..., K-1, 0, 1, ...
"""

import numpy as np


def class_sequence(counts: np.ndarray, length: int) -> np.ndarray:
    """The classes of `length` images: int32 [length].

    Args:
      counts: int [K], at least 0 and not all 0: the proportions, for example the number of images per class of a set.
      length: number of images, 0 or more.

    Raises:
      ValueError: invalid counts.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or counts.size == 0 or counts.min() < 0:
        raise ValueError(f"counts must be integers [K], 0 or more, not {counts.dtype} {list(counts.shape)}")
    counts = reduced(counts)
    present = np.flatnonzero(counts)
    if not present.size:
        raise ValueError("all classes have count 0")
    if len(set(counts[present])) == 1:
        return present[np.arange(length) % present.size].astype(np.int32)
    # In integers, all multiplied by total (2K - 2): equal on every machine.
    weight, total, scale = counts[present], int(counts.sum()), 2 * present.size - 2
    sequence, lead = np.empty(length, np.int64), np.zeros(present.size, np.int64)  # lead: (n p_i - a_i) total
    for index in range(length):
        lead += weight
        eligible = lead * scale >= total
        deadline = np.where(eligible, (total * (scale - 1) - lead * scale) / weight, np.inf)
        sequence[index] = chosen = int(np.argmin(deadline))
        lead[chosen] -= total
    return present[sequence].astype(np.int32)


def reduced(counts: np.ndarray) -> np.ndarray:
    """int64 [K]: the same proportions as the smallest integers."""
    counts = np.asarray(counts, np.int64)
    return counts // max(1, int(np.gcd.reduce(counts)))
