"""Moves the batches of a process to the devices ahead of their use."""

import collections
import itertools
from collections.abc import Iterator

import jax

from ddpm_jax.data.source import Batch

ON_DEVICE = 2  # batches on the devices at a time, excluding the one in use


def prefetch_to_device(iterator: Iterator[Batch], sharding: jax.sharding.Sharding) -> Iterator[dict[str, jax.Array]]:
    """Moves batches to the devices ahead of their use.

    Transfers run in the background, so that the next `ON_DEVICE` batches are transferred while a step computes. The first
    batch is returned as soon as it is ready; the others start after it.

    Args:
      iterator: this process's batches, e.g. from `batches`; closed together with the result.
      sharding: of the global batch over its first axis, e.g. NamedSharding(mesh, PartitionSpec("data")).
        The slices of the processes are in the order of the devices.

    Returns:
      Iterator of the same dictionaries with global arrays [batch_size, ...].
    """
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    wanted = 1  # the caller waits for the first batch only
    try:
        while True:
            for batch in itertools.islice(iterator, wanted - len(queue)):
                queue.append({name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()})
            if not queue:
                return
            yield queue.popleft()
            wanted = ON_DEVICE
    finally:
        queue.clear()
        if hasattr(iterator, "close"):
            iterator.close()
