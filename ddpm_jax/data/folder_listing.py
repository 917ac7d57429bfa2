"""Lists a folder of images: files, splits and classes, from the paths alone."""

import bisect
import collections
import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np

from ddpm_jax.data import splits
from ddpm_jax.data.source import ImageSource, NoSuchSplit
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, InvalidDataError, error_line, os_errors

logger = logging.getLogger(__name__)

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NAMED = 5
ON_DECODE_ERROR = ("error", "skip")  # what to do about unreadable files


def check_reading(on_decode_error: str, channels: int = 3) -> None:
    """Raise an InvalidArgumentError unless unreadable files are handled in a known way, and images are gray or RGB."""
    if channels not in (1, 3):
        raise InvalidArgumentError(f"`channels` is {channels}: it must be 1 (gray) or 3 (RGB)")
    if on_decode_error not in ON_DECODE_ERROR:
        raise InvalidArgumentError(f"`on_decode_error` is {on_decode_error!r}: choose one of {', '.join(ON_DECODE_ERROR)}")


def list_images(folder: str) -> list[str]:
    """`find_images`, of at least one; the other files are logged.

    Raises:
      FileAccessError: as `find_images`.
      InvalidDataError: there are no images.
    """
    found, others = find_images(folder)
    if not found:
        also = f", and found only {counted(others)}" if others else ""
        raise InvalidDataError(f"no images in {folder}: searched it and its subfolders for {', '.join(EXTENSIONS)}{also}")
    if others:
        logger.info(f"{folder}: ignored files, by extension: {counted(others)}; only {', '.join(EXTENSIONS)} are read")
    return found


def find_images(folder: str, extensions: Sequence[str] = EXTENSIONS) -> tuple[list[str], collections.Counter]:
    """Paths of the files below `folder` that have one of the extensions, and the number of other files by extension.

    Paths are relative, with "/", sorted by code points; the files are not opened. Links are followed, but not in
    cycles. Names that begin with a dot are ignored and not counted.

    Raises:
      FileAccessError: the folder, or one below it, does not exist or cannot be listed.
    """
    if storage.is_remote(folder):
        return _find_objects(folder, extensions)
    paths, others, endings = [], collections.Counter(), tuple(extensions)
    pending = [("", (os.path.realpath(folder),))]  # path prefix and its parent folders
    while pending:
        prefix, ancestors = pending.pop()
        where = os.path.join(folder, prefix.rstrip("/")) if prefix else folder
        try:
            with os.scandir(where) as found:
                entries = list(found)
        except NotADirectoryError as error:
            raise FileAccessError(f"{where} is a file: name the folder of your images with `folder=PATH`") from error
        except FileNotFoundError as error:
            raise FileAccessError(f"there is no folder {where}: check `folder`") from error
        except OSError as error:
            raise FileAccessError(f"cannot list {where}: {error_line(error)}") from error
        for entry in entries:  # millions
            name = entry.name
            if name[0] == ".":
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_folder:
                real = os.path.realpath(entry.path)
                if real not in ancestors:
                    pending.append((f"{prefix}{name}/", (*ancestors, real)))
            elif not name.lower().endswith(endings):
                others[os.path.splitext(name)[1].lower() or "no extension"] += 1
            elif is_file or entry.is_symlink():  # a dangling link counts as a broken file; a pipe is ignored
                paths.append(prefix + name)
    return sorted(paths), others


def _find_objects(folder: str, extensions: Sequence[str]) -> tuple[list[str], collections.Counter]:
    """`find_images` in a bucket: one listing."""
    paths, others = [], collections.Counter()
    with os_errors(f"cannot list {folder}"):
        names = storage.object_sums(storage.path(folder))
    if not names:
        raise FileAccessError(f"there is no folder {folder}: check `folder`")
    for name in names:
        extension = os.path.splitext(name)[1].lower()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if extension in extensions:
            paths.append(name)
        else:
            others[extension or "no extension"] += 1
    return sorted(paths), others


