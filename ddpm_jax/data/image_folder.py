"""A folder of the user's own images. Subfolders are classes, or splits that contain classes.

    photos/0001.jpg, photos/0002.png ...      no labels
    photos/cats/... , photos/dogs/...         label 0 for cats, 1 for dogs
    photos/train/cats/... , photos/test/...   splits `train` and `test` (`splits.py`), with or without classes

`folder_listing.py` finds the files and their classes, and raises the errors about a folder that is missing, empty or ambiguous.
Every file is read once before training, so that a broken file is an immediate error and not one after a night. The number
of images found, files left out and unusual gray levels are logged.
"""

import logging
import os
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data import decode, value_range
from ddpm_jax.data.file_names import FileNames
from ddpm_jax.data.first_reading import FirstReading
from ddpm_jax.data.folder_listing import check_reading, choose_examples, list_images, listed, one_line, splits_of
from ddpm_jax.data.source import (
    ArraySource,
    ImageSize,
    ImageSource,
    LazySource,
    center_crop_and_resize,
    fits_in_memory,
    height_width,
)
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

logger = logging.getLogger(__name__)

NAMED_IN_ERROR = 5
NAMED_IN_REPORT = 20


def load_image_folder(
    folder: str,
    *,
    image_size: ImageSize,
    channels: int,
    split: str = "train",
    background: str = "white",
    on_decode_error: str = "error",
    levels: Sequence[float] = (),
    in_memory: bool | str = "auto",
    num_threads: int | None = None,
    cache_dir: str = "",
) -> ImageSource:
    """The images of a folder, each read by `decode.read_image` and `source.center_crop_and_resize`.

    The latter takes the largest centered part of the right proportions and resizes it with Pillow's antialiased bicubic
    filter, as for every set (`source.RESIZE_FILTER`). Smaller images are enlarged.

    Files are found at any depth and sorted by their path within the folder, so that example i is the same image on
    every machine. Hidden files and folders are skipped. Each folder directly below `folder` (or below that of the split)
    that contains an image is a class, sorted by name, or numerically if all names are numbers. None of this depends on
    whether the set fits into memory.

    Args:
      folder: its path; ~ is expanded.
      image_size: (H, W) of the output, or one number for both.
      channels: 1 or 3.
      split: "train", "test" or another split folder, "all" for everything, or a slice such as "train[:90%]"
        (`splits.select`).
      background: color behind transparent pixels, a name or #rrggbb. White by default: images with transparency (logos,
        drawings, cut-outs) are mostly made for white pages, and dark lines would vanish on black.
      on_decode_error: what to do about unreadable files: "error" stops, "skip" leaves them out and logs that.
      levels: (black, white) of gray files of more than 8 bits; () to detect one range for all of them
        (`value_range.find_range`).
      in_memory: True keeps all decoded images in memory, False reads them on demand (all are still read once at the
        start, to find broken files), "auto" uses memory for up to `source.MEMORY_LIMIT` bytes.
      num_threads: threads that read and decode.
      cache_dir: folder of the manifest of a set that is not in memory (`folder_manifest.py`, `local_copy.cache_folder`).

    Returns:
      A source whose name is the folder's absolute path; its batches have "label" if there are classes. Its fingerprint
      is a hash of the paths and contents of its files.

    Raises:
      InvalidArgumentError: no folder, or an unknown split, background, on_decode_error or number of channels; or no range fits.
      FileAccessError: the folder does not exist.
      InvalidDataError: the folder contains no image, images are both at its top and in subfolders, a file is broken
        (on_decode_error "error"), no image of the folder or of a class can be read, or the splits differ in classes.
    """
    check_reading(on_decode_error, channels)
    if not folder:
        raise InvalidArgumentError("`folder` is empty: name the folder of your images with `folder=PATH`")
    color = decode.parse_background(background)

    folder = storage.folder_name(folder)
    found = list_images(folder)
    paths, labels, classes = choose_examples(folder, found, split)
    has_splits = bool(splits_of(found))
    part = f" (split {split}; the folders {', '.join(splits_of(found))} are splits)" if has_splits else ""
    if not has_splits and len(paths) < len(found):
        part = f" (split {split} of {len(found):,})"

    def read(path: str, white: Sequence[float] = ()) -> np.ndarray:
        return center_crop_and_resize(decode.read_image(os.path.join(folder, path), color, white), image_size, channels)

    shape = (*height_width(image_size), channels)
    images = np.empty((len(paths), *shape), np.uint8) if fits_in_memory(in_memory, len(paths) * int(np.prod(shape))) else None
    first = FirstReading(folder, list(paths), color, shape, images, cache_dir)
    first.read_all(num_threads)
    kept = readable_indices(folder, paths, labels, classes, first.broken, on_decode_error) if first.broken else None
    levels = first.read_deep(levels, num_threads)
    if kept is not None:
        if images is not None:
            for new, old in enumerate(kept):  # in-place: a second copy may not fit
                images[new] = images[old]
            images = images[: len(kept)]
        paths, labels = [paths[index] for index in kept], None if labels is None else labels[kept]
    logger.info(_summary(folder, part, len(paths), classes, labels))
    for line in value_range.level_warnings(*first.extremes(kept), first.deep()):
        logger.warning(f"warning: {folder}: {line}")
    if first.all_equal(kept):
        logger.warning(f"warning: {folder}: all {len(paths):,} files are the same image: check `folder`")
    attributes = {
        "num_classes": len(classes),
        "class_names": classes,
        "fingerprint": first.fingerprint(kept, f"{split.partition('[')[0]}/" if has_splits else ""),
        "value_range": levels,
        "name": folder,
        "split": split,
    }
    if images is not None:
        source: ArraySource | LazySource = ArraySource(images, labels, **attributes)
        source.files = tuple(paths)
        return source

    names = FileNames(paths)  # millions, which may be copied to other processes

    def read_example(index: int) -> tuple[np.ndarray, int | None]:
        try:
            image = read(names[index], levels)
        except decode.ImageDecodeError as error:  # it was readable when the run started
            raise InvalidDataError(
                f"{one_line(names[index])} in {folder} can no longer be read ({error}): put it back, "
                "or resume without it: `on_decode_error='skip'`"
            ) from error
        return image, None if labels is None else int(labels[index])

    source = LazySource(
        read_example, len(paths), image_size=image_size, channels=channels, num_threads=num_threads, **attributes
    )
    source.files = names
    return source


