"""The training loss on held-out images, to compare steps and runs and to see overfitting.

Each image has a fixed t and fixed noise, and the t of all images cover the chain evenly. The losses of two steps therefore
differ only in the parameters, and have much less variance than the training loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data.source import Batch, ImageSource
from ddpm_jax.diffusion import gaussian, pixels
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.runtime import rng
from ddpm_jax.runtime.batch_driver import REPLICATED, SHARDED, BatchDriver


class HeldoutLoss:
    """Computes the mean loss of the network without dropout. Compiled once, for any parameters.

    Args:
      images: [N, H, W, C] of `pixel_format`.
      cond: a pytree of arrays [N, ...] such as int32 labels, or None for an unconditional network.
      schedule, parameterization, loss_fn: those of the training.
      make_denoise_fn: (params, cond) -> denoise_fn(x_t, t) -> output.
      mesh: devices.
      batch_size: images per batch, over all devices; does not change the result beyond rounding.
      pixel_format: type and range of the images.
    """

    def __init__(
        self,
        images: np.ndarray,
        cond: Any,
        *,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        loss_fn: LossFn,
        make_denoise_fn: Callable[[Any, Any], DenoiseFn],
        mesh: Mesh,
        batch_size: int,
        pixel_format: pixels.PixelFormat = pixels.UINT8,
    ) -> None:
        self._inputs = (images, cond, stratified_timesteps(len(images), schedule.num_timesteps))
        self._driver = BatchDriver(mesh, min(batch_size, len(images)))
        # The seed of the run has no part in it, so that runs with different seeds are compared on the same noise.
        self._key = rng.purpose_key(0, "heldout_loss")

        def losses(params: Any, inputs: tuple, key_data: jax.Array) -> jax.Array:
            images, cond, t = inputs
            x_start, keys = pixel_format.from_data(images), jax.random.wrap_key_data(key_data)
            noise = jax.vmap(lambda key: jax.random.normal(key, x_start.shape[1:]))(keys)
            x_t = gaussian.q_sample(schedule, x_start, t, noise)
            level = schedule.level(t)._replace(time=t)  # as in the training step
            output = parameterization.evaluate(make_denoise_fn(params, cond), x_t, level)
            return loss_fn(schedule, parameterization, output, x_start, x_t, t, noise)

        self._losses = jax.jit(self._driver.shard(losses, (REPLICATED, SHARDED, SHARDED)))

    def __call__(self, params: Any) -> float:
        """The mean loss over all images, for uniform t; the same on every host."""
        batches = self._driver.split(self._inputs, len(self._inputs[0]))
        found = self._driver.run(
            lambda batch: self._losses(params, batch.inputs, batch.key_data), batches, key=self._key, ahead=1
        )
        return float(np.concatenate(list(found)).astype(np.float64).mean())


def stratified_timesteps(number: int, num_timesteps: int) -> np.ndarray:
    """int32 [number], 0..num_timesteps-1: evenly spaced over the chain, in a fixed random order.

    The order is random because the images of a set may be sorted by class.
    """
    t = np.floor((np.arange(number) + 0.5) * num_timesteps / number).astype(np.int32)
    return np.random.default_rng(0).permutation(t)


def read_evenly(source: ImageSource, number: int) -> Batch:
    """The batch of at most `number` images, evenly spaced over the source."""
    number = min(number, len(source))
    return source.batch(np.arange(number) * len(source) // number)
