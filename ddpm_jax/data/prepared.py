"""Reads sets that `prepare.py` has written: decoded images in ArrayRecord files, with random access.

    dataset.json            shape and type of the images, classes, settings; for each split count, fingerprint and files
    train.npz               label, digest and position in the order of slices of each example, in order
    train-00000.array_record, ...    one record for each image: its bytes in C order

Records are raw and not compressed: reading one is a copy, while a PNG of 64x64 pixels takes 20 times as long.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import local_copy, splits
from ddpm_jax.data.source import ArraySource, Batch, ImageSource, NoSuchSplit, check_indices, fits_in_memory, for_each_chunk
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line, os_errors

FORMAT = 1  # of the files
DESCRIPTION = "dataset.json"
PLAN = "preparing.json"  # settings of an unfinished set
CHUNK = 256  # examples per task of a thread


def load_prepared(
    split: str, *, folder: str, in_memory: bool | str = "auto", num_threads: int | None = None, cache_dir: str = ""
) -> ImageSource:
    """A split of the set that `prepare.prepare` has written to `folder`.

    Args:
      split: as for `image_folder.load_image_folder`; a slice has the same images.
      folder: path of the set; ~ is expanded.
      in_memory: True keeps all images in memory, False reads them on demand, "auto" uses memory for up to
        `source.MEMORY_LIMIT` bytes.
      num_threads: threads that read the set into memory.
      cache_dir: folder of the copy of a set in a bucket (`local_copy.cache_folder`).

    Returns:
      A source whose name is the folder's absolute path. Its fingerprint is a hash of its images and labels.

    Raises:
      NoSuchSplit: the set has no such split.
      FileAccessError: there is no prepared set in the folder, or a file of it is missing.
      InvalidDataError: a file of the set is damaged.
    """
    name = storage.folder_name(folder)
    folder = local_copy.of_folder(name, "a prepared set", cache_dir=cache_dir) if storage.is_remote(name) else name
    about = read_description(folder)
    try:
        shape, names, parts = tuple(about["image_shape"]), about["class_names"], about["splits"]
        chosen = _choose(split, folder, parts)
        index = {name: _read_index(folder, name, part) for name, part in parts.items()}
        every = _concatenate([index[name] for name in parts])
        files = [(os.path.join(folder, file["name"]), file) for part in parts.values() for file in part["files"]]
        rows = np.concatenate(
            [_offset(parts, name) + index[name]["order"][range_.start : range_.stop] for name, range_ in chosen]
        )
        rows.sort()
        labels = every["labels"][rows] if names else None
        attributes = {
            "num_classes": len(names),
            "class_names": names,
            "fingerprint": fingerprint(every["digests"][rows], labels),
            "value_range": about["value_range"],
            "name": name,
            "split": split,
        }
    except (KeyError, TypeError, IndexError) as error:
        raise InvalidDataError(
            f"{folder}/{DESCRIPTION} is damaged ({error_line(error, kind=True)}): prepare the set again"
        ) from error
    records = _open(files)
    if not fits_in_memory(in_memory, len(rows) * math.prod(shape)):
        return RecordSource(records, rows, labels, image_shape=shape, **attributes)
    images = np.empty((len(rows), *shape), np.uint8)

    def read(indices: range) -> None:
        images[indices.start : indices.stop] = _decode(records, rows[indices.start : indices.stop], shape, folder)

    for_each_chunk(read, len(rows), chunk=CHUNK, title=f"{folder}: read", num_threads=num_threads)
    return ArraySource(images, labels, **attributes)


class RecordSource:
    """A set whose batches are read from ArrayRecord files.

    Args:
      records: an `ArrayRecordDataSource`.
      rows: int64 [N], the record of each example.
      labels: int32 [N], or None without classes.
      image_shape: (H, W, C).
      num_classes, class_names, fingerprint, value_range, name, split: as for `ImageSource`.
    """

    def __init__(
        self,
        records: Any,
        rows: np.ndarray,
        labels: np.ndarray | None,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        class_names: Sequence[str],
        fingerprint: str,
        value_range: Sequence[float],
        name: str,
        split: str,
    ):
        self.name, self.split, self.image_shape, self.dtype = name, split, image_shape, "uint8"
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        self.fingerprint, self.value_range = fingerprint, tuple(value_range)
        self._records, self._rows, self._labels = records, rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray) -> Batch:
        """See `ImageSource.batch`. Raises InvalidDataError for a damaged record."""
        indices = check_indices(indices, len(self))
        batch = {"image": _decode(self._records, self._rows[indices], self.image_shape, self.name)}
        if self._labels is not None:
            batch["label"] = self._labels[indices]
        return batch


def read_description(folder: str) -> dict[str, Any]:
    """The content of dataset.json.

    Raises:
      FileAccessError: there is none: no folder, no prepared set, or one that is not finished.
      InvalidDataError: it is damaged or of a later version.
    """
    file = os.path.join(folder, DESCRIPTION)
    if not os.path.exists(file):
        state = "an unfinished set: run the command that prepares it again" if is_unfinished(folder) else "no prepared set"
        raise FileAccessError(
            f"{folder} contains {state} (`data_dir`): `ddpm-jax prepare --from=PHOTOS --to={folder}` makes one"
        )
    with os_errors(f"cannot read {file}"), open(file, encoding="utf-8") as text:
        try:
            about = json.load(text)
            version = int(about["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(f"{file} is damaged ({error_line(error, kind=True)}): prepare the set again") from error
    if version != FORMAT:
        raise InvalidDataError(f"{file} has format {version}, and this version reads format {FORMAT}: prepare the set again")
    return about


def is_unfinished(folder: str) -> bool:
    """Whether the folder contains a set whose preparation was interrupted."""
    return os.path.exists(os.path.join(folder, PLAN))


def digest(image: np.ndarray) -> bytes:
    """16 bytes that identify an image."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def fingerprint(digests: np.ndarray, labels: np.ndarray | None) -> str:
    """Fingerprint of examples with these digests, uint8 [N, 16], and labels [N], in order: 64 hex digits."""
    found = hashlib.sha256(digests.tobytes())
    if labels is not None:
        found.update(labels.astype(np.int32).tobytes())
    return found.hexdigest()


