"""Image sets with random access through `source.batch(indices)`.

`ArraySource` keeps the whole set decoded in memory, where a batch is one fancy-indexing copy. `LazySource` reads each
example on demand, for sets that do not fit. Images stay uint8 until they are on the device.
"""

import collections
import concurrent.futures
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ddpm_jax.runtime import progress
from ddpm_jax.runtime.errors import InvalidArgumentError

logger = logging.getLogger(__name__)

# Pillow's bicubic filter, antialiased when it shrinks. Sharper than BOX and BILINEAR, less ringing at edges than LANCZOS,
# and suitable for enlarging. One filter for all sets, so that training images and reference statistics always agree.
RESIZE_FILTER = Image.Resampling.BICUBIC
AHEAD = 64  # calls per thread that wait in `for_each_chunk`
MEMORY_LIMIT = 2 * 1024**3  # bytes of decoded images up to which in_memory="auto" uses memory

ARRAY_DTYPES = ("uint8", "uint16", "float32")
Batch = dict[str, np.ndarray]
ImageSize = int | Sequence[int]  # (H, W), or one number for both


class NoSuchSplit(InvalidArgumentError):
    """A set does not have the requested split."""


@runtime_checkable
class ImageSource(Protocol):
    """A set of images, as used by the pipeline and the metrics.

    Attributes:
      name: the set's name, for reports.
      split: e.g. "train".
      image_shape: (H, W, C) of every image; C is 1 (gray) or 3 (RGB) for files of images, any number for arrays.
      dtype: "uint8", or "uint16" or "float32" for arrays.
      num_classes: labels are 0 .. num_classes-1; 0 without labels.
      class_names: the name of each label; () without labels or if unknown.
      fingerprint: identifies the images of the set; "" if unknown.
      value_range: (black, white) levels of deep gray files (`value_range.py`); () without such files.
    """

    name: str
    split: str
    image_shape: tuple[int, int, int]
    dtype: str
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str
    value_range: tuple[float, ...]

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, indices: np.ndarray) -> Batch:
        """Examples at `indices` [n], each 0 .. len-1, in that order.

        Returns {"image": `dtype` [n, H, W, C]} and, if the set has labels,
        "label": int32 [n]. The arrays belong to the caller. Raises IndexError
        for an index outside the set.
        """
        ...


class ArraySource:
    """A set in memory: images [N, H, W, C] of one of `ARRAY_DTYPES`, labels [N] integers or None.

    Raises ValueError if shapes, dtypes and num_classes are inconsistent.
    """

    files: Sequence[str] = ()  # of a folder: the path of each example in it
    is_in_memory = True

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        num_classes: int = 0,
        name: str,
        split: str,
        class_names: Sequence[str] = (),
        fingerprint: str = "",
        value_range: Sequence[float] = (),
    ):
        if images.dtype.name not in ARRAY_DTYPES or images.ndim != 4:
            raise ValueError(f"images must be {' or '.join(ARRAY_DTYPES)} [N, H, W, C], not {images.dtype} {images.shape}")
        if (labels is None) != (num_classes == 0):
            raise ValueError("labels and num_classes go together: give both or neither")
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels {labels.shape} do not match {len(images)} images")
        self.name, self.split = name, split
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        self.fingerprint, self.value_range = fingerprint, tuple(value_range)
        self.image_shape, self.dtype = images.shape[1:], images.dtype.name
        self._images = images
        self._labels = None if labels is None else labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: np.ndarray) -> Batch:
        """See `ImageSource.batch`. One copy, no Python loop."""
        indices = check_indices(indices, len(self))
        batch = {"image": self._images[indices]}
        if self._labels is not None:
            batch["label"] = self._labels[indices]
        return batch


