"""Generate N images with one key each, over all devices, batch by batch.

Image i of a key is a function of (key, i) alone, whatever the batch size and the number of devices. Each device scans its own
images under `shard_map`, without a collective. A chain is dispatched in chunks of a few steps, so that the host can show
progress and find NaN; one compilation serves them all. Each chunk is dispatched before the one before it is checked, and the
first of a batch before the images of the batch before it are fetched, so that the devices do not wait for the host.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ddpm_jax.diffusion import pixels
from ddpm_jax.diffusion.parameterization import DenoiseFn
from ddpm_jax.runtime.batch_driver import REPLICATED, SHARDED, Batch, BatchDriver, chunk_size, gather_rows
from ddpm_jax.runtime.errors import NumericalError
from ddpm_jax.runtime.mesh import batch_sharding
from ddpm_jax.samplers import sampler as chain
from ddpm_jax.samplers.sampler import Sampler
from ddpm_jax.samplers.watch import Stage, Watch, current


class GeneratedBatch(NamedTuple):
    """Consecutive images, in order of their index; NumPy, on every host.

    Attributes:
      images: uint8 [n, H, W, C], or the output of `finish`.
      cond: the condition of each image, a pytree of arrays [n, ...] such as int32 labels; None if unconditional.
      saved_x: float32 [n, S, H, W, C], x_t before each saved step.
      saved_pred_xstart: float32 [n, S, H, W, C], pred_xstart at each saved step.
    """

    images: np.ndarray
    cond: Any
    saved_x: np.ndarray
    saved_pred_xstart: np.ndarray


class NonFiniteSamples(NumericalError):
    """Images became NaN or infinite during sampling; as uint8, such pixels would be black."""


class BatchedSampler:
    """A sampler compiled for a network, image shape and batch size; `generate` takes any parameters and keys."""

    def __init__(
        self,
        sampler: Sampler,
        make_denoise_fn: Callable[[Any, Any], DenoiseFn],
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
          make_denoise_fn: (params, cond) -> denoise_fn.
          mesh: a mesh with one axis, "data", over which batches are sharded.
          image_shape: (H, W, C).
          batch_size: images per batch over all devices; rounded up to a multiple of the number of devices.
          save_steps: numbers of the steps whose x_t and pred_xstart are saved; 0 is the first step from noise.
          begin: (keys [B], `given` of these images) -> initial state; by default pure noise.
          finish: transforms the final x [B, H, W, C].
        """
        self.sampler = sampler
        self._driver = BatchDriver(mesh, batch_size)
        self._make_denoise_fn, self._save_steps = make_denoise_fn, tuple(save_steps)
        self._watched_chunks: dict[int, Callable[..., Any]] = {}
        self.batch_size = self._driver.batch_size
        # What XLA makes of the weights before the first step of a chunk, it makes once: on a CPU, filters for faster
        # convolutions, in the time of half a step of 8 images. So chunks are not too short.
        self.chunk_size = chunk_size(sampler.num_steps, max(25, sampler.num_steps // 20))

        def begin_batch(key_data: jax.Array, given: Any) -> chain.SamplerState:
            keys = jax.random.wrap_key_data(key_data)
            return begin(keys, given) if begin else chain.init_state(sampler, keys, image_shape, num_saved=len(save_steps))

        def advance(
            params: Any, cond: Any, state: chain.SamplerState, key_data: jax.Array, first_step: jax.Array
        ) -> chain.SamplerState:
            keys, denoise_fn = jax.random.wrap_key_data(key_data), make_denoise_fn(params, cond)
            return chain.run_steps(
                sampler, denoise_fn, state, keys, first_step=first_step, count=self.chunk_size, save_steps=save_steps
            )

        self._begin = jax.jit(self._driver.shard(begin_batch, (SHARDED, SHARDED)))
        specs = (REPLICATED, SHARDED, SHARDED, SHARDED, REPLICATED)
        self._advance = jax.jit(self._driver.shard(advance, specs), donate_argnames=("state",))
        self._finish = jax.jit(finish)
        self._count_not_finite = jax.jit(_count_not_finite, out_shardings=NamedSharding(mesh, REPLICATED))

    def generate(
        self,
        params: Any,
        key: jax.Array,
        *,
        num_images: int,
        first_image: int = 0,
        cond: Any = None,
        given: Any = None,
        report: Callable[[float], None] = lambda images: None,
        watching: Watch | None = None,
    ) -> Iterator[GeneratedBatch]:
        """Yield images first_image .. first_image + num_images - 1, exactly, batch by batch.

        The devices compute the first steps of the next batch while the caller has a batch; so two batches are in memory.

        Args:
          params: parameters for `make_denoise_fn`, replicated over the mesh.
          key: the root key; all noise of image i is from fold_in(key, i).
          num_images: number of images.
          first_image: index of the first image, to continue a previous call.
          cond: pytree of arrays [num_images, ...] for a conditional network.
          given: a pytree of arrays [num_images, ...] for `begin`.
          report: called during sampling with the number of finished images, including fractions.
          watching: gets the stages of each batch; then no batch is started before the one before it is done.

        Raises:
          NonFiniteSamples: some images hold NaN or infinity after some steps; the batches yielded before are sound.
        """
        compute, start = self._dispatched(params) if watching is None else (self._watched(params, watching), None)
        batches = self._driver.split((cond, given), num_images)
        return self._driver.run(compute, batches, key=key, first_image=first_image, report=report, start=start)

    def generate_all(self, params: Any, key: jax.Array, **options: Any) -> GeneratedBatch:
        """As `generate`, all images in one; `ddpm_jax.watch` gets their stages."""
        parts = self.generate(params, key, **options, watching=current())
        return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)

    def _dispatched(self, params: Any) -> tuple[Callable[[Batch, Any], GeneratedBatch], Callable[[Batch], Any]]:
        """`compute` and `start` for `BatchDriver.run`: a chunk is dispatched before the one before it is checked."""

        def advance(batch: Batch, state: Any, first_step: int) -> tuple[Any, jax.Array]:
            state = self._advance(params, batch.inputs[0], state, batch.key_data, jnp.int32(first_step))
            return state, self._count_not_finite(state.x, jnp.int32(batch.count))

        def start(batch: Batch) -> tuple[Any, jax.Array]:
            return advance(batch, self._begin(batch.key_data, batch.inputs[1]), 0)

        def compute(batch: Batch, started: tuple[Any, jax.Array]) -> GeneratedBatch:
            state, not_finite = started
            for first_step in range(self.chunk_size, self.sampler.num_steps, self.chunk_size):
                state, following = advance(batch, state, first_step)
                self._require_finite(not_finite, batch, first_step - self.chunk_size)
                batch.report(first_step / self.sampler.num_steps)
                not_finite = following
            self._require_finite(not_finite, batch, self.sampler.num_steps - 1)
            return GeneratedBatch(self._finish(state.x), batch.inputs[0], state.saved_x, state.saved_pred_xstart)

        return compute, start

    def _watched(self, params: Any, watching: Watch) -> Callable[[Batch], GeneratedBatch]:
        """`compute` of `BatchDriver.run`, in chunks of other sizes, with a stage after each."""
        steps, schedule = self.sampler.num_steps, self.sampler.schedule
        size = chunk_size(steps, -(-steps // watching.stages))
        advance = self._watched_chunk(size)

        def compute(batch: Batch) -> GeneratedBatch:
            cond, given = batch.inputs
            state = self._begin(batch.key_data, given)
            for first_step in batch.chunks(steps, size):
                state, pred_xstart = advance(params, cond, state, batch.key_data, jnp.int32(first_step))
                done = min(first_step + size, steps)
                x_t, pred_xstart = gather_rows(batch.count, (state.x, pred_xstart))
                if not np.isfinite(x_t).all():
                    bad = int((~np.isfinite(x_t).reshape(len(x_t), -1).all(axis=1)).sum())
                    raise NonFiniteSamples(
                        f"{bad} of the {batch.count} images are NaN or infinite after step {done} of {steps}: try "
                        "`sampler='ddim'`, or a `guidance_scale` nearer to 1"
                    )
                in_order = self.sampler.total_steps is None and done < steps
                t = int(schedule.timesteps[steps - 1 - done]) if in_order else None
                watching.show(Stage(batch.first, done, steps, t, x_t, pred_xstart))
            return GeneratedBatch(self._finish(state.x), cond, state.saved_x, state.saved_pred_xstart)

        return compute

    def _watched_chunk(self, count: int) -> Callable[..., Any]:
        """A function compiled for `count` steps that also returns the last pred_xstart."""
        if count not in self._watched_chunks:

            def advance(params: Any, cond: Any, state: chain.SamplerState, key_data: jax.Array, first_step: jax.Array) -> Any:
                keys, denoise_fn = jax.random.wrap_key_data(key_data), self._make_denoise_fn(params, cond)
                chosen = {"first_step": first_step, "count": count, "save_steps": self._save_steps}
                return chain.run_steps_with_prediction(self.sampler, denoise_fn, state, keys, **chosen)

            specs = (REPLICATED, SHARDED, SHARDED, SHARDED, REPLICATED)
            self._watched_chunks[count] = jax.jit(self._driver.shard(advance, specs), donate_argnames=("state",))
        return self._watched_chunks[count]

    def lower_chunk(self, params: Any, cond: Any = None, given: Any = None) -> jax.stages.Lowered:
        """The program of one chunk of steps, to compile it for a machine that need not be present.

        Args:
          params: the parameters' shapes, jax.ShapeDtypeStruct with a sharding over the mesh, as all arguments.
          cond: [batch_size, ...], for a conditional network.
          given: [batch_size, ...], for `begin`.
        """
        rows = batch_sharding(self._driver.mesh)
        key_data = jax.ShapeDtypeStruct((self.batch_size, 2), jnp.uint32, sharding=rows)
        state = jax.eval_shape(self._begin, key_data, given)
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), state)
        first_step = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(self._driver.mesh, REPLICATED))
        return self._advance.lower(params, cond, state, key_data, first_step)

    def _require_finite(self, not_finite: jax.Array, batch: Batch, step: int) -> None:
        """Raise NonFiniteSamples if the count of the chunk that has this step is above 0; waits for the chunk."""
        if bad := int(not_finite):
            steps, first_step = self.sampler.num_steps, step // self.chunk_size * self.chunk_size
            last = min(first_step + self.chunk_size, steps)
            before = f"they were finite after step {first_step}" if first_step else "the chain began with finite noise"
            raise NonFiniteSamples(
                f"{bad} of the {batch.count} images {batch.first}..{batch.first + batch.count - 1} are NaN or infinite after "
                f"step {last} of {steps} ({before}): try `sampler='ddim'`, a `guidance_scale` nearer to 1, another "
                "`checkpoint_step`, or `dtype='float32'`"
            )


def _count_not_finite(x: jax.Array, count: jax.Array) -> jax.Array:
    """How many of the first `count` images of x [B, H, W, C] hold a NaN or an infinity: int32."""
    finite = jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    return jnp.sum(~finite & (jnp.arange(x.shape[0]) < count), dtype=jnp.int32)
