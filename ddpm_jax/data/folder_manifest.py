"""A manifest of what the first reading of a folder found, so that later starts read only new and changed files.

The first start reads every file once, which takes hours for millions of files. What it finds is kept in the user's cache
folder, also if it is stopped: the digest of each file, the lowest and highest level of its image, and the levels of deep gray
files (only the digests, for a folder of arrays). Every start lists the folder and asks for size, time of the last write and
time of the last change of status of each file. Only a file that agrees in all three is not read again, so that the fingerprint
of the set is that of the present files. A file in a bucket must agree in size and checksum.

A file that is written twice within the resolution of the clock may have the same times. As in Git, a file that was written
within `MARGIN_S` before it was read is therefore read again at the next start. Broken files are read at every start.
"""

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.file_names import join
from ddpm_jax.data.value_range import DeepLevels
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import error_line, os_errors

logger = logging.getLogger(__name__)

FORMAT = 1
MARGIN_S = 2.0
CHUNK = 4096  # files per task of a thread
MIN_THREADS = 16  # that request times: a network drive takes long to answer, and a local disk is not slower with more of them
STALE_S = 86_400  # age of temporary files of processes that were killed
_NEVER = -1  # instead of the size: of a file that must be read
# The arrays of a manifest of N files, D of them deep: name -> (type, length or None, shape of an entry).
_ARRAYS = {
    "names": ("u1", None, ()),
    "states": ("i8", "N", (3,)),
    "digests": ("u1", "N", (32,)),
    "extremes": ("u1", "N", (2,)),
    "deep": ("i8", "D", ()),
    "deep_levels": ("f8", "D", (3,)),
    "levels": ("f8", None, ()),
}


class FileFacts:
    """What was found in N files, in order.

    Attributes:
      digests: uint8 [N, 32], SHA-256 of the content.
      least: uint8 [N], lowest level of the image.
      most: uint8 [N], highest level.
      deep: index -> levels, for gray files of more than 8 bits.
      levels: the range with which `least` and `most` of deep files were computed; () for none.
    """

    def __init__(self, count: int):
        self.digests = np.zeros((count, 32), np.uint8)
        self.least, self.most = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
        self.deep: dict[int, DeepLevels] = {}
        self.levels: tuple[float, ...] = ()


