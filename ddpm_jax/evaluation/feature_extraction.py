"""Extract features of many images on all devices: batch by batch, or accumulated as statistics."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data.source import ImageSource
from ddpm_jax.diffusion import pixels
from ddpm_jax.metrics import feature_set
from ddpm_jax.metrics.feature_set import FeatureSet
from ddpm_jax.metrics.features import FeatureExtractor, Features
from ddpm_jax.runtime import distributed
from ddpm_jax.runtime.batch_driver import BatchDriver
from ddpm_jax.runtime.errors import InvalidDataError
from ddpm_jax.runtime.mesh import batch_sharding, replicated


def extract(
    extractor: FeatureExtractor,
    mesh: Mesh,
    batches: Iterable[np.ndarray],
    *,
    batch_size: int,
    report: Callable[[float], None] = lambda images: None,
    pixel_format: pixels.PixelFormat = pixels.UINT8,
) -> Iterator[Features]:
    """Yield the features of images, batch by batch: NumPy arrays, on every host.

    The host reads the next batch while the devices compute.

    Args:
      extractor: from `make_extractor`.
      mesh: with one axis, over which each batch is split.
      batches: uint8 [b, H, W, C] each, b <= batch_size, all with the same H, W, C; the same on every host.
      batch_size: images per batch over all devices; shorter batches are padded to avoid recompilation.
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

    done = 0
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

    `batch_size` counts images over all devices; `max_features` is the largest number of vectors to keep, 0 for all.
    """

    extractor: FeatureExtractor
    mesh: Mesh
    batch_size: int
    max_features: int = 0
    pixel_format: pixels.PixelFormat = pixels.UINT8

    def collect(self, batches: Iterable[np.ndarray], count: int, title: str = "features", **options: bool) -> FeatureSet:
        """Accumulate the features of `count` images in batches uint8 [b, H, W, C], with a progress line that has a title."""
        with distributed.show_progress(count, title=title) as report:
            parts = extract(
                self.extractor, self.mesh, batches, batch_size=self.batch_size, report=report, pixel_format=self.pixel_format
            )
            return feature_set.accumulate_features(parts, count, self.max_features, **options)

    def split(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Split images [N, H, W, C] into batches."""
        return (images[first : first + self.batch_size] for first in range(0, len(images), self.batch_size))

    def read(self, source: ImageSource) -> Iterator[dict[str, np.ndarray]]:
        """Read all of a source in order, in batches as `source.batch` returns them."""
        for first in range(0, len(source), self.batch_size):
            yield source.batch(np.arange(first, min(first + self.batch_size, len(source))))