class LazySource:
    """A set whose examples are read when they are needed, in threads.

    A copy for another process, by pickle or cloudpickle, has threads of its own.

    Args:
      read: index -> (image, label): image `dtype` [H, W, channels], label an integer, or None if
        num_classes is 0. Called from several threads at once; it should spend its time in code
        that releases the GIL, as image decoders do.
      length: number of examples.
      image_size: height and width, (H, W), or one number for both.
      num_threads: number of examples of a batch that are read at once.
      fetch: indices -> record of each, such as the `__getitems__` of an ArrayRecord reader: one call for a batch. `read` is
        then called with the record of an example instead of its index.
    """

    files: Sequence[str] = ()  # as for `ArraySource`
    is_in_memory = False

    def __init__(
        self,
        read: Callable[[Any], tuple[np.ndarray, int | None]],
        length: int,
        *,
        image_size: ImageSize,
        channels: int,
        num_classes: int = 0,
        name: str,
        split: str,
        num_threads: int | None = None,
        class_names: Sequence[str] = (),
        fingerprint: str = "",
        value_range: Sequence[float] = (),
        dtype: str = "uint8",
        fetch: Callable[[list[int]], Sequence[Any]] | None = None,
    ):
        self.name, self.split, self.dtype = name, split, dtype
        self.image_shape, self.num_classes = (*height_width(image_size), channels), num_classes
        self.class_names, self.fingerprint, self.value_range = tuple(class_names), fingerprint, tuple(value_range)
        self._read, self._fetch = read, fetch
        self._length = length
        self._num_threads = num_threads or min(32, 2 * (os.cpu_count() or 1))
        self._pool = self._make_pool()

    def _make_pool(self) -> concurrent.futures.ThreadPoolExecutor:
        """The threads start with the first batch and end with this object or the interpreter."""
        return concurrent.futures.ThreadPoolExecutor(self._num_threads, "image-reader")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}  # threads cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = self._make_pool()

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: np.ndarray) -> Batch:
        """See `ImageSource.batch`. Raises what `fetch` and `read` raise; ValueError for an image of the wrong shape."""
        indices = check_indices(indices, self._length)
        shape = self.image_shape
        images = np.empty((len(indices), *shape), self.dtype)
        labels = np.empty(len(indices), np.int32)
        items: Sequence[Any] = indices.tolist()
        if self._fetch is not None and len(items):
            items = self._fetch(list(items))
        for row, (image, label) in enumerate(self._pool.map(self._read, items)):
            # Assignment would silently broadcast a wrong shape or wrap a wrong dtype.
            if image.shape != shape or image.dtype != self.dtype:
                raise ValueError(
                    f"{self.name}: example {indices[row]} is {image.dtype} {image.shape}, not {self.dtype} {shape}"
                )
            images[row] = image
            if self.num_classes:
                labels[row] = label
        return {"image": images, "label": labels} if self.num_classes else {"image": images}


def height_width(image_size: ImageSize) -> tuple[int, int]:
    """(H, W) of an image size.

    Raises:
      InvalidArgumentError: it is not one or two positive integers.
    """
    sides = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        given = tuple(image_size) if isinstance(image_size, list | tuple) else image_size
        raise InvalidArgumentError(
            f"`image_size` is {given!r}: it must be above 0, one integer such as 64, or height and width such as (64,96)"
        )
    return sides


def center_crop_and_resize(image: np.ndarray, image_size: ImageSize, channels: int) -> np.ndarray:
    """Converts any uint8 image to uint8 [H, W, channels].

    First the channels (`to_picture`). Then the largest centered rectangle of the proportions H:W is cropped and resized with
    `RESIZE_FILTER`. An image of the right shape is returned unchanged.

    Args:
      image: uint8 [h, w] or [h, w, C], C in 1 (gray), 2 (gray, alpha), 3 (RGB), 4 (RGB, alpha).
      image_size: (H, W) of the output, or one number for both.
      channels: 1 or 3.

    Raises:
      InvalidArgumentError: channels is neither 1 nor 3.
      ValueError: `image` is not such an array.
    """
    height, width = height_width(image_size)
    image = without_alpha(image, channels)
    if image.shape == (height, width, channels):
        return image
    h, w = image.shape[:2]
    crop_h, crop_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    picture = to_picture(image[top : top + crop_h, left : left + crop_w], channels)
    return to_array(picture.resize((width, height), RESIZE_FILTER), channels)  # a plain copy if the size already matches


