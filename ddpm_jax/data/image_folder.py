"""A folder of a person's own images; its subfolders, where it has any, are classes.

    photos/0001.jpg, photos/0002.png ...      no labels
    photos/cats/... , photos/dogs/...         label 0 for cats, 1 for dogs

Every file is read once before training begins, so that a broken one shows then and not after a night.
"""

import collections
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import decode
from ddpm_jax.data.source import ArraySource, ImageSource, LazySource, NoSuchSplit, fit_image, held_in_memory, in_chunks
from ddpm_jax.runtime.errors import PersonError, UsageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ON_BROKEN = ("error", "skip")
SPLITS = ("train", "all")  # both are the whole folder
CHUNK = 16  # files that a thread reads at a time: photographs are large, and progress should show
NAMED_IN_ERROR = 5
NAMED_IN_REPORT = 20


def load_image_folder(
    folder: str,
    *,
    image_size: int,
    channels: int,
    split: str = "train",
    background: str = "white",
    on_broken: str = "error",
    in_memory: bool | str = "auto",
    num_threads: int | None = None,
    report: Callable[[str], Any] = print,
) -> ImageSource:
    """The images of a folder, each read by `decode.read_image` and made to fit by `source.fit_image`.

    That is: the square in the middle, resized by Pillow's bicubic filter, which averages over all covered pixels when it
    shrinks (`source.RESIZE_FILTER` says why this one; the same for every set). Smaller images are enlarged by it.

    Files are found at any depth and ordered by their path within the folder, so that example i is the same image on
    every machine. Hidden files and folders are passed over. Each folder directly below `folder` that holds an image
    is a class, in the order of their names. Nothing of this depends on whether the set fits into memory.

    Args:
      folder: its path; ~ is expanded.
      image_size: height and width wanted.
      channels: 1 or 3.
      split: "train" or "all"; either is the whole folder.
      background: what shows through transparent pixels, a colour's name or #rrggbb. White unless told otherwise: what has
        transparency (logos, drawings, cut-outs) is mostly made for white pages, and dark lines would vanish on black.
      on_broken: what to do about files that cannot be read: "error" stops, "skip" leaves them out and reports that.
      in_memory: True keeps all images decoded in memory, False reads them again when they are asked for (all are
        still read once at first, to find the broken), "auto" takes memory for up to `source.MEMORY_LIMIT` bytes.
      num_threads: threads that read and decode.
      report: called with a line about what was found, left out, or takes time.

    Returns:
      A source whose name is the folder's absolute path; its batches have "label" where there are classes.

    Raises:
      UsageError: no folder named, or split, background, on_broken or channels is none of the choices.
      PersonError: the folder is not there or holds no image, images lie both at its top and in subfolders, a file
        is broken (on_broken "error"), or no image of the folder or of a class can be read.
    """
    if channels not in (1, 3):
        raise UsageError(f"data.channels is {channels}: it must be 1 (grey) or 3 (RGB)")
    if split not in SPLITS:
        raise NoSuchSplit(f"image_folder has no split {split!r}: choose train or all, which are both the whole folder")
    if on_broken not in ON_BROKEN:
        raise UsageError(f"data.on_broken is {on_broken!r}: choose one of {', '.join(ON_BROKEN)}")
    if not folder:
        raise UsageError("data.data_dir is empty: name the folder of your images with --config.data.data_dir=PATH")
    colour = decode.parse_background(background)

    folder = os.path.abspath(os.path.expanduser(folder))
    paths, others = find_images(folder)
    if others and paths:
        report(f"{folder}: not read, by kind: {_counted(others)}; only {', '.join(EXTENSIONS)} are")
    if not paths:
        found = f", and found only {_counted(others)}" if others else ""
        raise PersonError(f"no images in {folder}: looked there and in its subfolders for {', '.join(EXTENSIONS)}{found}")
    classes = class_names(folder, paths)

    def read(path: str) -> np.ndarray:
        return fit_image(decode.read_image(os.path.join(folder, path), colour), image_size, channels)

    shape = (image_size, image_size, channels)
    images = np.empty((len(paths), *shape), np.uint8) if held_in_memory(in_memory, len(paths) * int(np.prod(shape))) else None
    broken = _read_all(read, paths, images, folder, num_threads, report)
    if broken:
        kept = _without_broken(folder, paths, classes, broken, on_broken, report)
        if images is not None:
            for new, old in enumerate(kept):  # in place: a second copy may not fit
                images[new] = images[old]
            images = images[: len(kept)]
        paths = [paths[index] for index in kept]

    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[path.split("/")[0]] for path in paths], np.int32) if classes else None
    report(_summary(folder, len(paths), classes, labels))
    if images is not None:
        return ArraySource(images, labels, num_classes=len(classes), name=folder, split=split)

    def read_example(index: int) -> tuple[np.ndarray, int | None]:
        try:
            image = read(paths[index])
        except decode.BrokenImage as error:  # it could be read when the run began
            raise PersonError(f"{_one_line(paths[index])} in {folder} can no longer be read ({error}): put it back") from error
        return image, None if labels is None else int(labels[index])

    return LazySource(
        read_example,
        len(paths),
        image_size=image_size,
        channels=channels,
        num_classes=len(classes),
        name=folder,
        split=split,
        num_threads=num_threads,
    )


