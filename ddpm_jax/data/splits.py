"""Splits for sets outside TFDS: `train`, `test`, and slices such as `train[:90%]` in the syntax of TFDS.

A folder has splits if its subfolders are named train, test, val, valid or validation, and train is one of them. Any other
folder is one split, `train` (or `all`).

A split is sliced in a fixed shuffled order: by a hash of the file's path within a class, interleaved over the classes in
proportion. Every slice therefore has the class proportions of the whole, up to one image per class, and `[:90%]` and
`[90%:]` are disjoint and complete.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
VALIDATION = ("val", "valid", "validation")  # synonyms


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
    if "[" not in spec and "+" not in spec:
        raise ValueError(f"no split {spec!r}: {listed}")
    import tensorflow_datasets as tfds  # imported lazily: takes a second

    infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in known.items()}
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, KeyError) as error:
        why = f" ({str(error).splitlines()[0].rstrip('.')})" if "incompatible" in str(error) else ""
        raise ValueError(f"no split {spec!r}{why}: {listed}") from error
    return [(_own_name(part.splitname, sizes), range(known[part.splitname])[part.from_ : part.to]) for part in parts]


def mixed_order(paths: Sequence[str], labels: np.ndarray | None = None) -> np.ndarray:
    """Indices of the examples in the order that is sliced.

    Args:
      paths: unique names of the examples; the order depends only on these and the labels.
      labels: int [N], or None without classes.

    Returns:
      int64 [N], a permutation.
    """
    labels = np.zeros(len(paths), np.int64) if labels is None else np.asarray(labels)
    hashes = [hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest() for path in paths]
    position = np.empty(len(paths))
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=hashes.__getitem__)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.array(sorted(range(len(paths)), key=lambda index: (position[index], hashes[index])), np.int64)


def _own_name(name: str, sizes: Mapping[str, int]) -> str:
    return name if name in sizes else next(other for other in VALIDATION if other in sizes)
