"""The lock of a workdir, for one training at a time: a kernel lock on one machine, a heartbeat between machines.

The training process locks `training.lock` in the workdir with flock. The kernel releases the lock when the process ends for
any reason, so on one machine (including containers, which share the kernel) a killed training never blocks the next.

Between machines flock is unreliable: some network filesystems lack it, some lock per machine, and some keep the lock of a
dead machine for a long time. The holder therefore also writes its name and a counter into the file every `BEAT_S` seconds.
Another machine watches that record: if the counter changes, the workdir is in use; if it is constant for `EXPIRE_S` seconds,
the holder is gone. Clocks of different machines are never compared.

A stopped holder (SIGSTOP, a suspended laptop) keeps the workdir on its own machine. Another machine considers it dead after
`EXPIRE_S` seconds and takes the workdir; when the holder continues, it finds another name in the file and exits before it
saves.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import ConflictError, os_errors
from ddpm_jax.runtime.object_lock import ObjectLock, taken_over

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows: only the heartbeat
    fcntl = None

FILE = "training.lock"
OBJECTS = "training_locks"  # in a bucket; another name, so that a run can be copied from it to a folder
BEAT_S = 5.0  # between two heartbeats
EXPIRE_S = 45.0  # without a heartbeat, after which another machine takes the workdir
EXITING_S = 2.0  # how long the kernel may take to end a process that was killed

Record = dict[str, Any]


class RunLock(contextlib.AbstractContextManager):
    """The exclusive right to train in a workdir, held from construction to `release`.

    Args:
      folder: existing workdir.
      beat_s: seconds between two heartbeats.
      expire_s: seconds without a heartbeat after which a holder on another machine is considered dead.

    Raises:
      ConflictError: another training holds the lock; names it.
      FileAccessError: the file cannot be written.
    """

    def __init__(self, folder: Path, *, beat_s: float = BEAT_S, expire_s: float = EXPIRE_S) -> None:
        self._folder, self._file = folder, folder / FILE
        self._beat_s, self._expire_s = beat_s, expire_s
        self._record = _own_record()
        self._stop = threading.Event()
        with os_errors(f"cannot write {self._file}"):
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._acquire()
            except BaseException:
                os.close(self._descriptor)  # also releases the kernel lock
                raise
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises ConflictError if another training has taken the workdir. Must be called before anything is saved."""
        holder = _read(self._file)
        if holder is not None and holder["token"] != self._record["token"]:
            raise taken_over(self._expire_s, _describe(holder))

    def release(self) -> None:
        """Ends the heartbeat and frees the workdir. May be called twice."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        try:
            holder = _read(self._file)
            if holder is not None and holder["token"] == self._record["token"]:
                os.truncate(self._file, 0)
        except OSError:
            pass  # the folder is gone
        os.close(self._descriptor)

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self) -> None:
        locked, holder = self._flock(), _read(self._file)
        deadline = time.monotonic() + EXITING_S
        while locked is False and (holder is None or holder["machine"] == self._record["machine"]):
            # Held by a process of this machine: running, exiting, or before its first write.
            if time.monotonic() > deadline:
                raise self._in_use(holder)
            time.sleep(0.1)
            locked, holder = self._flock(), _read(self._file)
        certain = bool(locked) and (holder is None or holder["machine"] == self._record["machine"])
        if holder is not None and not certain:
            # A process of this machine that holds the kernel lock may also be watching; it has priority.
            self._watch(holder, self._expire_s + (2 * self._beat_s if locked is False else 0.0))
            locked = locked or self._flock()
        self._write()
        if not certain:  # another machine may have written at the same time: the last one wins
            time.sleep(min(1.0, self._beat_s / 2))
            holder = _read(self._file)
            if holder is not None and holder["token"] != self._record["token"]:
                raise self._in_use(holder)

    def _flock(self) -> bool | None:
        """Whether this process now has the kernel lock; None if the filesystem does not support it."""
        if fcntl is None:
            return None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN) else None
        return True

    def _watch(self, holder: Record, seconds: float) -> None:
        """Returns once `holder` has released the lock or has not written for `seconds`; raises if any process writes."""
        logger.info(f"the workdir was last used by {_describe(holder)}; waiting up to {seconds:.0f} s for its heartbeat")
        deadline, silent = time.monotonic() + seconds, holder
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._beat_s / 2))
            now = _read(self._file)
            if now is not None and now != silent:
                raise self._in_use(now)
            if now is None and _is_released(self._file):
                return
        now = _read(self._file)
        if now is not None and now != silent:
            raise self._in_use(now)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            try:
                holder = _read(self._file)
                if holder is not None and holder["token"] != self._record["token"]:
                    return  # `check` raises
                self._record["beats"] += 1
                self._write()
            except OSError:
                continue  # a full disk or a temporary network failure

    def _write(self) -> None:
        data = (json.dumps(self._record) + "\n").encode()
        # Reopened for each write, to make it visible on network filesystems; not replaced, since flock belongs to the file.
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        finally:
            os.close(descriptor)

    def _in_use(self, holder: Record | None) -> ConflictError:
        who = "another process" if holder is None else _describe(holder)
        return ConflictError(
            f"{self._folder} is in use: {who} is training in it. Wait until it ends, stop it, or choose another `workdir`"
        )


def lock(folder: Path, *, beat_s: float = BEAT_S, expire_s: float = EXPIRE_S) -> RunLock | ObjectLock:
    """The lock of a workdir, on a filesystem or in a bucket. Arguments and errors as those of `RunLock`."""
    if not storage.is_remote(folder):
        return RunLock(folder, beat_s=beat_s, expire_s=expire_s)
    return ObjectLock(folder / OBJECTS, _own_record(), beat_s=beat_s, expire_s=expire_s, describe=_describe)


def _own_record() -> Record:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "machine": _machine(),
        "token": secrets.token_hex(8),
        "beats": 0,
    }


def _describe(holder: Record) -> str:
    return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"


def _read(file: Path) -> Record | None:
    """The record in the file; None if there is none or it is being written."""
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    complete = isinstance(record, dict) and {"host", "pid", "since", "machine", "token"} <= record.keys()
    return record if complete else None


def _is_released(file: Path) -> bool:
    try:
        return file.stat().st_size == 0
    except OSError:
        return True


def _machine() -> str:
    """Identifier of the running kernel: the same in all its containers, different after a reboot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"
