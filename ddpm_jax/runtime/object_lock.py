"""The lock of a workdir in a bucket: training_locks/00000001, 00000002 ...; the holder of the highest number has the workdir.

An object store creates an object only if there is none of this name, if it is asked to. So of two processes that take a lock at
the same time exactly one succeeds, unlike on a filesystem that hosts share (`run_lock.py`). Numbers are never used again.

The holder writes its name and a counter into its object every `beat_s` seconds. A process that finds the object unchanged
for `expire_s` seconds creates the next one; clocks of different machines are never compared. A holder that was stopped, and
continues, finds a higher number and ends before it saves. On the machine of a killed holder there is nothing to wait for: the
holder also keeps a file in the temporary folder locked, which the kernel releases.
"""

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import ConflictError, error_line, os_errors

try:
    import fcntl
except ImportError:  # Windows: killed holders are found by their heartbeat only
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def taken_over(expire_s: float, holder: str) -> ConflictError:
    """The error of a training whose lock expired and was taken by another one, `holder`; also for a lock on a disk."""
    return ConflictError(
        f"this process was stopped for over {expire_s:g} s, and another training has taken the workdir: {holder}. "
        "Nothing more is saved"
    )


class ObjectLock(contextlib.AbstractContextManager):
    """The exclusive right to train in a workdir in a bucket, held from construction to `release`.

    Args:
      folder: of the objects.
      record: the name of this process, as in `run_lock.py`.
      beat_s: seconds between two heartbeats.
      expire_s: seconds without a heartbeat after which a holder is considered dead.
      describe: record -> the holder in words.

    Raises:
      ConflictError: another training holds the lock; names it.
      FileAccessError: the bucket cannot be written.
    """

    def __init__(
        self, folder: Path, record: Record, *, beat_s: float, expire_s: float, describe: Callable[[Record], str]
    ) -> None:
        self._folder, self._record, self._describe = folder, record | {"released": False}, describe
        self._beat_s, self._expire_s = beat_s, expire_s
        self._stop, self._lost = threading.Event(), ""
        self._alive = _local_lock(record["token"])
        try:
            with os_errors(f"cannot write {folder}"):
                self._number = self._acquire()
        except BaseException:
            self._close_local()
            raise
        self._beaten = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises ConflictError if another training has taken the workdir. Must be called before anything is saved.

        Raises:
          FileAccessError: the bucket could not be reached for so long that another process may take the workdir.
        """
        with os_errors(f"cannot read {self._folder}"):
            try:
                self._find_successor()
            except OSError:
                if time.monotonic() - self._beaten > self._expire_s / 2:
                    raise
        if self._lost:
            raise taken_over(self._expire_s, self._lost)

    def release(self) -> None:
        """Ends the heartbeat and frees the workdir. May be called twice."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._record["released"] = True
        if not self._lost:
            with contextlib.suppress(OSError):  # then the lock expires
                self._file(self._number).write_bytes(self._content())
        self._close_local()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self) -> int:
        """Takes the lock; returns the number of its object."""
        before = self._numbers()
        last = before[-1] if before else 0
        held = self._file(last).read_bytes() if last else b""
        holder = _parse(held)
        if holder is not None and not holder["released"] and not _was_killed(holder, self._record):
            self._watch(last, holder, held)
        if not storage.create(self._file(last + 1), self._content()):
            raise self._in_use(_parse(self._file(last + 1).read_bytes()))
        for number in before:
            self._file(number).unlink(missing_ok=True)
        return last + 1

    def _watch(self, number: int, holder: Record, held: bytes) -> None:
        """Returns once `holder` has released the lock or has not written for long; raises if it writes."""
        who, seconds = self._describe(holder), self._expire_s
        logger.info(f"the workdir was last used by {who}; waiting up to {seconds:.0f} s for its heartbeat")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._beat_s / 2))
            try:
                now = self._file(number).read_bytes()
            except FileNotFoundError:  # taken by another process
                raise self._in_use(None) from None
            if now != held:
                changed = _parse(now)
                if changed is not None and changed["released"]:
                    return
                raise self._in_use(changed or holder)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            self._record["beats"] += 1
            try:
                self._find_successor()
                if self._lost:
                    return
                self._file(self._number).write_bytes(self._content())
                self._beaten = time.monotonic()
            except OSError as error:  # perhaps a passing failure of the network
                logger.debug(f"no heartbeat in {self._folder}: {error_line(error)}")

    def _find_successor(self) -> None:
        """Sets `_lost`, to the name of the process that has taken the workdir."""
        last = max(self._numbers(), default=self._number)
        if last > self._number:
            holder = _parse(self._file(last).read_bytes())
            self._lost = self._describe(holder) if holder else "another process"

    def _numbers(self) -> list[int]:
        try:
            return sorted(int(file.name) for file in self._folder.iterdir() if file.name.isdigit())
        except FileNotFoundError:
            return []

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08d}"

    def _content(self) -> bytes:
        return (json.dumps(self._record) + "\n").encode()

    def _in_use(self, holder: Record | None) -> ConflictError:
        who = "another process" if holder is None else self._describe(holder)
        advice = "Wait until it ends, stop it, or choose another `workdir`"
        return ConflictError(f"{self._folder.parent} is in use: {who} is training in it. {advice}")

    def _close_local(self) -> None:
        if self._alive is not None:
            with contextlib.suppress(OSError):
                os.unlink(_local_file(self._record["token"]))
            os.close(self._alive)
            self._alive = None


def _local_file(token: str) -> str:
    return os.path.join(tempfile.gettempdir(), f"ddpm_jax-{token}.lock")


def _local_lock(token: str) -> int | None:
    """Descriptor of a locked file of this machine, which shows that this process is running; None if that is impossible."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(_local_file(token), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return descriptor


def _was_killed(holder: Record, own: Record) -> bool:
    """Whether the holder was a process of this machine that does not run any more; False if that is unknown."""
    if fcntl is None or holder["machine"] != own["machine"]:
        return False
    try:
        descriptor = os.open(_local_file(str(holder["token"])), os.O_RDWR)
    except OSError:  # it runs in another container, or with another temporary folder
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(_local_file(str(holder["token"])))
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> Record | None:
    try:
        record = json.loads(content)
    except ValueError:
        return None
    complete = isinstance(record, dict) and {"host", "pid", "since", "machine", "token", "released"} <= record.keys()
    return record if complete else None
