"""Splits for sets outside TFDS: `train`, `test`, and slices such as `train[:90%]` in the syntax of TFDS.

A folder has splits if its subfolders are named train, test, val, valid or validation, and train is one of them. Any other
folder is one split, `train` (or `all`).

A split is sliced in a fixed shuffled order: by a hash of the file's path within a class, interleaved over the classes in
proportion. Every slice therefore has the class proportions of the whole, up to one image per class, and `[:90%]` and
`[90%:]` are disjoint and complete.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
VALIDATION = ("val", "valid", "validation")  # synonyms
_TERM = re.compile(r"(?P<name>[\w-]+)(\[(?P<begin>-?[\d_.]+%?)?:(?P<end>-?[\d_.]+%?)?\])?")


def split_folders(names: Sequence[str]) -> list[str]:
    """The subfolders that are splits: all of `names`, or none if they are classes."""
    found = sorted(set(names))
    return found if "train" in found and set(found) <= set(SPLIT_FOLDERS) else []


def select(spec: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """Parses a split: (split, positions in its shuffled order), one for each term of a sum.

    Args:
      spec: `train`, `train[:90%]`, `train[90%:]`, `train[:1000]`, or a sum of these: `train+test[:10]`.
      sizes: split -> number of examples.

    Raises:
      ValueError: unknown split or invalid syntax. The message lists the splits.
    """
    known = dict(sizes)
    if own := next((name for name in VALIDATION if name in sizes), ""):  # accept its synonyms
        known = dict.fromkeys(VALIDATION, sizes[own]) | known
    if spec in known:
        return [(_own_name(spec, sizes), range(known[spec]))]
    listed = f"choose one of {', '.join(sizes)}, or a part such as {next(iter(sizes))}[:90%]"
    found = []
    for term in re.split(r"\s*\+\s*", spec):
        match = _TERM.fullmatch(term)
        if not match or match["name"] not in known:
            raise ValueError(f"no split {spec!r}: {listed}")
        size = known[match["name"]]
        try:
            begin, end = _bounds(match["begin"], match["end"], size)
        except ValueError as error:
            raise ValueError(f"no split {spec!r}: {listed}") from error
        if max(begin, end) > size or min(begin, end) < 0:
            raise ValueError(f"no split {spec!r} (incompatible with {size} examples): {listed}")
        found.append((_own_name(match["name"], sizes), range(begin, end)))
    return found


def _bounds(begin: str | None, end: str | None, size: int) -> tuple[int, int]:
    """The positions of the two texts of a slice; None is the start or the end. One "%" makes both a percentage, as in TFDS."""
    percent = "%" in (begin or "") + (end or "")

    def position(text: str) -> int:
        if percent and abs(float(text.rstrip("%"))) > 100:
            raise ValueError(f"{text} is not between -100% and 100%")
        value = round(float(text.rstrip("%")) * size / 100.0) if percent else int(text)
        return value + size if value < 0 else value

    return position(begin) if begin else 0, position(end) if end else size


def mixed_order(paths: Sequence[str], labels: np.ndarray | None = None) -> np.ndarray:
    """Indices of the examples in the order that is sliced.

    Args:
      paths: unique names of the examples; the order depends only on these and the labels.
      labels: int [N], or None without classes.

    Returns:
      int64 [N], a permutation.
    """
    labels = np.zeros(len(paths), np.int64) if labels is None else np.asarray(labels)
    digests = b"".join(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest() for path in paths)
    # As bytes are compared: the first of four big-endian integers decides first, which is the last key of lexsort.
    hashes = np.frombuffer(digests, ">u8").reshape(-1, 4).T[::-1].astype(np.uint64)
    by_label = np.lexsort((*hashes, labels))
    _, first, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    position = np.empty(len(paths))
    position[by_label] = (np.arange(len(paths)) - np.repeat(first, counts) + 0.5) / np.repeat(counts, counts)
    return np.lexsort((*hashes, position)).astype(np.int64)


def _own_name(name: str, sizes: Mapping[str, int]) -> str:
    return name if name in sizes else next(other for other in VALIDATION if other in sizes)
