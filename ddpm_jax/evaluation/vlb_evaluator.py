"""The variational bound of images, term by term, over all devices.

What a term is, and how a few of them are drawn to stand for all, is in `diffusion/vlb.py`; this drives it. Terms are computed
in stretches, as `generate` walks a chain, so that the host can show progress; one compilation serves them all.
Image i of a key draws its noise from fold_in(key, i), whatever the batch size and the number of devices.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.diffusion import likelihood, pixels, vlb
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule


class VlbBatch(NamedTuple):
    """Terms of consecutive images; NumPy float64, on every host.

    Attributes:
      timesteps: int [n, K], the t of each term: all of 0..T-1 in order, or those drawn.
      weights: [n, K], how much each term counts in the sum: 1, or one over the probability with which it was drawn.
      bits: [n, K], bits per dimension of the term at t: L_0 at t = 0, L_t above.
      xstart_mse: [n, K], mean squared error of the guess of x_start, in units of [-1, 1].
      eps_mse: [n, K], mean squared error of the guess of the noise: L_simple at t.
      prior: [n], L_T in bits per dimension.
    """

    timesteps: np.ndarray
    weights: np.ndarray
    bits: np.ndarray
    xstart_mse: np.ndarray
    eps_mse: np.ndarray
    prior: np.ndarray


class VlbEvaluator:
    """Compiled once for a network and batch size; then `measure` for any parameters and images."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        make_denoise_fn: Callable[[Any, jax.Array | None], DenoiseFn],
        mesh: Mesh,
        *,
        decoder: str = "exact",
        batch_size: int,
        timesteps_per_image: int = 0,
    ):
        """Prepare; nothing is compiled or run yet.

        Args:
          schedule: the chain of T steps that the network was trained on.
          parameterization: what the output of the network means.
          make_denoise_fn: (params, labels int32 [B] or None) -> denoise_fn.
          mesh: of one axis, "data"; each device takes its share of every batch.
          decoder: of L_0, one of `likelihood.DECODERS`.
          batch_size: images at a time over all devices; rounded up to a multiple of the number of devices.
          timesteps_per_image: 0 for all T terms; else an even number from 4 on, so many drawn without bias.

        Raises:
          ValueError: an odd number of timesteps, below 4, or T and more, which is no gain; an unknown decoder.
        """
        likelihood.check_decoder(decoder)
        steps = schedule.num_timesteps
        if timesteps_per_image and (timesteps_per_image % 2 or not 4 <= timesteps_per_image < steps):
            raise ValueError(
                f"{timesteps_per_image} timesteps for each image: they are drawn in pairs, t = 0 always, so take an even "
                f"number from 4 to below {steps}, or 0 for all"
            )
        self.mesh = mesh
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.terms = timesteps_per_image or steps
        self.stretch = max(n for n in range(1, max(1, self.terms // 20) + 1) if self.terms % n == 0)
        sharded, replicated = P(*mesh.axis_names), P()

        def choose(key_data: jax.Array) -> tuple[jax.Array, jax.Array]:
            if timesteps_per_image:
                t, weights = vlb.sample_timesteps(schedule, jax.random.wrap_key_data(key_data), self.terms // 2)
                return t.T, weights.T
            t = jnp.broadcast_to(jnp.arange(steps, dtype=jnp.int32), (key_data.shape[0], steps))
            return t, jnp.ones(t.shape)

        def advance(
            params: Any, labels: jax.Array | None, images: jax.Array, key_data: jax.Array, t: jax.Array, first: jax.Array
        ):
            keys, denoise_fn = jax.random.wrap_key_data(key_data), make_denoise_fn(params, labels)
            x_start = pixels.from_uint8(images)
            parts = (schedule, parameterization, denoise_fn, x_start)
            if timesteps_per_image:
                rows = jax.lax.dynamic_slice_in_dim(t.T, first, self.stretch)
                terms = vlb.scan_sampled_vlb_terms(*parts, rows, keys, first_row=first, decoder=decoder)
            else:
                terms = vlb.scan_vlb_terms(*parts, keys, first_t=first, count=self.stretch, decoder=decoder)
            return terms.bits.T, terms.xstart_mse.T, terms.eps_mse.T

        def prior(images: jax.Array) -> jax.Array:
            return vlb.prior_bpd(schedule, pixels.from_uint8(images))

        def shard(fn: Callable, in_specs: tuple) -> Callable:
            return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=sharded))

        self._choose = shard(choose, (sharded,))
        self._advance = shard(advance, (replicated, sharded, sharded, sharded, sharded, replicated))
        self._prior = shard(prior, (sharded,))

    def measure(
        self,
        params: Any,
        key: jax.Array,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        first_image: int = 0,
        report: Callable[[float], None] = lambda images: None,
    ) -> Iterator[VlbBatch]:
        """Yield the terms of the images, batch by batch.

        Args:
          params: what `make_denoise_fn` takes, replicated over the mesh.
          key: the root; image i draws from fold_in(key, first_image + i).
          images: uint8 [N, H, W, C], the same on every host.
          labels: int [N] for a conditional network.
          first_image: index of the first.
          report: called with the number of images done, fractions of a batch included, as work goes on.
        """
        for done in range(0, len(images), self.batch_size):
            count = min(self.batch_size, len(images) - done)
            # The last batch is filled up with its own first image: no second compilation.
            rows = done + np.minimum(np.arange(self.batch_size), count - 1)
            batch = self._on_devices(images[rows])
            device_labels = None if labels is None else self._on_devices(np.asarray(labels, np.int32)[rows])
            key_data = _image_key_data(key, self._on_devices((first_image + rows).astype(np.int32)))
            t, weights = self._choose(key_data)
            columns = []
            for first in range(0, self.terms, self.stretch):
                columns.append(self._on_host(self._advance(params, device_labels, batch, key_data, t, jnp.int32(first))))
                report(done + count * (first + self.stretch) / self.terms)
            terms = (np.concatenate(column, axis=1) for column in zip(*columns, strict=True))
            t, weights, prior = self._on_host((t, weights, self._prior(batch)))
            numbers = (np.asarray(array[:count], np.float64) for array in (weights, *terms, prior))
            yield VlbBatch(np.asarray(t[:count]), *numbers)

    def _on_devices(self, rows: np.ndarray) -> jax.Array:
        sharding = NamedSharding(self.mesh, P(*self.mesh.axis_names))
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    def _on_host(self, arrays: Any) -> Any:
        if jax.process_count() > 1:
            return multihost_utils.process_allgather(arrays, tiled=True)
        return jax.device_get(arrays)


@jax.jit
def _image_key_data(key: jax.Array, indices: jax.Array) -> jax.Array:
    """uint32 [B, 2]: the key of each image."""
    return jax.random.key_data(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices))
