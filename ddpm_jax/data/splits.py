"""Splits of sets that have none of their own format: `train`, `test`, and slices such as `train[:90%]`, as TFDS writes them.

A folder has splits where the folders directly in it are called train, test, val, valid or validation, train among them.
Every other folder is one split, `train` (or `all`).

The examples of a split are sliced in a fixed order that mixes them: within a class by a hash of the file's path, and over the
classes in proportion. So every slice has the classes of the whole in its own proportions, up to one image of each, and
`[:90%]` and `[90%:]` are disjoint and together everything.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
VALIDATION = ("val", "valid", "validation")  # three names of one thing


def split_folders(names: Sequence[str]) -> list[str]:
    """Those of a folder's subfolders that are splits: all of `names`, or none where they are classes."""
    found = sorted(set(names))
    return found if "train" in found and set(found) <= set(SPLIT_FOLDERS) else []


def select(spec: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """What a split names: (split, positions in its mixed order), one for each part of a sum.

    Args:
      spec: `train`, `train[:90%]`, `train[90%:]`, `train[:1000]`, or a sum of such: `train+test[:10]`.
      sizes: split -> number of examples.

    Raises:
      ValueError: no such split, or not of this form. The message lists the splits.
    """
    known = dict(sizes)
    if own := next((name for name in VALIDATION if name in sizes), ""):  # which may be called by its other names
        known = dict.fromkeys(VALIDATION, sizes[own]) | known
    if spec in known:
        return [(_own_name(spec, sizes), range(known[spec]))]
    listed = f"choose one of {', '.join(sizes)}, or a part such as {next(iter(sizes))}[:90%]"
    if "[" not in spec and "+" not in spec:
        raise ValueError(f"no split {spec!r}: {listed}")
    import tensorflow_datasets as tfds  # a second of import that whole splits need not pay

    infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in known.items()}
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, KeyError) as error:
        why = f" ({str(error).splitlines()[0].rstrip('.')})" if "incompatible" in str(error) else ""
        raise ValueError(f"no split {spec!r}{why}: {listed}") from error
    return [(_own_name(part.splitname, sizes), range(known[part.splitname])[part.from_ : part.to]) for part in parts]


def mixed_order(paths: Sequence[str], labels: np.ndarray | None = None) -> np.ndarray:
    """Indices of the examples in the order in which slices are taken.

    Args:
      paths: what tells the examples apart, unique; the order is a function of these alone.
      labels: int [N], or None without classes.

    Returns:
      int64 [N], a permutation.
    """
    labels = np.zeros(len(paths), np.int64) if labels is None else np.asarray(labels)
    hashes = [hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest() for path in paths]
    place = np.empty(len(paths))
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=hashes.__getitem__)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.array(sorted(range(len(paths)), key=lambda index: (place[index], hashes[index])), np.int64)


def _own_name(name: str, sizes: Mapping[str, int]) -> str:
    return name if name in sizes else next(other for other in VALIDATION if other in sizes)
