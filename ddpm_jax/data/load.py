"""Loads a data set by name: one that is shipped, a TFDS set, or one of the user's own."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_jax.data import array_folder, digits, image_folder, prepared
from ddpm_jax.data.source import ImageSize, ImageSource
from ddpm_jax.runtime import registry, storage
from ddpm_jax.runtime.errors import InvalidArgumentError

# name -> function of `split` and any of the other arguments of `load_source`. Every other name is a TFDS set.
SOURCES: dict[str, Callable[..., ImageSource]] = {
    "digits": digits.load_digits,
    "image_folder": image_folder.load_image_folder,
    "array_folder": array_folder.load_array_folder,
    "prepared": prepared.load_prepared,
}
TFDS_NAMESPACE = "huggingface:"  # of TFDS names such as huggingface:mnist, which are not module:function


def load_source(
    name: str,
    split: str,
    *,
    data_dir: str,
    image_size: ImageSize,
    channels: int,
    in_memory: bool | str = "auto",
    num_threads: int | None = None,
    cache_dir: str = "",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> ImageSource:
    """Load a split of the set called `name`. Reading and preparing a large set is logged.

    Args:
      name: a key of SOURCES; module:function for a function of the user's own, which has a parameter `split`, may have
        parameters with the other names below, and returns an `ImageSource`; otherwise a TFDS set.
      split: such as train, or a slice such as train[:90%].
      data_dir: folder of the images, or of the TFDS sets.
      image_size: (H, W) of the images, or one number for both.
      channels: 1 (gray) or 3 (RGB).
      in_memory: whether to keep decoded images in memory; "auto": if they fit.
      num_threads: number of threads that read images.
      cache_dir: folder of manifests and of copies of sets in a bucket; "" for the user's cache folder.
      options: further arguments of the user's own function.
      settings: background, on_decode_error and levels, as for `image_folder.load_image_folder`, and array_dtype, as for
        `array_folder.load_array_folder`.

    Raises:
      InvalidArgumentError, InvalidDataError, FileAccessError, UnavailableError: the set is missing or cannot be read.
    """
    common: dict[str, Any] = {
        "image_size": image_size,
        "channels": channels,
        "in_memory": in_memory,
        "num_threads": num_threads,
        "cache_dir": cache_dir,
    }
    if _is_tfds(name):
        from ddpm_jax.data import tfds  # imported lazily: takes seconds

        if options:
            raise InvalidArgumentError(f"the data set {name} has no option {next(iter(options))!r}: TFDS sets have none")
        return tfds.load_tfds(name, split, data_dir=data_dir, **common)
    parts = {"split": split, "data_dir": data_dir, "folder": data_dir} | common | settings
    source = registry.make(name, SOURCES, "data set", options=options or {}, parts=parts, required=["split"])
    needed = (*ImageSource.__annotations__, "__len__", "batch")
    if missing := [attribute for attribute in needed if not hasattr(source, attribute)]:
        raise InvalidArgumentError(
            f"the data set {name} is a {type(source).__name__} without {', '.join(missing)}: an ImageSource is required"
        )
    return source


def needs_download(name: str, data_dir: str) -> bool:
    """Whether `load_source` would download and prepare the set: one of TFDS that is not prepared in a local folder."""
    if not _is_tfds(name) or storage.is_remote(data_dir) or importlib.util.find_spec("tensorflow_datasets") is None:
        return False
    from ddpm_jax.data import tfds

    return tfds.find_prepared(name, os.path.expanduser(data_dir)) is None


def _is_tfds(name: str) -> bool:
    return name not in SOURCES and (not registry.is_custom(name) or name.startswith(TFDS_NAMESPACE))
