"""Image sets of TensorFlow Datasets, by TFDS name.

A prepared set is read from its array_record files, without network and without tensorflow, whose import takes five
seconds. A missing set is downloaded and prepared once.
"""

import concurrent.futures
import contextlib
import difflib
import glob
import importlib.util
import io
import logging
import math
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from ddpm_jax.data import local_copy
from ddpm_jax.data.source import (
    ArraySource,
    ImageSize,
    ImageSource,
    LazySource,
    NoSuchSplit,
    center_crop_and_resize,
    fits_in_memory,
    for_each_chunk,
    height_width,
)
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError, error_line

logger = logging.getLogger(__name__)

CHUNK = 256  # examples per task of a thread


def load_tfds(
    name: str,
    split: str,
    *,
    data_dir: str = "",
    image_size: ImageSize,
    channels: int,
    in_memory: bool | str = "auto",
    num_threads: int | None = None,
    cache_dir: str = "",
) -> ImageSource:
    """A split of a TFDS image set, every image converted by `center_crop_and_resize`.

    The newest prepared version is read, whichever version the installed TFDS would prepare. Images come from the feature
    "image" or the only image feature; labels from "label" or the only class label. Otherwise the set has no labels
    (`num_classes` 0).

    Args:
      name: TFDS name, "cifar10", "lsun/bedroom", or with a version "cifar10:3.0.2".
      split: TFDS split, "train" or a part such as "train[:90%]".
      data_dir: folder of TFDS's sets; "" for TFDS's default ($TFDS_DATA_DIR or ~/tensorflow_datasets).
      image_size: (H, W) of the output, or one number for both.
      channels: 1 or 3.
      in_memory: True decodes the split once into memory, False reads examples on demand,
        "auto" uses memory for up to `source.MEMORY_LIMIT` bytes.
      num_threads: threads that read and decode.
      cache_dir: folder of the copy of a set in a bucket (`local_copy.cache_folder`).

    Raises:
      InvalidArgumentError: no such set, config, version or split; not an image set; channels not 1 or 3.
      UnavailableError: TFDS is not installed; the set cannot be prepared (no tensorflow, no network, manual download) or read.
    """
    if channels not in (1, 3):
        raise InvalidArgumentError(f"`channels` is {channels}: it must be 1 (gray) or 3 (RGB)")
    builder, records, (image_key, label_key, num_classes) = _open(name, split, data_dir, cache_dir)
    attributes = {
        "num_classes": num_classes,
        "class_names": builder.info.features[label_key].names if label_key else (),
        "fingerprint": f"TFDS {builder.info.full_name}, {len(records)} examples of {split}",
    } | {"name": name, "split": split}

    def read_one(record: dict) -> tuple[np.ndarray, int | None]:
        label = int(record[label_key]) if label_key else None
        return center_crop_and_resize(decode_image(record[image_key]), image_size, channels), label

    shape = (*height_width(image_size), channels)
    if fits_in_memory(in_memory, len(records) * math.prod(shape)):
        images, labels = _decode_all(records, read_one, shape, f"{name} {split}", num_threads)
        return ArraySource(images, labels if label_key else None, **attributes)
    return LazySource(
        read_one,
        len(records),
        fetch=records.__getitems__,
        image_size=image_size,
        channels=channels,
        num_threads=num_threads,
        **attributes,
    )


def open_images(name: str, split: str, data_dir: str = "") -> tuple[int, int, Callable[[list[int]], list[np.ndarray]]]:
    """Number of images of a split, their channels, and a function that decodes some: indices -> uint8 [H, W] or [H, W, 3].

    Arguments and errors as for `load_tfds`. Nothing is cropped or resized.
    """
    builder, records, (image_key, _, _) = _open(name, split, data_dir)
    channels = 1 if builder.info.features[image_key].shape[-1] == 1 else 3
    pool = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1), "image-decoder")

    def read(indices: list[int]) -> list[np.ndarray]:
        return list(pool.map(decode_image, [record[image_key] for record in records.__getitems__(indices)]))

    return len(records), channels, read


def _open(name: str, split: str, data_dir: str, cache_dir: str = ""):
    """Builder, examples with encoded images, and `_choose_features`; prepares a missing set. Raises as `load_tfds`."""
    try:
        import tensorflow_datasets  # noqa: F401  (optional)
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"data set {name!r} is read with TensorFlow Datasets, and the package {error.name} is not installed: "
            "pip install tensorflow-datasets importlib_resources, or use digits or image_folder"
        ) from error
    data_dir = local_copy.of_tfds_set(name, split, os.path.expanduser(data_dir), find_prepared, cache_dir=cache_dir)
    builder = find_prepared(name, data_dir) or _prepare(name, data_dir)
    chosen = _choose_features(name, builder.info.features)
    return builder, _open_records(name, split, builder, chosen[0]), chosen