def open_first_reading(
    folder: str,
    *,
    image_size: ImageSize,
    channels: int,
    split: str,
    background: str,
    in_memory: bool | str,
    cache_dir: str,
) -> FirstReading | None:
    """The first reading of a set that `load_image_folder` would read on demand; None if it fits in memory.

    Arguments and errors: as for `load_image_folder`.
    """
    check_reading("error", channels)
    folder, shape = storage.folder_name(folder), (*height_width(image_size), channels)
    paths, _, _ = choose_examples(folder, list_images(folder), split)
    if fits_in_memory(in_memory, len(paths) * int(np.prod(shape))):
        return None
    return FirstReading(folder, paths, decode.parse_background(background), shape, None, cache_dir)


def readable_indices(
    folder: str,
    paths: Sequence[str],
    labels: np.ndarray | None,
    classes: Sequence[str],
    broken: dict[int, str],
    on_decode_error: str,
) -> list[int]:
    """Indices of the readable images; raises unless broken ones are to be skipped and can be."""
    named = [f"{paths[index]} ({broken[index]})" for index in sorted(broken)]
    if len(broken) == len(paths):
        raise InvalidDataError(
            f"none of the {len(paths):,} images in {folder} can be read: {listed(named, NAMED_IN_ERROR)}; check `folder`"
        )
    if on_decode_error == "error":
        raise InvalidDataError(
            f"{len(broken):,} of {len(paths):,} images in {folder} cannot be read: {listed(named, NAMED_IN_ERROR)}; "
            "repair or remove them, or train without them: `on_decode_error='skip'`"
        )
    kept = [index for index in range(len(paths)) if index not in broken]
    if labels is not None and (lost := sorted(set(labels.tolist()) - set(labels[kept].tolist()))):
        names = [classes[label] for label in lost]
        raise InvalidDataError(
            f"no image of class {listed(names, NAMED_IN_ERROR)} in {folder} can be read: repair its files, or remove its folder"
        )

    logger.info(f"{folder}: skipped {len(broken):,} broken of {len(paths):,} images: {listed(named, NAMED_IN_REPORT)}")
    return kept


def _summary(folder: str, part: str, count: int, classes: Sequence[str], labels: np.ndarray | None) -> str:
    if labels is None:
        return f"{folder}: {count:,} images{part} without classes"
    sizes = np.bincount(labels, minlength=len(classes))
    named = [f"{label} {name} ({size:,})" for label, (name, size) in enumerate(zip(classes, sizes, strict=True))]
    return f"{folder}: {count:,} images{part} in {len(classes)} classes: {listed(named, NAMED_IN_REPORT)}"
