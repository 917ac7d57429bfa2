"""Generate only the missing images of a folder, so that an interrupted command can resume."""

import functools
import logging
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ddpm_jax.diffusion import conditioning
from ddpm_jax.evaluation.sample_cache import SampleCache
from ddpm_jax.runtime import distributed
from ddpm_jax.runtime.background_writer import BackgroundWriter
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
    """Generate the missing images of 0 .. num_images-1, and write each batch while the next one is generated.

    At most two batches are in memory. Every process must call this. The gaps of process 0 apply to all.

    Args:
      sampler_at: image index -> sampler for the range that starts there.
      key: root key of the images.
      gaps: the missing indices as ranges; only read on process 0.
      cond: pytree of arrays [num_images, ...], or None.
      write: called with (index of the first image, batch), in order, in a thread of process 0 only.
      split_at: no range crosses this index, so that a different sampler can be used from there on.

    Raises:
      NonFiniteSamples: images contain NaN; images written before are kept.
      ExpectedError: raised by `write`.
    """
    bounds = distributed.broadcast_ints([bound for gap in gaps for bound in (gap.start, gap.stop)])
    missing: list[tuple[int, int]] = []
    for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
        middle = [split_at] if start < split_at < stop else []
        missing += zip([start, *middle], [*middle, stop], strict=True)
    there = num_images - sum(stop - start for start, stop in missing)
    if there:
        logger.info(f"{there:,} of {num_images:,} images are there already")
    with distributed.show_progress(num_images) as show, BackgroundWriter(write) as writer:

        def report(start: int, images: float) -> None:
            show(start + images)
            if jax.process_count() == 1:  # the processes of a job stop together, at the end of the batch
                writer.raise_if_failed()

        for start, stop in missing:
            batches = sampler_at(start).generate(
                params,
                key,
                num_images=stop - start,
                first_image=start,
                cond=jax.tree.map(operator.itemgetter(slice(start, stop)), cond),
                report=functools.partial(report, start),
            )
            first = start
            for batch in batches:
                with distributed.raise_on_all_processes():
                    if distributed.is_primary_process():
                        writer.submit(first, batch)
                first += len(batch.images)
        with distributed.raise_on_all_processes():
            writer.wait()


def generate_into_cache(
    folder: pathlib.Path,
    identity: dict[str, Any],
    sampler: BatchedSampler,
    params: Any,
    key: jax.Array,
    cond: Any,
    *,
    num_images: int,
) -> SampleCache:
    """Return the cache in `folder` with images 0 .. num_images-1, generating the missing ones.

    Arguments as for `SampleCache` and `generate_missing`.

    Raises:
      ConflictError: the folder was written with different settings.
      FileAccessError: the folder cannot be written.
    """
    primary = distributed.is_primary_process()
    with distributed.raise_on_all_processes():
        cache = SampleCache(folder, identity, is_writer=primary)
        gaps = cache.missing(num_images) if primary else []

    def write(first: int, batch: GeneratedBatch) -> None:
        cache.write(first, batch.images, conditioning.labels_of(batch.cond))

    generate_missing(lambda first: sampler, params, key, gaps, cond, write, num_images=num_images)
    return cache