def choose_examples(folder: str, found: Sequence[str], split: str) -> tuple[list[str], np.ndarray | None, list[str]]:
    """The files of a split, sorted by path, their labels int32 [N], and the class names (None and [] without classes).

    Args:
      folder: for messages.
      found: paths of all images in it, sorted.
      split: see `image_folder.load_image_folder`.

    Raises:
      NoSuchSplit: no such split.
      InvalidDataError: images both at the top and in subfolders, or a split with classes that the training set lacks.
    """
    own = splits_of(found)
    parts = {name: [path for path in found if path.startswith(f"{name}/")] for name in own} or {"train": list(found)}
    classes = {name: class_names(folder, files, f"{name}/" if own else "") for name, files in parts.items()}
    for name, names in classes.items():
        if more := sorted(set(names) - set(classes["train"])):
            raise InvalidDataError(
                f"{os.path.join(folder, name)} has the class {listed(more, 3)}, which {os.path.join(folder, 'train')} "
                "lacks: every split must have the classes of train; add images of it there, or remove it here"
            )
    for name, names in classes.items():
        if classes["train"] and not names:
            raise InvalidDataError(
                f"{os.path.join(folder, name)} has no class folders, but {os.path.join(folder, 'train')} has "
                f"({listed(classes['train'], 3)}): sort its images into such folders, or remove it"
            )
    label_of = {name: label for label, name in enumerate(classes["train"])}

    def labels_of(paths: Sequence[str]) -> np.ndarray | None:
        if not label_of:
            return None
        labels = np.empty(len(paths), np.int32)
        for name, rows in _top_folders(paths, bool(own)):
            labels[rows.start : rows.stop] = label_of[name]
        return labels

    if split == "all":
        chosen = [path for files in parts.values() for path in files]
    else:
        try:
            wanted = splits.select(split, {name: len(files) for name, files in parts.items()})
        except ValueError as error:
            where = "splits, its folders," if own else "no folders train and test, so its splits"
            names = ", ".join([*parts, "all"])
            raise NoSuchSplit(
                f"{folder} has no split {split!r} (`split`, or the field that names this split): it has {where} "
                f"are {names}, and each has slices such as train[:90%]"
            ) from error
        chosen = []
        for name, positions in wanted:
            if len(positions) == len(parts[name]):  # all, and sorted below
                chosen += parts[name]
                continue
            order = splits.mixed_order(parts[name], labels_of(parts[name]))
            chosen += [parts[name][index] for index in order[positions.start : positions.stop]]
    if not chosen:
        raise InvalidArgumentError(f"the split {split!r} of {folder} is empty: the folder has {len(found):,} images in total")
    chosen.sort()
    return chosen, labels_of(chosen), classes["train"]


def splits_of(found: Sequence[str]) -> list[str]:
    """The top-level folders that are splits, not classes (`splits.split_folders`)."""
    tops = set()
    for path in found:  # millions, of which usually the first is enough
        top, inside, _ = path.partition("/")
        if not inside or top not in splits.SPLIT_FOLDERS:
            return []
        tops.add(top)
    return splits.split_folders(sorted(tops))


def class_names(folder: str, paths: Sequence[str], prefix: str = "") -> list[str]:
    """Names of the folders directly below `folder` (and `prefix`) that contain images; [] if all images are at its top.

    `paths`, sorted, are in the folder `prefix` if there is one. The names are sorted, or in numerical order if all of them are
    integers: 2 before 10.

    Raises:
      InvalidDataError: there are images both at the top and in subfolders.
    """
    top, names = [], []
    for name, rows in _top_folders(paths, bool(prefix)):
        if name:
            names.append(name)
        else:
            top.append(paths[rows.start].removeprefix(prefix))
    if top and names:
        raise InvalidDataError(
            f"{os.path.join(folder, prefix).rstrip('/')} holds images both at its top ({listed(top, 1)}) and in subfolders "
            f"({listed(names, 3)}): subfolders are classes, so move the first into one, or all to the top"
        )
    names.sort()
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=lambda name: (int(name), name))
    return names


def _top_folders(paths: Sequence[str], depth: int) -> Iterator[tuple[str, range]]:
    """The folders at a depth, 0 or 1, that sorted paths are in, and the range of each; "" for a file that is in none.

    There are fewer folders than files, and the end of each is searched for.
    """
    start = 0
    while start < len(paths):
        path = paths[start]
        begin = path.index("/") + 1 if depth else 0
        end = path.find("/", begin)
        stop = start + 1 if end < 0 else bisect.bisect_left(paths, f"{path[:end]}0", start + 1)  # "0" is next to "/"
        yield path[begin:end] if end > 0 else "", range(start, stop)
        start = stop


def class_prefixes(source: ImageSource) -> str:
    """Advice for an error: how to add classes to a folder; mentions a common prefix of its file names."""
    advice = "put the images of each class into a separate folder, directly in `folder`"
    try:
        paths = find_images(source.name)[0]
    except FileAccessError:
        return advice
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    prefixes = collections.Counter(stem.rstrip("0123456789").rstrip("-_. ()") for stem in stems)
    if 2 <= len(prefixes) <= len(paths) / 2 and "" not in prefixes:
        example = prefixes.most_common(1)[0][0]
        advice += f" ({one_line(example)}/ for the files {one_line(example)}..., and so on): file names do not define classes"
    return advice


def counted(others: collections.Counter) -> str:
    """For example: .txt 2, .heic 1."""
    return listed([f"{extension} {number:,}" for extension, number in others.most_common()], NAMED)


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` names, and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(one_line(name) for name in names[:most]) + more


def one_line(name: str) -> str:
    """Replaces unprintable characters: a file name may contain a line break, a message may not."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
