"""Extract features of many images on all devices: batch by batch, or accumulated as statistics.

With several processes, each reads and computes a part of the images on its own devices, and only sums and kept features are
exchanged (`feature_set.accumulate_features`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data import duplicates
from ddpm_jax.data.source import ImageSource
from ddpm_jax.diffusion import pixels
from ddpm_jax.metrics import feature_set
from ddpm_jax.metrics.feature_set import FeatureSet
from ddpm_jax.metrics.features import FeatureExtractor, Features
from ddpm_jax.runtime import distributed, exchange
from ddpm_jax.runtime.batch_driver import BatchDriver
from ddpm_jax.runtime.errors import InvalidDataError
from ddpm_jax.runtime.mesh import batch_sharding, local_mesh, replicated


def extract(
    extractor: FeatureExtractor,
    mesh: Mesh,
    batches: Iterable[np.ndarray],
    *,
    batch_size: int,
    first_image: int = 0,
    report: Callable[[float], None] = lambda images: None,
    pixel_format: pixels.PixelFormat = pixels.UINT8,
) -> Iterator[Features]:
    """Yield the features of images, batch by batch: NumPy arrays.

    The host reads the next batch while the devices compute.

    Args:
      extractor: from `make_extractor`.
      mesh: with one axis, over which each batch is split.
      batches: uint8 [b, H, W, C] each, b <= batch_size, all with the same H, W, C; the same on every host of the mesh.
      batch_size: images per batch over all devices; shorter batches are padded to avoid recompilation.
      first_image: index of the first image, for errors.
      report: called with the number of finished images.
      pixel_format: type and range of the images; those of other types than uint8 reach the extractor as floats, 0..255.

    Raises:
      InvalidDataError: a feature is not finite, or the images differ in size.
    """
    driver = BatchDriver(mesh, batch_size)
    # Without shard_map: a user-defined function gets the whole batch.
    apply = jax.jit(_scaled(extractor.apply, pixel_format), out_shardings=batch_sharding(mesh))
    variables = jax.device_put(extractor.variables, replicated(mesh))

    def sized() -> Iterator[tuple[int, np.ndarray]]:
        shape = None
        for images in batches:
            shape = shape or images.shape[1:]
            if images.shape[1:] != shape:
                raise InvalidDataError(f"images of {list(images.shape[1:])} follow images of {list(shape)}: all must be equal")
            yield len(images), images

    done = first_image
    for found in driver.run(lambda batch: apply(variables, batch.inputs), sized(), report=report, ahead=1):
        first, done = done, done + len(found.features)
        if not np.isfinite(found.features).all():
            raise InvalidDataError(f"{extractor.name} gives features that are not finite for images {first}..{done - 1}")
        yield found


@functools.lru_cache(maxsize=8)  # one object for each pair, so that later calls compile nothing
def _scaled(apply: Callable[..., Features], pixel_format: pixels.PixelFormat) -> Callable[..., Features]:
    """`apply`, for images on the scale 0..255."""
    if pixel_format.dtype == "uint8":
        return apply
    return lambda variables, images: apply(variables, pixel_format.to_255(images))


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCollector:
    """Computes features on all devices and accumulates what scores and statistics need.

    Every process calls the methods, with its part of the images, and gets the statistics of all of them.

    `batch_size` counts images over all devices; `max_features` is the largest number of vectors to keep, 0 for all.
    """

    extractor: FeatureExtractor
    mesh: Mesh
    batch_size: int
    max_features: int = 0
    pixel_format: pixels.PixelFormat = pixels.UINT8

    def collect(self, batches: Iterable[np.ndarray], count: int, title: str = "features", **options: bool) -> FeatureSet:
        """Accumulate the features of `count` images, of which this process has `part(count)`, with a progress line that has a
        title. `batches` are uint8 [b, H, W, C], b <= `local_batch_size`.
        """
        own, mesh, size = self.part(count), local_mesh(self.mesh), self.local_batch_size
        with distributed.show_progress(count, title=title) as report:
            parts = extract(
                self.extractor,
                mesh,
                _full_batches(batches, size),
                batch_size=size,
                first_image=own.start,
                report=lambda images: report(images * count / len(own)),
                pixel_format=self.pixel_format,
            )
            # Those of the process with most images, and one that ends its batches.
            steps = -(-count // jax.process_count() // size) + 1
            return feature_set.accumulate_features(
                _in_step(parts, steps), count, self.max_features, own=own, exchange=exchange, **options
            )

    @property
    def local_batch_size(self) -> int:
        """Images per batch over the devices of this process, at least one per device."""
        return -(-self.batch_size // self.mesh.size) * local_mesh(self.mesh).size

    def part(self, count: int) -> range:
        """The indices of `count` images that this process reads."""
        return exchange.own_part(count)

    def split(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Split this process's part of images [N, H, W, C] into batches."""
        return (images[rows.start : rows.stop] for rows in self.batches(len(images)))

    def read(self, source: ImageSource) -> Iterator[dict[str, np.ndarray]]:
        """Read this process's part of a source in order, in batches as `source.batch` returns them."""
        for rows in self.batches(len(source)):
            yield source.batch(np.arange(rows.start, rows.stop))

    def batches(self, count: int) -> Iterator[range]:
        """The indices of each batch of this process's part of `count` images."""
        own = self.part(count)
        for first in range(own.start, own.stop, self.local_batch_size):
            yield range(first, min(first + self.local_batch_size, own.stop))


def _full_batches(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images in batches of `size`, the last one smaller, so that the number of images determines that of batches."""
    waiting: list[np.ndarray] = []
    for images in batches:
        if waiting and images.shape[1:] != waiting[0].shape[1:]:  # `extract` raises
            yield np.concatenate(waiting)
            waiting = []
        while len(images):
            room = size - sum(map(len, waiting))
            waiting.append(images[:room])
            images = images[room:]
            if len(waiting[-1]) == room:
                yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _in_step(parts: Iterator[Features], steps: int) -> Iterator[Features]:
    """The parts, at most `steps`, of which each process makes one at a time: an error of one then ends all at once.

    It also bounds how long a process waits for the others at the end, which a collective of CPUs does for 30 s only.
    """
    for _ in range(steps):
        with distributed.raise_on_all_processes():
            part = next(parts, None)
        if part is not None:
            yield part


def gather_hashes(hashes: list[bytes]) -> list[bytes]:
    """The hashes (`duplicates.hash_images`) of the images of every process, in order; all processes call this."""
    rows = exchange.concatenate(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, duplicates.HASH_BYTES))
    return [row.tobytes() for row in rows]
