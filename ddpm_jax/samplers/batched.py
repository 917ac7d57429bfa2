"""Generate N images with one key each, over all devices, batch by batch.

Image i of a key is a function of (key, i) alone: its own key is fold_in(key, i), whatever the batch size and the
number of devices. Each device scans its own images under `shard_map`, without a collective. A chain is dispatched in
stretches of a few steps, so that the host can show progress; one compilation serves them all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.diffusion import pixels
from ddpm_jax.diffusion.parameterization import DenoiseFn
from ddpm_jax.runtime.errors import NumericalError
from ddpm_jax.samplers import sampler as chain
from ddpm_jax.samplers.sampler import Sampler


class GeneratedBatch(NamedTuple):
    """Consecutive images, in order of their index; NumPy, on every host.

    Attributes:
      images: uint8 [n, H, W, C], or the output of `finish`.
      labels: int32 [n], or None for an unconditional network.
      saved_x: float32 [n, S, H, W, C], x_t before each saved step.
      saved_pred_xstart: float32 [n, S, H, W, C], pred_xstart at each saved step.
    """

    images: np.ndarray
    labels: np.ndarray | None
    saved_x: np.ndarray
    saved_pred_xstart: np.ndarray


class NonFiniteSamples(NumericalError):
    """Images became NaN or infinite during sampling; as uint8, such pixels would be black."""


class BatchedSampler:
    """A sampler compiled for a network, image shape and batch size; `generate` takes any parameters and keys."""

    def __init__(
        self,
        sampler: Sampler,
        make_denoise_fn: Callable[[Any, jax.Array | None], DenoiseFn],
        mesh: Mesh,
        *,
        image_shape: Sequence[int],
        batch_size: int,
        save_steps: Sequence[int] = (),
        begin: Callable[[jax.Array, Any], chain.SamplerState] | None = None,
        finish: Callable[[jax.Array], jax.Array] = pixels.to_uint8,
    ):
        """Does not compile or run anything yet.

        Args:
          sampler: built by `SAMPLERS[name]`.
          make_denoise_fn: (params, labels int32 [B] or None) -> denoise_fn.
          mesh: a mesh with one axis, "data", over which batches are sharded.
          image_shape: (H, W, C).
          batch_size: images per batch over all devices; rounded up to a multiple of the number of devices.
          save_steps: numbers of the steps whose x_t and pred_xstart are saved; 0 is the first step from noise.
          begin: (keys [B], `given` of these images) -> initial state; by default pure noise.
          finish: transforms the final x [B, H, W, C].
        """
        self.sampler = sampler
        self.mesh = mesh
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        # What XLA makes of the weights before the first step of a stretch, it makes once: on a CPU, filters for quicker
        # convolutions, in the time of half a step of 8 images. So stretches are not too short.
        self.stretch = _divisor_at_most(sampler.num_steps, max(25, sampler.num_steps // 20))
        sharded, replicated = P(*mesh.axis_names), P()

        # Keys cross into shard_map as plain integers: every stretch folds other numbers into the same keys, which
        # JAX's check for reused keys cannot see through a shard_map.
        def begin_batch(key_data: jax.Array, given: Any) -> chain.SamplerState:
            keys = jax.random.wrap_key_data(key_data)
            return begin(keys, given) if begin else chain.init_state(sampler, keys, image_shape, num_saved=len(save_steps))

        def advance(
            params: Any, labels: jax.Array | None, state: chain.SamplerState, key_data: jax.Array, first_step: jax.Array
        ) -> chain.SamplerState:
            keys, denoise_fn = jax.random.wrap_key_data(key_data), make_denoise_fn(params, labels)
            return chain.run_steps(
                sampler, denoise_fn, state, keys, first_step=first_step, count=self.stretch, save_steps=save_steps
            )

        def shard(fn: Callable, in_specs: tuple) -> Callable:
            return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=sharded)

        self._begin = jax.jit(shard(begin_batch, (sharded, sharded)))
        self._finish = jax.jit(finish)
        self._count_not_finite = jax.jit(_count_not_finite, out_shardings=NamedSharding(mesh, replicated))
        self._advance = jax.jit(shard(advance, (replicated, sharded, sharded, sharded, replicated)), donate_argnames=("state",))

    def generate(
        self,
        params: Any,
        key: jax.Array,
        *,
        num_images: int,
        first_image: int = 0,
        labels: np.ndarray | None = None,
        given: Any = None,
        report: Callable[[float], None] = lambda images: None,
    ) -> Iterator[GeneratedBatch]:
        """Yield images first_image .. first_image + num_images - 1, exactly, batch by batch.

        Args:
          params: parameters for `make_denoise_fn`, replicated over the mesh.
          key: the root key; all noise of image i is from fold_in(key, i).
          num_images: number of images.
          first_image: index of the first image, to continue a previous call.
          labels: int [num_images], one per image for a conditional network.
          given: a pytree of arrays [num_images, ...] for `begin`.
          report: called during sampling with the number of finished images, including fractions.

        Raises:
          NotFinite: some images hold NaN or infinity after some steps; the batches yielded before are sound.
        """
        for done in range(0, num_images, self.batch_size):
            count = min(self.batch_size, num_images - done)
            # The last batch is filled up with images past the end, which are dropped: no second compilation.
            indices = self._on_devices(first_image + done + np.arange(self.batch_size, dtype=np.int32))
            rows = np.resize(np.arange(done, done + count), self.batch_size)
            batch_labels = None if labels is None else np.asarray(labels, np.int32)[rows]
            device_labels = None if batch_labels is None else self._on_devices(batch_labels)
            key_data = _image_key_data(key, indices)
            state = self._begin(key_data, jax.tree.map(lambda array, rows=rows: self._on_devices(array[rows]), given))
            for first_step in range(0, self.sampler.num_steps, self.stretch):
                state = self._advance(params, device_labels, state, key_data, jnp.int32(first_step))
                if bad := int(self._count_not_finite(state.x, jnp.int32(count))):
                    raise NonFiniteSamples(self._not_finite(bad, first_image + done, count, first_step))
                report(done + count * (first_step + self.stretch) / self.sampler.num_steps)
            images, saved_x, saved_pred_xstart = self._on_host((self._finish(state.x), state.saved_x, state.saved_pred_xstart))
            yield GeneratedBatch(
                images=images[:count],
                labels=None if batch_labels is None else batch_labels[:count],
                saved_x=saved_x[:count],
                saved_pred_xstart=saved_pred_xstart[:count],
            )

    def _not_finite(self, bad: int, first_image: int, count: int, first_step: int) -> str:
        last, steps = first_step + self.stretch, self.sampler.num_steps
        before = f"they were finite after step {first_step}" if first_step else "the chain began with finite noise"
        return (
            f"{bad} of the {count} images {first_image}..{first_image + count - 1} are NaN or infinite after step {last} of "
            f"{steps} ({before}): try `sampler='ddim'`, a `guidance_scale` nearer to 1, another "
            "`checkpoint_step`, or `dtype='float32'`"
        )

    def _on_devices(self, rows: np.ndarray) -> jax.Array:
        sharding = NamedSharding(self.mesh, P(*self.mesh.axis_names))
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    def _on_host(self, arrays: Any) -> Any:
        if jax.process_count() > 1:
            return multihost_utils.process_allgather(arrays, tiled=True)
        return jax.device_get(arrays)


def _count_not_finite(x: jax.Array, count: jax.Array) -> jax.Array:
    """How many of the first `count` images of x [B, H, W, C] hold a NaN or an infinity: int32."""
    finite = jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    return jnp.sum(~finite & (jnp.arange(x.shape[0]) < count), dtype=jnp.int32)


@jax.jit
def _image_key_data(key: jax.Array, indices: jax.Array) -> jax.Array:
    """uint32 [B, 2]: the key of each image."""
    return jax.random.key_data(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices))


def _divisor_at_most(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(divisor for divisor in range(1, limit + 1) if number % divisor == 0)
