"""Arrays exchanged between the processes of a job, such as the statistics of each host's images. With one process, copies.

Every process must call these functions at the same point of its program; each returns the same on all of them, to the bit.
Bytes are sent, because JAX would round float64 to float32.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

CHUNK_BYTES = 2**26  # of one process in one collective: N times as much is in memory


def own_part(count: int) -> range:
    """The part of 0 .. count-1 of this process; those of all processes are consecutive and differ by at most one in length."""
    index, number = jax.process_index(), jax.process_count()
    return range(count * index // number, count * (index + 1) // number)


def gather(array: np.ndarray) -> list[np.ndarray]:
    """The arrays of all processes, in their order; they may differ in shape and type."""
    array = np.asarray(array)
    if jax.process_count() == 1:
        return [array]
    about = np.frombuffer(f"{array.dtype.str} {' '.join(map(str, array.shape))}".ljust(128).encode(), np.uint8)
    headers = [bytes(row).decode().split() for row in multihost_utils.process_allgather(about)]
    dtypes = [np.dtype(header[0]) for header in headers]
    shapes = [tuple(int(side) for side in header[1:]) for header in headers]
    sizes = [int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    mine = np.frombuffer(array.tobytes(), np.uint8)
    parts: list[list[bytes]] = [[] for _ in sizes]
    for first in range(0, max(sizes), CHUNK_BYTES):
        length = min(CHUNK_BYTES, max(sizes) - first)
        row = np.zeros(length, np.uint8)
        own = mine[first : first + length]
        row[: len(own)] = own
        for part, found, size in zip(parts, multihost_utils.process_allgather(row), sizes, strict=True):
            part.append(found[: max(0, min(length, size - first))].tobytes())
    return [
        np.frombuffer(b"".join(part), dtype).reshape(shape) for part, dtype, shape in zip(parts, dtypes, shapes, strict=True)
    ]


def concatenate(rows: np.ndarray) -> np.ndarray:
    """The rows [n, ...] of all processes, in their order. A process without rows may have any shape."""
    found = gather(rows)
    return np.concatenate([array for array in found if len(array)] or found[:1])


def total(array: np.ndarray) -> np.ndarray:
    """The sum over the processes, added in their order, of arrays of one shape and type."""
    flat = np.ascontiguousarray(array).reshape(-1)
    result = np.empty_like(flat)
    length = max(1, CHUNK_BYTES // (flat.itemsize * jax.process_count()))
    for first in range(0, len(flat), length):
        parts = gather(flat[first : first + length])
        result[first : first + length] = sum(parts[1:], start=parts[0])
    return result.reshape(array.shape)