def without_alpha(image: np.ndarray, channels: int) -> np.ndarray:
    """The image as uint8 [h, w, 1 or 3]; arguments and errors as for `center_crop_and_resize`."""
    if channels not in (1, 3):
        raise InvalidArgumentError(f"`channels` is {channels}: it must be 1 (gray) or 3 (RGB)")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4) or 0 in image.shape:
        raise ValueError(f"an image must be uint8 [H, W, 1..4], not {image.dtype} {image.shape}")
    return image[:, :, :-1] if image.shape[2] in (2, 4) else image


def to_picture(image: np.ndarray, channels: int) -> Image.Image:
    """uint8 [h, w, 1 or 3] as a Pillow image, which is gray if channels is 1: by the ITU-R 601 luma weights."""
    image = np.ascontiguousarray(image)
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    return picture.convert("L") if channels == 1 else picture  # before resizing, which then costs a third


def to_array(picture: Image.Image, channels: int) -> np.ndarray:
    """A gray or RGB Pillow image as uint8 [H, W, channels]; gray becomes three equal channels."""
    array = np.array(picture.convert("RGB") if channels == 3 else picture)
    return array.reshape(picture.height, picture.width, channels)


def fits_in_memory(in_memory: bool | str, size: int) -> bool:
    """Whether to decode a set of `size` bytes into memory; "auto" allows at most `MEMORY_LIMIT`."""
    return in_memory is True or (in_memory == "auto" and size <= MEMORY_LIMIT)


def for_each_chunk(
    work: Callable[[range], None],
    count: int,
    *,
    chunk: int,
    title: str,
    num_threads: int | None = None,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Calls `work` for all examples, in threads, and logs the progress, first every few seconds and then every minute.

    Args:
      work: called with ranges of at most `chunk` indices that cover 0 .. count-1, several at once.
      count: number of examples.
      chunk: examples per call.
      title: prefix of the log lines: "<title> 512 / 1,797 images (28%) · 100 images/s · 0:13 left".
      num_threads: number of concurrent calls.
      between: called often, in this thread, while the others work.

    Raises whatever `work` raises; pending calls are then canceled.
    """
    threads, rate = num_threads or min(16, os.cpu_count() or 1), progress.Throughput(time.monotonic)
    parts = (range(first, min(first + chunk, count)) for first in range(0, count, chunk))
    done, start = 0, time.monotonic()
    last = start
    rate.update(0)
    with concurrent.futures.ThreadPoolExecutor(threads, "image-decoder") as pool:

        def submit(number: int) -> list[tuple[concurrent.futures.Future[None], int]]:
            return [(pool.submit(work, part), len(part)) for part in itertools.islice(parts, number)]

        try:
            tasks = collections.deque(submit(AHEAD * threads))
            while tasks:
                task, size = tasks.popleft()
                task.result()
                tasks.extend(submit(1))
                between()
                done, now = done + size, time.monotonic()
                rate.update(done)
                if now - last > min(3 + (now - start) / 20, 60):
                    last = now
                    logger.info(f"{title} {' · '.join(progress.progress_parts(done, count, 'images', '', rate))}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_indices(indices: np.ndarray, length: int) -> np.ndarray:
    """Indices as int64 [n]. Negative indices are an error, although NumPy accepts them."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise IndexError(f"indices must be a vector of integers, not {indices.dtype} {indices.shape}")
    if indices.size and (indices.min() < 0 or indices.max() >= length):
        raise IndexError(f"indices range from {indices.min()} to {indices.max()}: the set has 0 .. {length - 1}")
    return indices.astype(np.int64)
