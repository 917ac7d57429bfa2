"""Identity of the data set of a run or of statistics: count, classes in order, and a fingerprint.

A name is not enough: for a folder it is the path, and the files may change. The fingerprint is a hash of the content, so
that a copied folder is the same set and a changed one is not.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.data.source import ImageSource

Identity = dict[str, Any]


def identity_of(source: ImageSource) -> Identity:
    """{"name", "split", "count", "class_names", "fingerprint", "value_range"}, JSON-compatible."""
    return {
        "name": source.name,
        "split": source.split,
        "count": len(source),
        "class_names": list(source.class_names),
        "fingerprint": source.fingerprint,
        "value_range": list(source.value_range),
    }


def class_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describes the differences between the classes of two sets; "" if equal. The order matters: it defines the labels."""
    before, after = list(old["class_names"]), list(new["class_names"])
    if before == after:
        return ""
    gone, added = [name for name in before if name not in after], [name for name in after if name not in before]
    parts = [f"{'no longer there: ' if names is gone else 'new: '}{_listed(names)}" for names in (gone, added) if names]
    return "; ".join(parts) or f"in another order: {_listed(before)} before, {_listed(after)} now"


def content_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describes the differences between the images of two sets; "" if equal or unknown."""
    if not old["fingerprint"] or not new["fingerprint"] or old["fingerprint"] == new["fingerprint"]:
        return ""
    if old["count"] != new["count"]:
        return f"{old['count']:,} images before, {new['count']:,} now, so their order in training changes too"
    return f"as many images as before, {new['count']:,}, but different ones"


def files_fingerprint(files: Iterable[tuple[str, bytes]]) -> str:
    """Fingerprint of (path within the set, digest of the content) in order: 64 hex digits."""
    digest, parts = hashlib.sha256(), []
    for path, content in files:  # millions: many in one call
        parts += (path.encode("utf-8", "surrogateescape"), b"\0", content)
        if len(parts) > 10_000:
            digest.update(b"".join(parts))
            parts.clear()
    digest.update(b"".join(parts))
    return digest.hexdigest()


def arrays_fingerprint(images: np.ndarray, labels: np.ndarray | None) -> str:
    """Fingerprint of a set in memory: 64 hex digits."""
    digest = hashlib.sha256(repr((images.shape, images.dtype.str)).encode())
    digest.update(np.ascontiguousarray(images))
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, np.int32))
    return digest.hexdigest()


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