def find_images(folder: str) -> tuple[list[str], collections.Counter]:
    """Paths of the images below `folder`, and how many other files there are by extension.

    Paths are relative, with "/", sorted by code points; whether the files can be read is not looked at. Links are
    followed, but not in circles. What begins with a dot is passed over and not counted.

    Raises:
      PersonError: the folder, or one below it, is not there or cannot be looked into.
    """
    paths, others = [], collections.Counter()
    pending = [("", (os.path.realpath(folder),))]  # prefix of the paths, and the folders that it lies in
    while pending:
        prefix, ancestors = pending.pop()
        where = os.path.join(folder, prefix.rstrip("/")) if prefix else folder
        try:
            with os.scandir(where) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except NotADirectoryError as error:
            raise PersonError(f"{where} is a file: name the folder of your images with --config.data.data_dir=PATH") from error
        except FileNotFoundError as error:
            raise PersonError(f"there is no folder {where}: check --config.data.data_dir") from error
        except OSError as error:
            raise PersonError(f"cannot look into {where}: {(error.strerror or str(error)).lower()}") from error
        for entry in entries:
            extension = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in ancestors:
                    pending.append((f"{prefix}{entry.name}/", (*ancestors, real)))
            elif extension not in EXTENSIONS:
                others[extension or "no extension"] += 1
            elif entry.is_file() or entry.is_symlink():  # a link to nowhere is a broken file; a pipe is none
                paths.append(prefix + entry.name)
    return sorted(paths), others


def class_names(folder: str, paths: Sequence[str]) -> list[str]:
    """Names of the folders directly below `folder` that hold images, sorted; [] where all images lie at its top.

    Raises:
      PersonError: images lie in both places.
    """
    top = [path for path in paths if "/" not in path]
    names = sorted({path.split("/")[0] for path in paths if "/" in path})
    if top and names:
        raise PersonError(
            f"{folder} holds images both at its top ({_listed(top, 1)}) and in subfolders ({_listed(names, 3)}): "
            "subfolders are classes, so move the first into one, or all to the top"
        )
    return names


def _read_all(
    read: Callable[[str], np.ndarray],
    paths: Sequence[str],
    images: np.ndarray | None,
    folder: str,
    num_threads: int | None,
    report: Callable[[str], Any],
) -> dict[int, str]:
    """Read every file once, into `images` [N, ...] where that is given; index -> reason of those that are broken."""
    broken = {}

    def work(indices: range) -> None:
        for index in indices:
            try:
                image = read(paths[index])
            except decode.BrokenImage as error:
                broken[index] = str(error)
            else:
                if images is not None:
                    images[index] = image

    title = f"{folder}: {'checked' if images is None else 'read'}"
    with warnings.catch_warnings():  # here and not in the threads: they share one set of filters
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd camera notes, large photographs: nothing to be done about
        in_chunks(work, len(paths), chunk=CHUNK, title=title, num_threads=num_threads, report=report)
    return broken


def _without_broken(
    folder: str,
    paths: Sequence[str],
    classes: Sequence[str],
    broken: dict[int, str],
    on_broken: str,
    report: Callable[[str], Any],
) -> list[int]:
    """Indices of the images that can be read, where going on without the others is wanted and possible."""
    named = [f"{paths[index]} ({broken[index]})" for index in sorted(broken)]
    if len(broken) == len(paths):
        raise PersonError(
            f"none of the {len(paths):,} images in {folder} can be read: {_listed(named, NAMED_IN_ERROR)}; "
            "check --config.data.data_dir"
        )
    if on_broken == "error":
        raise PersonError(
            f"{len(broken):,} of {len(paths):,} images in {folder} cannot be read: {_listed(named, NAMED_IN_ERROR)}; "
            "mend or remove them, or train without them: --config.data.on_broken=skip"
        )
    kept = [index for index in range(len(paths)) if index not in broken]
    if lost := sorted(set(classes) - {paths[index].split("/")[0] for index in kept}):
        raise PersonError(
            f"no image of class {_listed(lost, NAMED_IN_ERROR)} in {folder} can be read: mend its files, or remove its folder"
        )
    report(f"{folder}: left out {len(broken):,} of {len(paths):,} images, as broken: {_listed(named, NAMED_IN_REPORT)}")
    return kept


def _summary(folder: str, count: int, classes: Sequence[str], labels: np.ndarray | None) -> str:
    if labels is None:
        return f"{folder}: {count:,} images without classes"
    sizes = np.bincount(labels, minlength=len(classes))
    named = [f"{label} {name} ({size:,})" for label, (name, size) in enumerate(zip(classes, sizes, strict=True))]
    return f"{folder}: {count:,} images in {len(classes)} classes: {_listed(named, NAMED_IN_REPORT)}"


def _counted(others: collections.Counter) -> str:
    """Such as: .txt 2, .heic 1."""
    return _listed([f"{extension} {number:,}" for extension, number in others.most_common()], NAMED_IN_ERROR)


def _listed(names: Sequence[str], most: int) -> str:
    """The first `most` of the names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(_one_line(name) for name in names[:most]) + more


def _one_line(name: str) -> str:
    """A file's name may hold a line break; a message may not."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
