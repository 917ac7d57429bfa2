"""The batch pipeline from an image source, built on Grain; `device_prefetch.py` moves its batches to the devices.

The examples of step s are a pure function of (seed, s): `batch_indices`. A run that resumes at step s therefore needs no
iterator state, and the number of hosts only changes which slice of the batch each host reads.

Random flips happen on the device, with a key of (seed, step).
"""

import functools
import sys
from collections.abc import Iterator

import grain

from ddpm_jax.data import reader_processes
from ddpm_jax.data.example_order import read_batch
from ddpm_jax.data.source import Batch, ImageSource
from ddpm_jax.runtime.errors import InvalidArgumentError


def batches(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    prefetch: int = 8,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Yields this process's part of the batches of steps start_step, start_step + 1, ... without end.

    Args:
      source: the set.
      batch_size: global batch size; may exceed the set.
      seed: for the order of examples; not negative.
      start_step: first step. Starting at any step costs the same.
      process_index: which of `process_count` equal, consecutive slices of each batch to read.
      process_count: number of processes.
      num_threads: batches read at once without processes; 0 reads in the caller's thread.
      prefetch: number of prefetched batches in host memory; at least one per process.
      num_workers: number of processes that read one batch each at once; 0 reads in threads of this one, as is always done for
        sets in memory (`reader_processes.py`).

    Returns:
      Iterator of {"image": uint8 [batch_size / process_count, H, W, C]}, plus "label" int32 if
      the set has labels. Its threads and processes start with the first batch and end when it is closed
      (`.close()`) or garbage-collected. The batches do not depend on the last three arguments.

    Raises:
      InvalidArgumentError: batch_size is not a positive multiple of process_count, seed is negative, the set is empty, or
        it cannot be copied to processes.
    """
    if batch_size < 1 or batch_size % process_count:
        raise InvalidArgumentError(
            f"`batch_size` is {batch_size}: it must be a positive multiple of the {process_count} processes"
        )
    if seed < 0:
        raise InvalidArgumentError(f"`seed` is {seed}: it must not be negative")
    if len(source) == 0:
        raise InvalidArgumentError(f"data set {source.name}, split {source.split}, is empty")
    if not 0 <= process_index < process_count or start_step < 0:
        raise ValueError(f"no process {process_index} of {process_count}, or negative step {start_step}")
    local_size = batch_size // process_count
    local = slice(process_index * local_size, (process_index + 1) * local_size)

    read = functools.partial(read_batch, source, local=local, batch_size=batch_size, seed=seed)
    if workers := reader_processes.usable_workers(source, num_workers):
        return reader_processes.iterate(
            read, source, start_step=start_step, num_workers=workers, prefetch=prefetch, local_size=local_size
        )
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0)
    return _closing(steps.map(read).to_iter_dataset(options))


def _closing(dataset: grain.IterDataset) -> Iterator[Batch]:
    """Iterates over a Grain data set and stops its threads when the iteration ends for any reason."""
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
