"""The batch pipeline from an image source, built on Grain; `device_prefetch.py` moves its batches to the devices.

The examples of step s are a pure function of (seed, s): `batch_indices`. A run that resumes at step s therefore needs no
iterator state, and the number of hosts only changes which slice of the batch each host reads.

Random flips happen on the device, with a key of (seed, step).
"""

import functools
import sys
from collections.abc import Iterator

import grain
import numpy as np

from ddpm_jax.data.source import Batch, ImageSource
from ddpm_jax.runtime.errors import InvalidArgumentError


def batch_indices(step: int, *, num_examples: int, batch_size: int, seed: int) -> np.ndarray:
    """Indices of the examples in the global batch of `step`: int64 [batch_size], each 0 .. num_examples-1.

    The steps read one endless sequence of permutations of the set. Every epoch contains each example once, and no
    remainder is dropped: a batch may end one epoch and begin the next.
    """
    first, last = step * batch_size, (step + 1) * batch_size  # positions in the endless sequence
    parts = []
    for epoch in range(first // num_examples, (last - 1) // num_examples + 1):
        start = epoch * num_examples
        parts.append(_permutation(seed, epoch, num_examples)[max(first - start, 0) : last - start])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """A uniformly random order of the set. Cached: two are in use at the end of an epoch.

    `grain.MapDataset.shuffle` is not used: with its four-round cipher, the orders of two epochs of 50,000 examples have a
    correlation of 0.11 (by chance: 0.004). This sort takes milliseconds per epoch, and NumPy guarantees that raw Philox
    words and SeedSequence are the same in every version.
    """
    words = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(num_examples)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)  # shared between threads
    return order


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
) -> Iterator[Batch]:
    """Yields this process's part of the batches of steps start_step, start_step + 1, ... without end.

    Args:
      source: the set.
      batch_size: global batch size; may exceed the set.
      seed: for the order of examples; not negative.
      start_step: first step. Starting at any step costs the same.
      process_index: which of `process_count` equal, consecutive slices of each batch to read.
      process_count: number of processes.
      num_threads: batches read at once; 0 reads in the caller's thread.
      prefetch: number of prefetched batches.

    Returns:
      Iterator of {"image": uint8 [batch_size / process_count, H, W, C]}, plus "label" int32 if
      the set has labels. Its threads start with the first batch and end when it is closed
      (`.close()`) or garbage-collected.

    Raises:
      InvalidArgumentError: batch_size is not a positive multiple of process_count, seed is negative, or the set is empty.
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

    def read(step: int) -> Batch:
        indices = batch_indices(int(step), num_examples=len(source), batch_size=batch_size, seed=seed)
        return source.batch(indices[local])

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