def decode_image(data: bytes) -> np.ndarray:
    """An encoded 8-bit image (PNG, JPEG, ...) as uint8 [H, W] or [H, W, 3].

    Always by Pillow: TFDS would use OpenCV if it is installed, which decodes some JPEG pixels differently by one level.
    """
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))


def find_prepared(name: str, data_dir: str):
    """Builder of the newest prepared version, or None.

    `tfds.builder` only finds the version that the installed TFDS would prepare, and would download again what an older
    or newer TFDS has prepared.
    """
    import tensorflow_datasets  # noqa: F401  (registers the sets; the search needs their default configs)
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except registered.DatasetNotFoundError:
        return None
    except ValueError as error:
        if "name string" in str(error):  # not a valid name
            raise _unknown(name) from error
        raise _unreadable(name, data_dir, error) from error
    except Exception as error:  # a damaged dataset_info.json or features.json can raise any exception
        raise _unreadable(name, data_dir, error) from error


def _prepare(name: str, data_dir: str):
    """Downloads and prepares a set and returns its builder. All failures have external causes."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name) from error
    except Exception as error:  # e.g. an unknown version; the reason follows a dump of the arguments
        reason = str(error).split('}": ')[-1].splitlines() or [type(error).__name__]
        raise _unknown_config(name) or InvalidArgumentError(f"data set {name}: {reason[0]}") from error

    _choose_features(name, builder.info.features)  # before a download of gigabytes
    where = builder.data_dir
    if importlib.util.find_spec("tensorflow") is None:
        raise UnavailableError(
            f"data set {name} is not prepared in {where}, and preparing it needs tensorflow: "
            "pip install tensorflow-cpu, or set `data_dir` to where it is prepared"
        )
    downloads = os.path.join(builder.data_dir_root, "downloads")
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not glob.glob(os.path.join(downloads, "manual", "*")):
        raise UnavailableError(
            f"data set {name} must be downloaded by hand: put its files into {os.path.join(downloads, 'manual')} "
            f"as described on https://www.tensorflow.org/datasets/catalog/{builder.name}"
        )
    # TFDS would retry for minutes. An .INFO file marks a finished download, which needs no network.
    if not glob.glob(os.path.join(downloads, "**", "*.INFO"), recursive=True):
        host = _unreachable_host(list(builder.url_infos or ()))
        if host:
            raise UnavailableError(
                f"data set {name} is not prepared in {where}, and {host} cannot be reached to download it: "
                "check the network, or set `data_dir` to where it is prepared"
            )
    with _prepare_lock(name, builder):
        if prepared := find_prepared(name, data_dir):  # by the process that held the lock before
            return prepared
        logger.info(f"data set {name}: downloading and preparing it in {where}, once")
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:
            # If files cannot be locked, another process may have prepared it meanwhile.
            with contextlib.suppress(UnavailableError):
                if prepared := find_prepared(name, data_dir):
                    return prepared
            raise UnavailableError(
                f"data set {name} could not be prepared in {where}: {error_line(error, most=300, kind=True)}"
            ) from error
    return builder


@contextlib.contextmanager
def _prepare_lock(name: str, builder) -> Iterator[None]:
    """Admits one process at a time, of this host or, on a shared filesystem with locks, of all hosts.

    A shared data_dir is thus prepared once, and a local one once per host. The lock ends with its process.
    """
    with contextlib.ExitStack() as stack:
        # No lock if the folder is not writable (TFDS has the better error) or if the system has none.
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            os.makedirs(builder.data_dir_root, exist_ok=True)
            file = stack.enter_context(open(os.path.join(builder.data_dir_root, f".{builder.name}.lock"), "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info(f"data set {name}: waiting for another process that prepares it in {builder.data_dir_root}")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unreachable_host(urls: list[str]) -> str:
    """A host of the download if none of the first few can be reached, or "" if one can.

    Always "" behind a proxy.
    """
    if urllib.request.getproxies():
        return ""
    addresses = {}
    for url in urls:
        parts = urllib.parse.urlsplit(url)
        if parts.hostname:
            addresses[parts.hostname] = parts.port or {"http": 80, "ftp": 21}.get(parts.scheme, 443)
    tried = list(addresses.items())[:3]
    for host, port in tried:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return ""
        except OSError:
            continue
    return tried[0][0] if tried else ""


def _choose_features(name: str, features) -> tuple[str, str, int]:
    """Keys of image and label ("" if there is none), and the number of classes."""
    import tensorflow_datasets as tfds

    items = dict(features.items()) if hasattr(features, "items") else {}
    images = [key for key, feature in items.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in items.items() if isinstance(feature, tfds.features.ClassLabel)]
    image_key = "image" if "image" in images else images[0] if len(images) == 1 else ""
    if not image_key:
        found = (
            f"several ({', '.join(images)}) and none called image" if images else f"none among {', '.join(items) or 'nothing'}"
        )
        raise InvalidArgumentError(f"data set {name} is not a set of images: one image feature is needed, there are {found}")
    if np.dtype(items[image_key].np_dtype) != np.uint8:
        raise InvalidArgumentError(
            f"data set {name} has {np.dtype(items[image_key].np_dtype)} images: only 8-bit ones can be read"
        )
    label_key = "label" if "label" in labels else labels[0] if len(labels) == 1 else ""
    return image_key, label_key, items[label_key].num_classes or 0 if label_key else 0


def _open_records(name: str, split: str, builder, image_key: str):
    """Sequence of examples with the image still encoded, checked by reading one."""
    import tensorflow_datasets as tfds

    sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise NoSuchSplit(
            f"data set {name} has no split {split!r}: choose one of {', '.join(sizes)}, or a part such as train[:90%]"
        ) from error
    if count == 0:
        raise InvalidArgumentError(f"data set {name}, split {split!r}, is empty: its splits are {sizes}")
    images = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    # Only one image feature is decoded, by `decode_image`.
    decoders = {key: tfds.decode.SkipDecoding() for key in images}
    try:
        records = builder.as_data_source(split, decoders=decoders)
        decode_image(records[0][image_key])
    except NotImplementedError as error:
        where, kind = builder.data_dir, builder.info.file_format.value
        raise UnavailableError(
            f"data set {name} in {where} is prepared as {kind}, which has no random access: "
            "set `data_dir` to another folder, to prepare it there as array_record"
        ) from error
    except Exception as error:  # missing or truncated files: the reader has no specific exception
        raise _unreadable(name, builder.data_dir, error) from error
    return records


def _decode_all(
    records, read_one: Callable, shape: tuple[int, int, int], title: str, num_threads: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """All examples: images uint8 [N, *shape], labels int64 [N]. Logs the progress every few seconds."""
    count = len(records)
    images, labels = np.empty((count, *shape), np.uint8), np.zeros(count, np.int64)

    def decode(indices: range) -> None:
        for index, record in zip(indices, records.__getitems__(list(indices)), strict=True):
            images[index], label = read_one(record)
            labels[index] = label or 0

    for_each_chunk(decode, count, chunk=CHUNK, title=f"data set {title}: decoded", num_threads=num_threads)
    return images, labels


def _unknown(name: str) -> InvalidArgumentError:
    import tensorflow_datasets as tfds

    wanted = name.split("/")[0].split(":")[0].lower().replace("-", "_")
    known = tfds.list_builders(with_community_datasets=False)
    close = [n for n in {wanted, wanted.replace("_", "")} if n in known] or difflib.get_close_matches(wanted, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "its names are at https://www.tensorflow.org/datasets/catalog"
    return InvalidArgumentError(f"TFDS has no data set {name!r}: {hint}")


def _unknown_config(name: str) -> InvalidArgumentError | None:
    """The error if `name` is "set/config" and the set has no such config, else None."""
    import tensorflow_datasets as tfds

    base, _, config = name.split(":")[0].partition("/")
    configs = list(tfds.builder_cls(base).builder_configs) if config and ":" not in name.split("/")[0] else []
    if not config or config in configs:
        return None
    close = difflib.get_close_matches(config, configs, n=3) or configs[:8]
    hint = f"there is {', '.join(close)}" if close else f"it has no configs, use {base}"
    return InvalidArgumentError(f"data set {base} has no config {config!r}: {hint}")


def _unreadable(name: str, where: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"data set {name} in {where or 'the default data_dir'} cannot be read ({error_line(error, most=300, kind=True)}): "
        "remove its folder to have it prepared again, or set another `data_dir`"
    )
