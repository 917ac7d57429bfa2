"""The variational bound of images, term by term, over all devices.

The chain of a bound needs no order: each term takes its own x_t = q_sample(x_start, t, ε) and one network evaluation.
Terms are computed from t = T-1 down in stretches, as `generate` walks a chain, so that the host can show progress;
one compilation serves them all. Image i of a key draws its noise from fold_in(key, i), whatever the batch size and
the number of devices.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.process import bound, likelihood, pixels
from ddpm_jax.process.schedules import NoiseSchedule
from ddpm_jax.samplers.sampler import DenoiseFn


class BoundBatch(NamedTuple):
    """Terms of consecutive images; NumPy float64, on every host.

    Attributes:
      timesteps: int [n, K], the t of each term: all of 0..T-1 in descending order, or those drawn.
      bits: [n, K], bits per dimension of the term at t: L_0 at t = 0, L_t above.
      xstart_mse: [n, K], mean squared error of the guess of x_start, in units of [-1, 1].
      prior: [n], L_T in bits per dimension.
    """

    timesteps: np.ndarray
    bits: np.ndarray
    xstart_mse: np.ndarray
    prior: np.ndarray


class BoundMeter:
    """Compiled once for a network and batch size; then `measure` for any parameters and images."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        make_denoise_fn: Callable[[Any, jax.Array | None], DenoiseFn],
        mesh: Mesh,
        *,
        prediction: str,
        variance: str,
        clip_denoised: bool,
        batch_size: int,
        timesteps_per_image: int = 0,
    ):
        """Prepare; nothing is compiled or run yet.

        Args:
          schedule: the chain of T steps that the network was trained on.
          make_denoise_fn: (params, labels int32 [B] or None) -> denoise_fn.
          mesh: of one axis, "data"; each device takes its share of every batch.
          prediction: what the network predicts.
          variance: of the reverse steps.
          clip_denoised: whether each guess of x_start is clipped to [-1, 1].
          batch_size: images at a time over all devices; rounded up to a multiple of the number of devices.
          timesteps_per_image: 0 for all T terms; else so many of them, one drawn from each of as many equal parts of
            0..T-1, so that T times their mean is an unbiased estimate of the sum.

        Raises:
          ValueError: more timesteps than T, or a number that does not divide T.
        """
        steps = schedule.num_timesteps
        if timesteps_per_image and steps % timesteps_per_image:
            raise ValueError(f"timesteps_per_image is {timesteps_per_image}: it must divide the {steps} timesteps")
        self.mesh = mesh
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.terms = timesteps_per_image or steps
        self.stretch = max(n for n in range(1, max(1, self.terms // 20) + 1) if self.terms % n == 0)
        part = steps // self.terms
        sharded, replicated = P(*mesh.axis_names), P()

        def advance(params: Any, labels: jax.Array | None, images: jax.Array, key_data: jax.Array, first: jax.Array):
            keys, denoise_fn = jax.random.wrap_key_data(key_data), make_denoise_fn(params, labels)
            x_start = pixels.from_uint8(images)

            def body(carry: None, i: jax.Array):
                within = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 2 * i), (), 0, part))(keys)
                noise = jax.vmap(lambda key: jax.random.fold_in(key, 2 * i + 1))(keys)
                t = part * (self.terms - 1 - i) + within
                terms = bound.bound_terms(
                    schedule,
                    denoise_fn,
                    x_start,
                    t,
                    noise,
                    prediction=prediction,
                    variance=variance,
                    clip_denoised=clip_denoised,
                )
                return carry, (t, terms.bits, terms.xstart_mse)

            _, columns = jax.lax.scan(body, None, first + jnp.arange(self.stretch, dtype=jnp.int32))
            return jax.tree.map(lambda column: column.T, columns)

        def prior(images: jax.Array) -> jax.Array:
            t = jnp.full(images.shape[0], steps - 1, jnp.int32)
            return likelihood.prior_bits_per_dim(schedule, pixels.from_uint8(images), t)

        def shard(fn: Callable, in_specs: tuple) -> Callable:
            return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=sharded))

        self._advance = shard(advance, (replicated, sharded, sharded, sharded, replicated))
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
    ) -> Iterator[BoundBatch]:
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
            columns = []
            for first in range(0, self.terms, self.stretch):
                columns.append(self._on_host(self._advance(params, device_labels, batch, key_data, jnp.int32(first))))
                report(done + count * (first + self.stretch) / self.terms)
            t, bits, xstart_mse = (np.concatenate(column, axis=1)[:count] for column in zip(*columns, strict=True))
            prior = np.asarray(self._on_host(self._prior(batch)), np.float64)[:count]
            yield BoundBatch(t, bits.astype(np.float64), xstart_mse.astype(np.float64), prior)

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
