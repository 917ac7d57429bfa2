"""Streaming reads and writes of NumPy's .npz archives, for arrays that do not fit into memory.

The files have the format of np.savez: uncompressed, with ZIP64 for more than 4 GiB.
"""

import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import open_atomic


class Rows(NamedTuple):
    """An array that arrives in consecutive chunks.

    Attributes:
      shape: of the whole array.
      dtype: of the elements.
      chunks: arrays `[n, *shape[1:]]`, together shape[0] rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Iterator[np.ndarray]


def write(file: pathlib.Path, arrays: Mapping[str, np.ndarray | Rows]) -> None:
    """Writes an archive of these arrays atomically.

    Raises:
      OSError: it cannot be written.
      ValueError: the chunks of an array do not match its shape.
    """
    with open_atomic(file) as out, zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, Rows):
                    _write_rows(member, name, array)
                else:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def rows(file: pathlib.Path, name: str, batch_size: int) -> Iterator[np.ndarray]:
    """The rows of one array in order, at most `batch_size` at a time.

    Raises:
      OSError, KeyError, ValueError, zipfile.BadZipFile: no such archive or array, or damaged data (wrong checksum).
    """
    with storage.open_zip(file) as archive, archive.open(f"{name}.npy") as member:
        shape, dtype = _read_header(member)
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for first in range(0, shape[0], batch_size):
            count = min(batch_size, shape[0] - first)
            data = member.read(count * row_bytes)
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
        member.read(1)  # zipfile verifies the checksum at the end of the data


def shape_of(file: pathlib.Path, name: str) -> tuple[int, ...] | None:
    """The shape of one array; None if the array does not exist or the archive is invalid."""
    try:
        with storage.open_zip(file) as archive, archive.open(f"{name}.npy") as member:
            return _read_header(member)[0]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _write_rows(member, name: str, array: Rows) -> None:
    dtype, written = np.dtype(array.dtype), 0
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(array.shape)}
    np.lib.format.write_array_header_1_0(member, header)
    for chunk in array.chunks:
        if chunk.shape[1:] != tuple(array.shape[1:]) or chunk.dtype != dtype:
            raise ValueError(f"{name} is declared as {array.shape} {dtype}, but a chunk is {chunk.shape} {chunk.dtype}")
        member.write(np.ascontiguousarray(chunk).tobytes())
        written += len(chunk)
    if written != array.shape[0]:
        raise ValueError(f"{name} is declared with {array.shape[0]} rows, but has {written}")


def _read_header(member) -> tuple[tuple[int, ...], np.dtype]:
    np.lib.format.read_magic(member)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
    if fortran_order or dtype.hasobject:
        raise ValueError("only arrays in C order can be read row by row")
    return shape, dtype
