"""Decodes, crops and resizes a folder of images once, and writes the result for fast random access (`prepared.py`).

Each shard is written to a temporary file that is then renamed, and its description after it. A run that was killed, or that
found broken files, therefore continues with the next shard; dataset.json is written last.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.data import decode, prepared, splits, value_range
from ddpm_jax.data.crop import CROPS
from ddpm_jax.data.folder_listing import check_reading, choose_examples, list_images, one_line, splits_of
from ddpm_jax.data.image_folder import readable_indices
from ddpm_jax.data.prepare_target import Settings, check_target, only_process, plan_of
from ddpm_jax.data.source import for_each_chunk, height_width
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import open_atomic, write_atomically
from ddpm_jax.runtime.errors import InvalidArgumentError, os_errors

logger = logging.getLogger(__name__)

BROKEN = "broken.txt"
SHARD_BYTES = 64 * 1024**2  # smallest size of a shard: what a killed run repeats
MOST_SHARDS = 256  # per split: each is an open file when the set is read
Report = Callable[[int, int], None]  # (images done, images in total)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """The files `paths[first:last]` of a split, in one ArrayRecord file called `name`."""

    split: str
    name: str
    first: int
    last: int


def prepare(
    folder: str,
    target: str,
    settings: Settings,
    *,
    on_decode_error: str = "error",
    num_threads: int | None = None,
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """Write the images that `image_folder.load_image_folder` reads in `folder` to `target`, in the format of `prepared.py`.

    All splits are written. A finished set with the same files and settings is left as it is.

    Args:
      folder: path of the images; ~ is expanded.
      target: path of the set: a new or empty folder, or one in which the same call was interrupted.
      settings: size, crop and more.
      on_decode_error: what to do about unreadable files: "error" raises once all other files are written, "skip" leaves
        them out. Both list them in broken.txt.
      num_threads: files that are decoded at once.
      report: called as images are done.

    Returns:
      The content of dataset.json.

    Raises:
      InvalidArgumentError: a setting is invalid.
      FileAccessError: the folder does not exist, or the target cannot be written.
      ConflictError: the target holds something else, or another process prepares it.
      InvalidDataError: as `load_image_folder`; broken files (on_decode_error "error").
    """
    settings.check()
    check_reading(on_decode_error, settings.channels)
    for path in filter(storage.is_remote, (folder, target)):
        raise InvalidArgumentError(
            f"{path}: sets are prepared from a folder of this machine into another one; copy it there, or the prepared set back"
        )
    folder, where = (os.path.abspath(os.path.expanduser(path)) for path in (folder, target))
    root = pathlib.Path(where)
    found = list_images(folder)
    listing = {name: choose_examples(folder, found, name) for name in splits_of(found) or ["train"]}
    plan = plan_of(folder, found, settings)
    with os_errors(f"cannot write to {root}"):
        root.mkdir(parents=True, exist_ok=True)
    with only_process(root), os_errors(f"cannot write to {root}", "; the same command continues"):
        if finished := check_target(root, plan):
            return finished
        levels = _start(root, plan, folder, found, settings, num_threads)
        shards = [shard for name, (paths, _, _) in listing.items() for shard in _shards(name, len(paths), settings)]
        _write_shards(root, shards, folder, listing, settings, levels, num_threads, report)
        return _finish(root, shards, folder, listing, plan, levels, on_decode_error)


def _start(
    root: pathlib.Path, plan: Mapping[str, Any], folder: str, found: Sequence[str], settings: Settings, num_threads: int | None
) -> tuple[float, ...]:
    """Record the plan, with the range of the gray files of more than 8 bits; returns the range, () without such files."""
    if (root / prepared.PLAN).exists():
        return tuple(json.loads((root / prepared.PLAN).read_text(encoding="utf-8"))["value_range"])
    levels = tuple(settings.levels) or _find_levels(folder, found, num_threads)
    write_atomically(root / prepared.PLAN, json.dumps({"plan": plan, "value_range": levels}))
    return levels


def _find_levels(folder: str, found: Sequence[str], num_threads: int | None) -> tuple[float, ...]:
    """One range for all gray files of more than 8 bits, which are few or all: only they are decoded. () if there are none."""
    measured: list[value_range.DeepLevels] = []

    def measure(indices: range) -> None:
        for index in indices:
            path = os.path.join(folder, found[index])
            with contextlib.suppress(Exception):  # a broken file, which is listed later
                with Image.open(path, formats=decode.FORMATS) as header:
                    deep = decode.is_deep(header)
                if deep:
                    with decode.open_image(path) as picture:
                        measured.append(decode.measure_deep(picture))

    for_each_chunk(measure, len(found), chunk=64, title=f"{folder}: read the headers of", num_threads=num_threads)
    if not measured:
        return ()
    try:
        return value_range.find_range(measured)
    except ValueError as error:
        raise InvalidArgumentError(f"`levels` is not set, and in {folder} {error}") from error


def _shards(split: str, count: int, settings: Settings) -> list[_Shard]:
    height, width = height_width(settings.image_size)
    size = max(1, SHARD_BYTES // (height * width * settings.channels), -(-count // MOST_SHARDS))
    starts = range(0, count, size)
    return [_Shard(split, f"{split}-{i:05d}.array_record", first, min(first + size, count)) for i, first in enumerate(starts)]


def _write_shards(
    root: pathlib.Path,
    shards: Sequence[_Shard],
    folder: str,
    listing: Mapping[str, tuple[list[str], np.ndarray | None, list[str]]],
    settings: Settings,
    levels: tuple[float, ...],
    num_threads: int | None,
    report: Report,
) -> None:
    """Write the shards that are missing."""
    missing = [shard for shard in shards if not (root / f"{shard.name}.json").exists()]
    total = sum(shard.last - shard.first for shard in shards)
    done = total - sum(shard.last - shard.first for shard in missing)
    report(done, total)

    def report_from(before: int, number: int) -> None:
        report(before + number, total)

    threads = num_threads or os.cpu_count() or 1
    convert = functools.partial(_convert, folder, settings, decode.parse_background(settings.background), levels)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())  # not in the threads, which share one set of filters
        warnings.filterwarnings("ignore", module=r"PIL\.")  # invalid EXIF metadata, large photographs
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(threads, "image-decoder"))
        try:
            for shard in missing:
                paths = listing[shard.split][0][shard.first : shard.last]
                images = _in_order(pool, convert, paths, ahead=4 * threads)
                _write_shard(root, shard, paths, images, functools.partial(report_from, done))
                done += len(paths)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_shard(
    root: pathlib.Path,
    shard: _Shard,
    paths: Sequence[str],
    images: Iterable[np.ndarray | str],
    report: Callable[[int], None],
) -> None:
    """Write one shard and its description, and report the number of files that are done."""
    from array_record.python import array_record_module  # imported lazily: takes a second

    file, temporary = root / shard.name, root / f".{shard.name}.tmp"
    digests, broken = [], {}
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
        for number, (path, image) in enumerate(zip(paths, images, strict=True), 1):
            if isinstance(image, str):
                broken[path] = image
            else:
                writer.write(image.tobytes())
                digests.append(prepared.digest(image).hex())
            report(number)
    finally:
        writer.close()
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, file)
    about = {"bytes": file.stat().st_size, "broken": broken, "digests": digests}
    write_atomically(root / f"{shard.name}.json", json.dumps(about))


def _convert(
    folder: str, settings: Settings, background: tuple[int, int, int], levels: tuple[float, ...], path: str
) -> np.ndarray | str:
    """The image of a file: uint8 [H, W, C]; or the reason why it cannot be read."""
    try:
        image = decode.read_image(os.path.join(folder, path), background, levels)
    except decode.ImageDecodeError as error:
        return str(error)
    return CROPS[settings.crop](image, settings.image_size, settings.channels)


def _in_order(
    pool: concurrent.futures.Executor, work: Callable[[str], Any], items: Iterable[str], *, ahead: int
) -> Iterator[Any]:
    """work(item) for each item, in order, with at most `ahead` results in memory."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _finish(
    root: pathlib.Path,
    shards: Sequence[_Shard],
    folder: str,
    listing: Mapping[str, tuple[list[str], np.ndarray | None, list[str]]],
    plan: Mapping[str, Any],
    levels: tuple[float, ...],
    on_decode_error: str,
) -> dict[str, Any]:
    """Check the broken files, write the indices and dataset.json, and remove the descriptions of the shards."""
    described = {shard: json.loads((root / f"{shard.name}.json").read_text(encoding="utf-8")) for shard in shards}
    broken = {path: reason for about in described.values() for path, reason in about["broken"].items()}
    if broken:
        write_atomically(root / BROKEN, "".join(f"{one_line(path)}\t{reason}\n" for path, reason in sorted(broken.items())))
    parts: dict[str, Any] = {}
    classes: list[str] = []
    for name, (paths, labels, classes) in listing.items():
        faults = {index: broken[path] for index, path in enumerate(paths) if path in broken}
        kept = readable_indices(folder, paths, labels, classes, faults, on_decode_error) if faults else list(range(len(paths)))
        paths, labels = [paths[index] for index in kept], None if labels is None else labels[kept]
        files = [
            {"name": shard.name, "count": len(about["digests"]), "bytes": about["bytes"]}
            for shard, about in described.items()
            if shard.split == name and about["digests"]
        ]
        hexadecimal = "".join(text for shard, about in described.items() if shard.split == name for text in about["digests"])
        digests = np.frombuffer(bytes.fromhex(hexadecimal), np.uint8).reshape(-1, 16)
        with open_atomic(root / f"{name}.npz") as out:
            own = np.zeros(len(paths), np.int32) if labels is None else labels
            np.savez(out, labels=own, digests=digests, order=splits.mixed_order(paths, labels))
        counts = [] if labels is None else np.bincount(labels, minlength=len(classes)).tolist()
        parts[name] = {
            "count": len(paths),
            "class_counts": counts,
            "fingerprint": prepared.fingerprint(digests, labels),
            "files": files,
        }
    about = {
        "format": prepared.FORMAT,
        "image_shape": [*plan["image_size"], plan["channels"]],
        "class_names": classes,
        "value_range": levels,
        "source": folder,
        "broken": len(broken),
        "splits": parts,
        "plan": plan,
    }
    write_atomically(root / prepared.DESCRIPTION, json.dumps(about, indent=1) + "\n")
    for file in (prepared.PLAN, *(f"{shard.name}.json" for shard in shards)):
        (root / file).unlink(missing_ok=True)
    return json.loads(json.dumps(about))