class FolderManifest:
    """The manifest of a folder, as a file in the cache.

    Args:
      folder: its path or gs:// name.
      paths: of the files within it, in order.
      settings: what else `FileFacts` depend on, such as the size of the images. Each has its own file.
      cache_folder: folder of the manifests; created when one is saved.
      num_threads: number of files whose times are requested at once, for network drives; at least `MIN_THREADS`.

    Attributes:
      file: the file of the manifest.
      facts: of the files; zeros for those that are neither known nor read.
      known: bool [N], whether the manifest had the facts of a file.
      read: bool [N], whether they have been found since, which the reader sets last.
    """

    def __init__(
        self, folder: str, paths: Sequence[str], settings: str, cache_folder: Path, num_threads: int | None = None
    ) -> None:
        where = folder if storage.is_remote(folder) else os.path.realpath(folder)
        name = hashlib.sha256(f"{where}\0{settings}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self.file = cache_folder / f"{name}.npz"
        self._names, self._remote = join(paths), storage.is_remote(folder)
        self._started = time.time()
        self._states = file_states(folder, paths, num_threads)
        self.facts, self.known, self.read = FileFacts(len(paths)), np.zeros(len(paths), bool), np.zeros(len(paths), bool)
        self._cannot_save = self._warned = False
        if (old := self._load()) is not None:
            self._take_over(old)

    @property
    def state_digest(self) -> bytes:
        """32 bytes: equal on hosts whose files have the same names, sizes and times of the last write (or checksums)."""
        return hashlib.sha256(self._names.tobytes() + self._states[:, :2].tobytes()).digest()

    def save(self, *, levels_known: bool = True) -> None:
        """Writes the facts of the files that are known or read, and keeps those of others, such as other splits.

        Threads may read at the same time. An error is logged: the manifest is optional.

        Args:
          levels_known: whether all deep files were read with the range `facts.levels`; otherwise no range is written.
        """
        if self._cannot_save:
            return
        facts, states, read = self.facts, self._states.copy(), self.read.copy()
        if not self._remote:
            now = time.time()
            read &= (states[:, 1] < (self._started - MARGIN_S) * 1e9) | (states[:, 1] > (now + MARGIN_S) * 1e9)
        states[~(self.known | read), 0] = _NEVER
        levels_of = facts.deep.copy()
        deep = sorted(levels_of)
        arrays: dict[str, Any] = {
            "format": np.array(FORMAT),
            "names": self._names,
            "states": states,
            "digests": facts.digests,
            "extremes": np.stack([facts.least, facts.most], axis=1),
            "deep": np.array(deep, np.int64),
            "deep_levels": np.array([levels_of[index] for index in deep], np.float64).reshape(-1, 3),
            "levels": np.array(facts.levels if levels_known else (), np.float64),
        }
        arrays = _with_others(arrays, self._load())
        try:
            with os_errors(f"cannot write {self.file}"):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._remove_stale_files()
                with open_atomic(self.file, shared=True) as out:
                    np.savez(out, **arrays)
        except OSError as error:
            if not self._warned:
                logger.warning(f"warning: {error}; set `cache_dir` to another folder: the next start reads every file again")
            self._warned = True

    def _remove_stale_files(self) -> None:
        for file in self.file.parent.glob(f".{self.file.name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > STALE_S:
                    file.unlink()

    def _load(self) -> dict[str, np.ndarray] | None:
        """The arrays of the file; None if there is none that can be used."""
        try:
            with open(self.file, "rb") as content, np.load(content, allow_pickle=False) as arrays:
                if int(arrays["format"]) == FORMAT:
                    return _checked({name: arrays[name] for name in _ARRAYS})
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            # Before the first reading, which may take hours.
            self._cannot_save = True
            logger.warning(
                f"warning: cannot write {self.file}: a part of this path is a file, not a folder; set `cache_dir` to another "
                "folder: every start reads every file again"
            )
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning(f"warning: {self.file} is damaged ({error_line(error)}): every file is read again")
        return None

    def _take_over(self, old: dict[str, np.ndarray]) -> None:
        """Copies the facts of the files that have not changed."""
        rows, facts, deep = self._rows_of(old), self.facts, old["deep"].tolist()
        if rows is None:  # the same files: arrays of millions of rows are not copied
            self.known = (old["states"] == self._states).all(axis=1) & (self._states[:, 0] != _NEVER)
            facts.digests, (facts.least, facts.most) = old["digests"], np.ascontiguousarray(old["extremes"].T)
            for array in (facts.digests, facts.least, facts.most):
                array[~self.known] = 0
            index_of = {row: row for row in deep if self.known[row]}
        else:
            there = np.flatnonzero(rows >= 0)
            same = (old["states"][rows[there]] == self._states[there]).all(axis=1) & (self._states[there, 0] != _NEVER)
            here = there[same]
            self.known[here] = True
            facts.digests[here] = old["digests"][rows[here]]
            facts.least[here], facts.most[here] = old["extremes"][rows[here]].T
            index_of = dict(zip(rows[here].tolist(), here.tolist(), strict=True)) if deep else {}
        facts.levels = tuple(old["levels"].tolist())
        for row, (least, most, is_float) in zip(deep, old["deep_levels"].tolist(), strict=True):
            if row in index_of:
                facts.deep[index_of[row]] = DeepLevels(least, most, bool(is_float))

    def _rows_of(self, old: dict[str, np.ndarray]) -> np.ndarray | None:
        """int64 [N]: the row of each file in the old manifest, -1 for a new file; None if the files are the same."""
        if np.array_equal(old["names"], self._names):
            return None
        row_of = {name: row for row, name in enumerate(_split(old["names"]))}
        return np.fromiter((row_of.get(name, -1) for name in _split(self._names)), np.int64, len(self._states))


def _checked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a manifest. Raises ValueError if they are not those of `save`."""
    sizes = {"N": arrays["names"].tobytes().count(b"\0") + 1, "D": arrays["deep"].size, None: -1}
    for name, (kind, length, entry) in _ARRAYS.items():
        array = arrays[name]
        if array.ndim != 1 + len(entry) or array.shape[1:] != entry or sizes[length] not in (-1, len(array)):
            raise ValueError(f"{name} has the shape {list(array.shape)}")
        if array.dtype != kind:
            raise ValueError(f"{name} is {array.dtype}")
    return arrays


def _with_others(arrays: dict[str, Any], old: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """The arrays of a manifest, followed by the rows of files that only an old one has. Deep files of these are left out."""
    if old is None:
        return arrays
    if np.array_equal(arrays["names"], old["names"]):
        return _with_missing(arrays, old)
    own, others = set(_split(arrays["names"])), list(_split(old["names"]))
    is_deep = set(old["deep"].tolist())
    rows = [row for row, name in enumerate(others) if name not in own and row not in is_deep]
    if not rows:
        return arrays
    names = np.frombuffer(b"\0".join([arrays["names"].tobytes(), *(others[row] for row in rows)]), np.uint8)
    columns = {name: np.concatenate([arrays[name], old[name][rows]]) for name in ("states", "digests", "extremes")}
    return arrays | columns | {"names": names}


def _with_missing(arrays: dict[str, Any], old: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays, with what another process that reads the same files at the same time has saved of files not read here."""
    rows = np.flatnonzero((arrays["states"][:, 0] == _NEVER) & (old["states"][:, 0] != _NEVER))
    rows = rows[(arrays["states"][rows, 1:] == old["states"][rows, 1:]).all(axis=1)]
    if not len(rows) or len(old["deep"]) or len(arrays["deep"]):
        return arrays
    columns = {name: arrays[name].copy() for name in ("states", "digests", "extremes")}
    for name, column in columns.items():
        column[rows] = old[name][rows]
    return arrays | columns


def file_states(folder: str, paths: Sequence[str], num_threads: int | None = None) -> np.ndarray:
    """int64 [N, 3]: size, time of the last write and time of the last change of status of each file, in nanoseconds.

    In a bucket size and checksum, from one listing. The size of a file that cannot be found is -1.
    """
    states = np.zeros((len(paths), 3), np.int64)
    states[:, 0] = _NEVER
    if storage.is_remote(folder):
        with os_errors(f"cannot list {folder}"):
            found = storage.object_sums(storage.path(folder))
        for row, path in enumerate(paths):
            if path in found:
                size, checksum = found[path]
                states[row] = size, int.from_bytes(hashlib.sha256(str(checksum).encode()).digest()[:7], "big"), 0
        return states

    def read(first: int) -> None:
        for row in range(first, min(first + CHUNK, len(paths))):
            try:
                status = os.stat(prefix + paths[row])
            except OSError:  # it is reported when it is read
                continue
            states[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns

    prefix = folder.rstrip("/") + "/"
    with concurrent.futures.ThreadPoolExecutor(max(num_threads or 1, MIN_THREADS), "file-state") as pool:
        list(pool.map(read, range(0, len(paths), CHUNK)))
    return states


def _split(names: np.ndarray) -> Iterator[bytes]:
    return iter(names.tobytes().split(b"\0"))
