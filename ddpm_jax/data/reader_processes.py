"""Processes that read batches beside the training process, for decoding that one Python process is too slow for.

The batches of N processes are those of none, in the same order: process i reads the steps i, i + N, i + 2 N ... Images return
through memory that all of them share, one place per prefetched batch, so that the host memory in use is known in advance.

Grain's processes (`mp_prefetch`) are not used. They leave segments in /dev/shm when a run is killed, need a /dev/shm larger
than a container has by default, run the main module of the program again, and took 5.0 s to the first batch of two processes
instead of 1.2 s. The memory here has no name, so that it ends with its last process, and a process ends when the connection to
its parent does.
"""

import collections
import contextlib
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NoReturn

import cloudpickle
import numpy as np

from ddpm_jax.data.source import Batch, ImageSource
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError, error_line

# The paths come first: the module is found where the parent has found it.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ddpm_jax.data import reader_processes as r; r.main()"
_EXIT_S = 5.0  # how long a process may take to end before it is killed
# Ctrl-C and a scheduler's SIGTERM reach the whole group, and the training process needs more batches before it ends.
IGNORED = (signal.SIGINT, signal.SIGTERM)
_ALIGNMENT = 64


def usable_workers(source: ImageSource, num_workers: int) -> int:
    """Number of processes that can read the source: `num_workers`, or 0 for a set in memory.

    A batch of such a set is a copy of milliseconds, and each process would need the whole set.

    Raises:
      UnavailableError: the system is not Unix.
    """
    if num_workers == 0 or getattr(source, "is_in_memory", False):
        return 0
    if os.name != "posix":
        raise UnavailableError("processes that read data need Linux or macOS: set `num_workers=0`")
    return num_workers


def iterate(
    read: Callable[[int], Batch], source: ImageSource, *, start_step: int, num_workers: int, prefetch: int, local_size: int
) -> Iterator[Batch]:
    """Yields read(start_step), read(start_step + 1), ... without end, computed in `num_workers` processes.

    They start with the first batch and end when the iterator is closed. At most `places(num_workers, prefetch)` batches are
    in memory, and those that the caller holds.

    Args:
      read: step -> batch of `source` of this host; a function that cloudpickle can copy.
      source: the set.
      start_step: first step.
      num_workers: number of processes, at least 1.
      prefetch: number of prefetched batches.
      local_size: number of images of a batch of this host.

    Raises:
      InvalidArgumentError: `read` cannot be copied to another process.
      UnavailableError: a process was killed.
      Exception: that of `read`.
    """
    return _iterate(_pickled(read, source, num_workers), source, start_step, num_workers, prefetch, local_size)


def _iterate(
    program: bytes, source: ImageSource, start_step: int, num_workers: int, prefetch: int, local_size: int
) -> Iterator[Batch]:
    size = _aligned(local_size * math.prod(source.image_shape) * np.dtype(source.dtype).itemsize)
    with contextlib.ExitStack() as stack:
        descriptor = stack.enter_context(_shared_memory(size * places(num_workers, prefetch)))
        memory = stack.enter_context(mmap.mmap(descriptor, 0))
        free = collections.deque(range(places(num_workers, prefetch)))
        workers = [stack.enter_context(_Worker(descriptor, size, program, source.name)) for _ in range(num_workers)]
        pending: collections.deque[tuple[_Worker, int]] = collections.deque()
        while True:
            while free:
                worker, place = workers[(start_step + len(pending)) % num_workers], free.popleft()
                worker.request(start_step + len(pending), place)
                pending.append((worker, place))
            worker, place = pending.popleft()
            batch = worker.receive(memory, place)
            free.append(place)
            start_step += 1
            yield batch


def places(num_workers: int, prefetch: int) -> int:
    """Number of batches in host memory: `prefetch`, but at least one per process."""
    return max(prefetch, num_workers)


