"""Multi-process jobs: every process runs the same program on the devices of its host, and all fail and stop together.

If one process fails alone, the others block in a collective. Information that only one process has (a missing file, a
signal) is therefore broadcast before any process acts on it. With one process, these functions do nothing.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ddpm_jax.runtime import config_changes, run_record, workdir
from ddpm_jax.runtime.errors import DistributedError, ExpectedError, InvalidArgumentError, error_line, os_errors
from ddpm_jax.runtime.mesh import batch_sharding, replicated
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.runtime.run_lock import RunLock

SHARED_FS_TIMEOUT_S = 30.0  # how long a network filesystem may take to show a file written by another host
LOCK_POLL_S = 5.0  # how often processes that wait for the lock of a workdir check it
EXIT_GRACE_S = 10.0  # how long a failed process waits for the others to exit
MESSAGE_BYTES = 1024  # of a broadcast error

# Parts of the error messages of collectives when another process is gone.
_PEER_LOST_PATTERNS = ("gloo", "nccl", "connection reset", "connection closed", "heartbeat", "coordination service")


def is_primary_process() -> bool:
    """Whether this is process 0, which writes files and logs."""
    return jax.process_index() == 0


@contextlib.contextmanager
def show_progress(total: int, unit: str = "images") -> Iterator[Callable[[float], None]]:
    """Context: a function to call with how many of `total` are done, fractions included; process 0 shows it on stderr."""
    with Progress(total, unit) as progress:
        yield progress.update if is_primary_process() else lambda done: None


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Context manager that raises an error of one process in all processes, so that none blocks forever.

    Every process must enter it, and the body must not wait for another process.

    Raises:
      DistributedError, InvalidArgumentError: another process failed; with the message of the first one. A process that
        failed itself raises its own error.
    """
    if jax.process_count() == 1:
        yield
        return
    own = None
    try:
        yield
    except Exception as error:
        own = error
    messages = multihost_utils.process_allgather(_encode(own))
    if own is not None:
        raise own
    for index, message in enumerate(messages):
        if message[0]:
            text = bytes(message[1:]).rstrip(b"\0").decode(errors="ignore")
            kind = InvalidArgumentError if message[0] == InvalidArgumentError.exit_code else DistributedError
            raise kind(f"process {index} stopped: {text}")


def all_processes(mine: bool) -> bool:
    """Logical AND of `mine` over all processes."""
    return mine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def broadcast_ints(numbers: Sequence[int]) -> list[int]:
    """The integers, below 2**31, of process 0; the other processes may see a shared folder later."""
    if jax.process_count() == 1:
        return list(numbers)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    mine = np.zeros(length, np.int32)
    if is_primary_process():
        mine[:] = numbers
    return [int(number) for number in multihost_utils.broadcast_one_to_all(mine)] if length else []


def prepare_workdir(folder: str | os.PathLike, config: dict[str, Any], *, write: bool) -> Path:
    """The workdir of the whole job: created for training, checked for a mode that reads it. No file in it is changed.

    Args:
      folder: workdir.
      config: resolved; the same in every process, except the fields of `config_changes.PER_HOST`.
      write: for training, which continues with `hold_workdir` and `run_record.check_config`: process 0 creates the folder.
        Otherwise the run in it, if any, must match `config`.

    Returns:
      The folder's absolute path.

    Raises:
      InvalidArgumentError: the processes have different configs.
      FileAccessError: the folder cannot be written.
      DistributedError: the processes do not share the folder.
      ConflictError: the folder contains a different run.
    """
    check_same_config(config)
    with raise_on_all_processes():
        if write:
            run_folder = workdir.make_folder(folder) if is_primary_process() else workdir.absolute(folder)
        else:
            run_folder = workdir.absolute(folder)
            run_record.check_config(run_folder, config, resume=False)
    if write:
        check_shared(run_folder)
    return run_folder


@contextlib.contextmanager
def hold_workdir(folder: Path) -> Iterator[Callable[[], None]]:
    """Context manager that excludes other trainings in `folder`, on any machine. Process 0 holds the lock for the job.

    Yields:
      A function that raises if the lock was lost (`RunLock.check`); all processes call it before anything is saved.

    Raises:
      ConflictError: another training holds the lock.
    """
    lock = None
    try:
        lock = _acquire(folder)

        def check() -> None:
            with raise_on_all_processes():
                if lock is not None:
                    lock.check()

        yield check
    finally:
        if lock is not None:
            lock.release()


