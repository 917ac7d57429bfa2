"""Copies of data sets in a bucket, for readers that open files of this machine only: array_record shards, TFDS sets.

They are in the folder data of `cache_dir`, by default $XDG_CACHE_HOME/ddpm_jax or ~/.cache/ddpm_jax, under the name of the
bucket. A file is copied
if its size or time differs from those of the object; an interrupted copy continues with the files that are missing.
"""

import concurrent.futures
import functools
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, UnavailableError, error_line, os_errors

logger = logging.getLogger(__name__)

THREADS = 8  # that copy files at the same time
REPORT_S = 3.0


def of_folder(name: str, what: str, wanted: Callable[[str], bool] = lambda file: True, *, cache_dir: str = "") -> str:
    """Copies the objects of a folder in a bucket, and returns the folder of this machine.

    Args:
      name: gs://bucket/folder.
      what: the kind of the folder, for errors.
      wanted: object name relative to the folder -> whether to copy it.
      cache_dir: folder of the copies; see `cache_folder`.

    Raises:
      FileAccessError: there is no such folder, an object cannot be read, or the copy cannot be written.
    """
    source, target = storage.path(name), cache_folder(cache_dir, "data") / name.partition("://")[2].strip("/")
    with os_errors(f"cannot read {name}"):
        found = storage.object_times(source)
    if not found:
        raise FileAccessError(f"there is no folder {name}: {what} is needed (`data_dir`)")
    missing = {file: about for file, about in found.items() if wanted(file) and not _is_copied(target / file, *about)}
    if not missing:
        return os.fspath(target)
    total, done, last = sum(size for size, _ in missing.values()), 0, time.monotonic()
    logger.info(f"{name}: copying {len(missing):,} files, {total / 1e6:,.1f} MB, to {target}")
    with os_errors(f"cannot write to {target}", "; set `cache_dir` to another folder"):
        target.mkdir(parents=True, exist_ok=True)
        if total > shutil.disk_usage(target).free:
            raise FileAccessError(
                f"cannot copy {name} to {target}: {total / 1e9:,.1f} GB are needed; set `cache_dir` to a larger disk"
            )
    with concurrent.futures.ThreadPoolExecutor(THREADS, "copy") as pool:
        tasks = {pool.submit(_copy, source / file, target / file, *about): about[0] for file, about in missing.items()}
        try:
            for task in concurrent.futures.as_completed(tasks):
                task.result()
                done += tasks[task]
                if time.monotonic() - last > REPORT_S:
                    last = time.monotonic()
                    logger.info(f"{name}: copied {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return os.fspath(target)


def of_tfds_set(name: str, split: str, data_dir: str, find: Callable[[str, str], Any], *, cache_dir: str = "") -> str:
    """Copies what a split of a TFDS set needs: the metadata of all its versions, then the shards of the newest one.

    Args:
      name: of the set, such as cifar10 or lsun/bedroom:3.0.0.
      split: such as train[:90%]; the shards of the splits that it names are copied.
      data_dir: gs://bucket/folder of TFDS sets.
      cache_dir: folder of the copies; see `cache_folder`.
      find: name, local folder of TFDS sets -> the builder of the newest version in it, or None.

    Returns:
      The local folder of TFDS sets; `data_dir` itself if it is none in a bucket.

    Raises:
      UnavailableError: the set is not prepared in the bucket.
      FileAccessError: as `of_folder`.
    """
    if not storage.is_remote(data_dir):
        return data_dir
    base = f"{name.partition(':')[0].partition('/')[0]}/"
    where = data_dir.rstrip("/")
    missing = UnavailableError(
        f"data set {name} is not prepared in {where}: prepare it in a folder of this machine, and copy it to the bucket"
    )
    copy = functools.partial(of_folder, where, "a folder of TFDS sets", cache_dir=cache_dir)
    local = copy(lambda file: file.startswith(base) and ".array_record" not in file)
    builder = find(name, local)
    if builder is None:
        raise missing
    version = f"{os.path.relpath(builder.data_dir, local)}/"
    splits = [each for each in builder.info.splits if split == "all" or re.search(rf"\b{re.escape(each)}\b", split)]
    shards = tuple(f"{version}{builder.name}-{each}." for each in splits)
    return copy(lambda file: bool(shards) and file.startswith(shards))


def cache_folder(cache_dir: str, kind: str) -> Path:
    """The folder of files of this kind (data or manifests) in `cache_dir`, by default $XDG_CACHE_HOME/ddpm_jax.

    Raises:
      InvalidArgumentError: `cache_dir` is in a bucket.
    """
    if storage.is_remote(cache_dir):
        raise InvalidArgumentError(f"`cache_dir` is {cache_dir}: name a folder of this machine, which keeps copies of a bucket")
    return (Path(cache_dir) if cache_dir else default_cache()).expanduser() / kind


def default_cache() -> Path:
    """The user's cache folder; it begins with ~ unless XDG_CACHE_HOME is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ddpm_jax"


def _is_copied(file: Path, size: int, changed: float) -> bool:
    try:
        status = file.stat()
    except OSError:
        return False
    return status.st_size == size and abs(status.st_mtime - changed) < 1


def _copy(source: Path, target: Path, size: int, changed: float) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.download(source, temporary)
        if temporary.stat().st_size != size:
            raise OSError(f"{temporary.stat().st_size:,} of {size:,} bytes arrived")
        os.utime(temporary, (changed, changed))
        os.replace(temporary, target)
    except OSError as error:
        raise FileAccessError(f"cannot copy {source} to {target}: {error_line(error)}; run the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)
