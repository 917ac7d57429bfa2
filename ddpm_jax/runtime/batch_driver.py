"""Run a computation over many images, batch by batch, on all devices, with one random key for each image.

Sampling, the variational bound, the ODE likelihood and feature extraction are functions handed to `BatchDriver.run`. It pads
the last batch, so that one compilation serves all batches, puts each batch on the devices, gathers what was computed on
every host, drops the padding and reports progress. Image i of a key has the key fold_in(key, i), so its result depends
neither on the batch size nor on the number of devices.
"""

import dataclasses
import functools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from ddpm_jax.runtime.mesh import DATA_AXIS, batch_sharding

SHARDED = PartitionSpec(DATA_AXIS)  # the first axis is split over the devices
REPLICATED = PartitionSpec()


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """B consecutive images on the devices.

    Attributes:
      inputs: pytree of arrays [B, ...], sharded over the devices.
      key_data: uint32 [B, 2], the key of each image as `jax.random.wrap_key_data` takes it; None without a key. Keys enter
        `jax.shard_map` as integers: JAX's check for reused keys cannot follow what a chunked computation folds into them.
      first: index of the first image.
      count: images that are not padding; the others repeat the last one.
      report: called with the fraction of this batch's work that is done.
    """

    inputs: Any
    key_data: jax.Array | None
    first: int
    count: int
    report: Callable[[float], None]

    def chunks(self, num_steps: int, size: int) -> Iterator[int]:
        """The first step of each chunk of `size` steps; reports progress between two chunks."""
        for first_step in range(0, num_steps, size):
            if first_step:
                self.report(first_step / num_steps)
            yield first_step


class BatchDriver:
    """Batches of one size over a mesh.

    Attributes:
      mesh: of the one axis "data".
      batch_size: images per batch over all devices: a multiple of the number of devices.
    """

    def __init__(self, mesh: Mesh, batch_size: int):
        """`batch_size` is rounded up to a multiple of the number of devices."""
        self.mesh = mesh
        self.batch_size = -(-batch_size // mesh.size) * mesh.size

    def shard(self, fn: Callable, in_specs: Sequence[PartitionSpec], **options: Any) -> Callable:
        """`fn`, computed by each device for its own images, without a collective. `in_specs`: SHARDED or REPLICATED each."""
        return jax.shard_map(fn, mesh=self.mesh, in_specs=tuple(in_specs), out_specs=SHARDED, **options)

    def split(self, inputs: Any, num_images: int) -> Iterator[tuple[int, Any]]:
        """(images, inputs) of each batch, for `run`, of a pytree of arrays [num_images, ...]."""
        for start in range(0, num_images, self.batch_size):
            stop = min(start + self.batch_size, num_images)
            yield stop - start, jax.tree.map(operator.itemgetter(slice(start, stop)), inputs)

    def run(
        self,
        compute: Callable[..., Any],
        batches: Iterable[tuple[int, Any]],
        *,
        key: jax.Array | None = None,
        first_image: int = 0,
        report: Callable[[float], None] = lambda images: None,
        ahead: int = 0,
        start: Callable[[Batch], Any] | None = None,
    ) -> Iterator[Any]:
        """Yield what `compute` makes of each batch, without the padding: NumPy arrays [n, ...], on every host.

        Args:
          compute: batch -> pytree of arrays [B, ...] on the devices; (batch, what `start` returned) -> that, with `start`.
          batches: (n, pytree of NumPy arrays [n, ...]) each, n at most `batch_size`; the same on every host. Or (n, function of
            row indices in 0 .. n-1 that returns such a pytree of these rows), which each host calls for its own rows only.
          key: the root of the images' keys; None where the computation is not random.
          first_image: index of the first image.
          report: called with the number of images done, fractions of a batch included.
          ahead: batches that are dispatched before an earlier one is gathered, so that the host works while the devices do.
          start: dispatches the first part of a batch, before an earlier one is gathered. For a `compute` that waits for the
            devices: they work while the host gathers a batch and the caller uses it.
        """
        pending: deque[tuple[int, int, Any]] = deque()
        done = 0

        def gather() -> Any:
            end, count, arrays = pending.popleft()
            result = gather_rows(count, arrays)
            report(end)
            return result

        for count, inputs in batches:
            rows = np.minimum(np.arange(self.batch_size), count - 1)
            indices = self._put((first_image + done + rows).astype(np.int32))
            batch = Batch(
                inputs=self._put_inputs(inputs, rows),
                key_data=None if key is None else _image_key_data(key, indices),
                first=first_image + done,
                count=count,
                report=functools.partial(_report_part, report, done, count),
            )
            done += count
            if start is None:
                pending.append((done, count, compute(batch)))
                if len(pending) > ahead:
                    yield gather()
            else:
                started = start(batch)
                if len(pending) > ahead:
                    yield gather()
                pending.append((done, count, compute(batch, started)))
        while pending:
            yield gather()

    def _put_inputs(self, inputs: Any, rows: np.ndarray) -> Any:
        """The inputs of `run` at `rows`, int [batch_size], on the devices."""
        if not callable(inputs):
            return jax.tree.map(lambda array: self._put(array[rows]), inputs)
        sharding = batch_sharding(self.mesh)
        indices = sharding.addressable_devices_indices_map((self.batch_size,)).values()
        own = sorted(index[0].indices(self.batch_size)[:2] for index in indices if index is not None)
        local = inputs(np.concatenate([rows[start:stop] for start, stop in own]))
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(sharding, array, (self.batch_size, *array.shape[1:])), local
        )

    def _put(self, rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(rows.shape, batch_sharding(self.mesh), lambda index: rows[index])


def chunk_size(num_steps: int, limit: int) -> int:
    """Size of chunks of a computation of `num_steps` steps: the fewest of at most `limit` steps, of equal size but the last."""
    return -(-num_steps // -(-num_steps // limit))


def _report_part(report: Callable[[float], None], done: int, count: int, fraction: float) -> None:
    report(done + count * fraction)


def gather_rows(count: int, arrays: Any) -> Any:
    """The first `count` rows of arrays on the devices; NumPy, on every host that has a part of them."""
    is_local = all(array.is_fully_addressable for array in jax.tree.leaves(arrays))
    whole = jax.device_get(arrays) if is_local else multihost_utils.process_allgather(arrays, tiled=True)
    return jax.tree.map(lambda array: np.asarray(array)[:count], whole)


@jax.jit
def _image_key_data(key: jax.Array, indices: jax.Array) -> jax.Array:
    """uint32 [B, 2]: the key of each image."""
    return jax.random.key_data(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices))
