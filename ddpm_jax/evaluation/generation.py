"""Generate only the images that a folder does not hold yet, so that a command that was killed continues where it stopped."""

import functools
import logging
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ddpm_jax.evaluation.sample_cache import SampleCache
from ddpm_jax.runtime import distributed
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch

logger = logging.getLogger(__name__)


def generate_missing(
    sampler_at: Callable[[int], BatchedSampler],
    params: Any,
    key: jax.Array,
    gaps: Sequence[range],
    cond: Any,
    write: Callable[[int, GeneratedBatch], None],
    *,
    num_images: int,
    split_at: int = 0,
) -> None:
    """Generate the images that are missing of 0 .. num_images-1, and write each batch before the next is begun.

    Every process calls this; the gaps of the first one decide for all.

    Args:
      sampler_at: index of an image -> the sampler for the range that begins there.
      params: what the sampler takes.
      key: the root of the images' keys.
      gaps: of the first process, the missing indices as ranges; not read in the others.
      cond: pytree of arrays [num_images, ...], or None.
      write: (index of the first image, batch), called in the first process alone.
      num_images: how many images there are to be.
      split_at: a range does not cross this index, so that images from there on can have another sampler.

    Raises:
      NonFiniteSamples: images hold NaN; those written before stay.
      ExpectedError: what `write` raises.
    """
    bounds = distributed.broadcast_ints([bound for gap in gaps for bound in (gap.start, gap.stop)])
    missing: list[tuple[int, int]] = []
    for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
        middle = [split_at] if start < split_at < stop else []
        missing += zip([start, *middle], [*middle, stop], strict=True)
    there = num_images - sum(stop - start for start, stop in missing)
    if there:
        logger.info(f"{there:,} of {num_images:,} images are there already")
    with distributed.show_progress(num_images) as report:
        for start, stop in missing:
            batches = sampler_at(start).generate(
                params,
                key,
                num_images=stop - start,
                first_image=start,
                cond=jax.tree.map(operator.itemgetter(slice(start, stop)), cond),
                report=functools.partial(_report_from, report, start),
            )
            first = start
            for batch in batches:
                with distributed.raise_on_all_processes():
                    if distributed.is_primary_process():
                        write(first, batch)
                first += len(batch.images)


def _report_from(report: Callable[[float], None], start: int, images: float) -> None:
    report(start + images)


def generate_into_cache(
    folder: pathlib.Path,
    identity: dict[str, Any],
    sampler: BatchedSampler,
    params: Any,
    key: jax.Array,
    cond: Any,
    *,
    num_images: int,
    defaults: dict[str, Any],
) -> SampleCache:
    """The cache in `folder` with images 0 .. num_images-1; those that it does not hold yet are generated.

    Args:
      folder: of the cache.
      identity: of the images, as JSON can hold it.
      sampler, params, key, cond, num_images: as `generate_missing` takes them.
      defaults: values of fields of the identity that an older cache does not have.

    Raises:
      ConflictError, FileAccessError: the folder holds images of another kind, or cannot be written.
    """
    primary = distributed.is_primary_process()
    with distributed.raise_on_all_processes():
        cache = SampleCache(folder, identity, defaults=defaults, is_writer=primary)
        gaps = cache.missing(num_images) if primary else []

    def write(first: int, batch: GeneratedBatch) -> None:
        cache.write(first, batch.images, batch.cond)

    generate_missing(lambda first: sampler, params, key, gaps, cond, write, num_images=num_images)
    return cache
