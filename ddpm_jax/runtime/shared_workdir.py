"""The workdir of a job of one or more processes: one config, one folder that all see, one training at a time."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax.runtime import config_changes, run_record, workdir
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.distributed import all_processes, is_primary_process, raise_on_all_processes
from ddpm_jax.runtime.errors import DistributedError, InvalidArgumentError, os_errors
from ddpm_jax.runtime.object_lock import ObjectLock
from ddpm_jax.runtime.run_lock import RunLock, lock

SHARED_FS_TIMEOUT_S = 30.0  # how long a network filesystem may take to show a file written by another host
LOCK_POLL_S = 5.0  # how often processes that wait for the lock of a workdir check it


def prepare_workdir(folder: str | os.PathLike, config: dict[str, Any], *, write: bool) -> Path:
    """The workdir of the whole job: created for training, checked for a mode that reads it. No file in it is changed.

    Args:
      folder: workdir; its absolute path is returned.
      config: resolved; the same in every process, except the fields of `config_changes.PER_HOST`.
      write: for training, which continues with `hold_workdir` and `run_record.check_config`: process 0 creates the folder.
        Otherwise the run in it, if any, must match `config`.

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
    held = None
    try:
        held = _acquire(folder)

        def check() -> None:
            with raise_on_all_processes():
                if held is not None:
                    held.check()

        yield check
    finally:
        if held is not None:
            held.release()


def _acquire(folder: Path) -> RunLock | ObjectLock | None:
    """The lock in process 0, None in the others; all wait for it. Raises ConflictError in all if it is taken."""
    if jax.process_count() == 1:
        return lock(folder)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        attempt = pool.submit(lock, folder) if is_primary_process() else None
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
                with os_errors(f"cannot write into {folder}"), open_atomic(marker_file):
                    pass
        with raise_on_all_processes():
            if not is_primary_process() and not _appears(marker_file):
                raise DistributedError(
                    f"process {jax.process_index()} does not see what process 0 writes into {folder}: "
                    "use a `workdir` on a filesystem that all hosts share"
                )
    finally:
        if is_primary_process():
            marker_file.unlink(missing_ok=True)


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + SHARED_FS_TIMEOUT_S
    # Listing the folder refreshes a network filesystem; a query of the file alone may use its cache.
    while file.name not in {entry.name for entry in file.parent.iterdir()}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
