"""Reads a safetensors file array by array, so that memory holds one at a time. Nothing in such a file can be executed.

The file is the length of its header (uint64, little endian), the header (JSON: name -> dtype, shape and the first and last
byte of the data), and the data without gaps: https://github.com/huggingface/safetensors, "Format".
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.runtime.errors import InvalidDataError, os_errors

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own reader
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "?",
}
UNSUPPORTED = re.compile("[A-Z][A-Z0-9_]{1,19}")  # other types of the format, such as F8_E4M3 and U16


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of the file, which is read when NumPy asks for it.

    Attributes:
      file: the file.
      offset: its first byte.
      kind: key of DTYPES.
      shape: its shape.
    """

    file: Path
    offset: int
    kind: str
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with os_errors(f"cannot read the weights {self.file}"):
            stored = np.fromfile(self.file, DTYPES[self.kind], math.prod(self.shape), offset=self.offset)
        if self.kind == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        array = stored.reshape(self.shape)
        return array if dtype is None else array.astype(dtype)


def read_safetensors(file: Path) -> dict[str, StoredArray]:
    """The arrays of the file by name, of which only the header is read.

    Raises:
      FileAccessError: the file cannot be read.
      InvalidDataError: the file is truncated or damaged: a header too large, not JSON or without a field, or arrays that
        overlap, leave gaps or end elsewhere than the file. Or an array has a type that is not in `DTYPES`.
    """
    with os_errors(f"cannot read the weights {file}"):
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise InvalidDataError(
                    f"{file} is truncated or damaged: its header would have {length:,} bytes of {max(0, size - 8):,}"
                )
            text = stream.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
        entries = [(name, *_entry(entry)) for name, entry in header.items() if name != "__metadata__"]
    except InvalidDataError as error:
        raise InvalidDataError(f"{file}: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise InvalidDataError(f"{file} is damaged: its header is not that of a safetensors file ({error!s:.80})") from error
    end = 0
    for name, _, _, first, last in sorted(entries, key=lambda entry: entry[3:]):
        if first != end:
            raise InvalidDataError(f"{file} is damaged: the array {name[:80]!r} does not begin where the one before it ends")
        end = last
    if end != size - 8 - length:
        raise InvalidDataError(f"{file} is truncated or damaged: it has {size - 8 - length:,} bytes of data instead of {end:,}")
    return {name: StoredArray(file, 8 + length + first, kind, shape) for name, kind, shape, first, _ in entries}


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, last byte + 1) of an entry of the header."""
    kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if kind not in DTYPES:
        if isinstance(kind, str) and UNSUPPORTED.fullmatch(kind):
            raise InvalidDataError(f"arrays of the type {kind} are not supported: convert them to F32, F16 or BF16")
        raise ValueError(f"{kind!r:.20} is not a type")
    if any(type(number) is not int or number < 0 for number in (*shape, first, last)) or len(shape) > 8:
        raise ValueError("a shape or offset is not a list of non-negative integers")
    if last - first != math.prod(shape) * np.dtype(DTYPES[kind]).itemsize:
        raise ValueError("the size of an array does not match its shape")
    return kind, shape, first, last