def _acquire(folder: Path) -> RunLock | None:
    """The lock in process 0, None in the others; all wait for it. Raises ConflictError in all if it is taken."""
    if jax.process_count() == 1:
        return RunLock(folder)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        attempt = pool.submit(RunLock, folder) if is_primary_process() else None
        # A collective fails after waiting 30 s for a process, and the lock may take longer.
        while not all_processes(attempt is None or bool(concurrent.futures.wait([attempt], LOCK_POLL_S).done)):
            pass
        with raise_on_all_processes():
            return attempt.result() if attempt is not None else None


def check_same_config(config: dict[str, Any]) -> None:
    """Raises InvalidArgumentError in all processes unless their configs match, except `config_changes.PER_HOST`."""
    if jax.process_count() == 1:
        return
    fixed = {section: dict(value) if isinstance(value, dict) else value for section, value in config.items()}
    for field in config_changes.PER_HOST:
        section, _, name = field.partition(".")
        if isinstance(fixed.get(section), dict):
            fixed[section].pop(name, None)
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    other = [index for index, theirs in enumerate(digests) if np.any(theirs != digests[0])]
    if other:
        raise InvalidArgumentError(
            f"process {', '.join(map(str, other))} has a different config than process 0: run the same command in every process"
        )


def check_shared(folder: Path) -> None:
    """Raises DistributedError in every process unless all share `folder`, into which process 0 can write."""
    if jax.process_count() == 1:
        return
    name = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    marker_file = folder / f".seen-{name:08x}"
    try:
        with raise_on_all_processes():
            if is_primary_process():
                with os_errors(f"cannot write into {folder}"):
                    marker_file.touch()
        with raise_on_all_processes():
            if not is_primary_process() and not _appears(marker_file):
                raise DistributedError(
                    f"process {jax.process_index()} does not see what process 0 writes into {folder}: "
                    "use a --workdir on a filesystem that all hosts share"
                )
    finally:
        if is_primary_process():
            marker_file.unlink(missing_ok=True)


class PreemptionSync:
    """Synchronizes preemption signals: all processes stop in the same step, one step after the first signal.

    A step reads the result of the previous step, which the devices have usually computed by then, so nothing blocks.
    Reading the current result would make the devices wait for the host in every step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._shape, self._sharding = (mesh.size,), batch_sharding(mesh)
        self._highest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._signal, self._values = 0, self._make_values(0)
        self._before: jax.Array | None = None

    def __call__(self, mine: int) -> int:
        """Shares the signal `mine`, or 0 for none. Every process must call this at the same point of its program.

        Returns:
          The highest signal of the previous call, the same in all processes; 0 at first.
        """
        if mine != self._signal:
            self._signal, self._values = mine, self._make_values(mine)
        before, self._before = self._before, self._highest(self._values)
        return 0 if before is None else int(before)

    def _make_values(self, mine: int) -> jax.Array:
        rows = np.full(self._shape, mine, np.int32)
        return jax.make_array_from_callback(self._shape, self._sharding, lambda index: rows[index])


@contextlib.contextmanager
def distributed_main() -> Iterator[None]:
    """Context manager or decorator for the entry point of a multi-process job: a process that fails alone exits.

    At exit JAX waits minutes for all processes, while these may be blocked in a collective by this one. If all processes
    fail, all exit normally.

    Raises:
      DistributedError: a collective failed because another process is gone.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        threading.Thread(target=_exit_after_grace_period, args=(code,), daemon=True).start()
        # JAX raises either type.
        lost = isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and not isinstance(error, ExpectedError)
        if lost and any(word in str(error).lower() for word in _PEER_LOST_PATTERNS):
            raise DistributedError(
                f"another process of the job is gone ({error_line(error)}); "
                "rerun the same command on every host to resume from the last checkpoint"
            ) from error
        raise


def _exit_after_grace_period(code: int) -> None:
    time.sleep(EXIT_GRACE_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _encode(error: Exception | None) -> np.ndarray:
    """uint8 [MESSAGE_BYTES]: exit code, or 0 for no error, and the message."""
    row = np.zeros(MESSAGE_BYTES, np.uint8)
    if error is not None:
        line = error_line(error, most=MESSAGE_BYTES, kind=not isinstance(error, ExpectedError))
        data = line.encode()[: MESSAGE_BYTES - 1]
        row[0] = getattr(error, "exit_code", 1)
        row[1 : 1 + len(data)] = np.frombuffer(data, np.uint8)
    return row


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + SHARED_FS_TIMEOUT_S
    # Listing the folder refreshes a network filesystem; a query of the file alone may use its cache.
    while file.name not in os.listdir(file.parent):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