class _Worker:
    """A process, for the parent. A context manager: at its end the process has ended."""

    def __init__(self, descriptor: int, size: int, program: bytes, name: str):
        self._size, self._name = size, name
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), str(theirs.fileno()), str(descriptor), str(size)]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # inherited, until `main` ignores them
            try:
                self._process = subprocess.Popen(
                    arguments,
                    pass_fds=(theirs.fileno(), descriptor),
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"JAX_PLATFORMS": "cpu"},  # a set of your own that uses JAX must not open the accelerator
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._connection: Connection = Connection(ours.detach())
        self._program: bytes | None = program

    def request(self, step: int, place: int) -> None:
        """Requests the batch of a step at a place of the memory."""
        with contextlib.suppress(OSError):  # `receive` reports it
            if self._program is not None:
                self._connection.send_bytes(self._program)
                self._program = None
            self._connection.send((step, place))

    def receive(self, memory: mmap.mmap, place: int) -> Batch:
        """The batch that was requested first of those not received. Raises as `iterate`."""
        try:
            arrays, shapes, error = cloudpickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as broken:
            code = self._process.wait()
            raise UnavailableError(
                f"a process that reads the data set {self._name} ended with code {code}. If it was killed for lack of memory, "
                "lower `num_workers` or `prefetch`; the same command resumes"
            ) from broken
        if error is not None:
            raise error
        position = place * self._size
        for key, (shape, dtype) in shapes.items():
            count = math.prod(shape)
            arrays[key] = np.frombuffer(memory, dtype, count, position).reshape(shape).copy()
            position += _aligned(count * np.dtype(dtype).itemsize)
        return arrays

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # it reads a file that does not answer
            self._process.kill()
            self._process.wait()


def main() -> NoReturn:
    """The program of a process; its arguments are those of `_Worker`."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    handle, descriptor, size = (int(text) for text in sys.argv[2:])
    connection, memory = Connection(handle), mmap.mmap(descriptor, 0)
    os.close(descriptor)
    # Without cleanup: threads of a pool may be blocked.
    try:
        read = cloudpickle.loads(connection.recv_bytes())
        while True:
            step, place = connection.recv()
            connection.send_bytes(_answer(read, step, memory, place * size, size))
    except (EOFError, OSError):
        os._exit(0)  # the parent closed the connection, or is gone
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send_bytes(cloudpickle.dumps(({}, {}, _portable(error))))
        os._exit(1)


def _answer(read: Callable[[int], Batch], step: int, memory: mmap.mmap, position: int, room: int) -> bytes:
    """The batch as a message: its arrays are in the memory while they fit, and the others in the message."""
    try:
        batch = read(step)
    except Exception as error:
        return cloudpickle.dumps(({}, {}, _portable(error)))
    arrays, shapes, end = {}, {}, position + room
    for key, array in batch.items():
        length = _aligned(array.nbytes)
        if array.nbytes == 0 or position + array.nbytes > end:
            arrays[key] = array
            continue
        np.frombuffer(memory, array.dtype, array.size, position).reshape(array.shape)[...] = array
        shapes[key] = (array.shape, array.dtype.str)
        position += length
    return cloudpickle.dumps((arrays, shapes, None))


def _portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note; another one if it cannot be copied to the parent."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(error_line(error, most=1000, kind=True))
    return error


def _pickled(read: Callable[[int], Batch], source: ImageSource, num_workers: int) -> bytes:
    try:
        return cloudpickle.dumps(read)
    except Exception as error:  # of any type: objects decide themselves
        raise InvalidArgumentError(
            f"`num_workers` is {num_workers}, but the data set {source.name} cannot be copied to other processes "
            f"({error_line(error, kind=True)}): set `num_workers=0`, which reads it in threads"
        ) from error


@contextlib.contextmanager
def _shared_memory(size: int) -> Iterator[int]:
    """A file descriptor of memory without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ddpm_jax_batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