def _choose(split: str, folder: str, parts: Mapping[str, Any]) -> list[tuple[str, range]]:
    """(split, positions in its order of slices) for each term of a split."""
    sizes = {name: int(part["count"]) for name, part in parts.items()}
    if split == "all":
        return [(name, range(size)) for name, size in sizes.items()]
    try:
        return splits.select(split, sizes)
    except ValueError as error:
        names = ", ".join([*sizes, "all"])
        raise NoSuchSplit(
            f"{folder} has no split {split!r} (`split`, or the field that names this split): its splits are {names}, and "
            "each has slices such as train[:90%]"
        ) from error


def _offset(parts: Mapping[str, Any], name: str) -> int:
    """The first record of a split."""
    names = list(parts)
    return sum(int(parts[other]["count"]) for other in names[: names.index(name)])


def _read_index(folder: str, name: str, part: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of SPLIT.npz."""
    file = os.path.join(folder, f"{name}.npz")
    try:
        with open(file, "rb") as content, np.load(content) as arrays:
            found = {key: arrays[key] for key in ("labels", "digests", "order")}
    except FileNotFoundError as error:
        raise FileAccessError(f"{file} is missing: prepare the set again") from error
    except Exception as error:  # zipfile and NumPy raise many types
        raise InvalidDataError(f"{file} is damaged ({error_line(error, kind=True)}): prepare the set again") from error
    if any(len(array) != part["count"] for array in found.values()):
        raise InvalidDataError(f"{file} has {len(found['order']):,} examples, not {part['count']:,}: prepare the set again")
    return found


def _concatenate(indices: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([index[key] for index in indices]) for key in ("labels", "digests")}


def _open(files: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """The records of the files, in order; each is opened when it is first read."""
    from array_record.python import array_record_data_source  # imported lazily: takes a second

    for path, about in files:
        size = os.path.getsize(path) if os.path.exists(path) else None
        if size is None:
            raise FileAccessError(f"{path} is missing: prepare the set again")
        if size != about["bytes"]:
            raise InvalidDataError(f"{path} has {size:,} bytes, not {about['bytes']:,}: prepare the set again")
    return array_record_data_source.ArrayRecordDataSource([f"{path}[0:{about['count']}]" for path, about in files])


def _decode(records: Any, rows: np.ndarray, shape: tuple[int, int, int], folder: str) -> np.ndarray:
    """The images of these records: uint8 [n, H, W, C]."""
    images = np.empty((len(rows), *shape), np.uint8)
    try:
        for row, content in enumerate(records.__getitems__(rows.tolist()) if len(rows) else ()):
            images[row] = np.frombuffer(content, np.uint8).reshape(shape)
    except Exception as error:  # the reader has no specific exception
        raise InvalidDataError(
            f"a record in {folder} cannot be read ({error_line(error, kind=True)}): prepare the set again"
        ) from error
    return images
