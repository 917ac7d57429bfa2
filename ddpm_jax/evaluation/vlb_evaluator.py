"""Variational bound of images, term by term, on all devices.

`diffusion/vlb.py` defines the terms and the sampling of a few of them. Terms are computed in chunks, as `BatchedSampler` runs a
chain, so that the host can show progress; all chunks share one compilation. The noise of image i comes from fold_in(key, i),
independent of the batch size and the number of devices.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.diffusion import likelihood, pixels, vlb
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.evaluation.likelihood_evaluator import LikelihoodEvaluator, num_levels
from ddpm_jax.runtime.batch_driver import REPLICATED, SHARDED, Batch, chunk_size


class VlbBatch(NamedTuple):
    """Terms of consecutive images; NumPy float64, on every host.

    Attributes:
      timesteps: int [n, K], the t of each term: 0..T-1 in order, or the sampled ones.
      weights: [n, K], weight of each term in the sum: 1, or one over its sampling probability.
      bits: [n, K], bits per dimension of the term at t: L_0 at t = 0, L_t above.
      xstart_mse: [n, K], mean squared error of the predicted x_start, in units of [-1, 1].
      eps_mse: [n, K], mean squared error of the predicted noise: L_simple at t.
      prior: [n], L_T in bits per dimension.
    """

    timesteps: np.ndarray
    weights: np.ndarray
    bits: np.ndarray
    xstart_mse: np.ndarray
    eps_mse: np.ndarray
    prior: np.ndarray

    @property
    def bits_per_image(self) -> np.ndarray:
        """The bound of each image in bits per dimension: [n]."""
        return self.prior + (self.weights * self.bits).sum(axis=1)


class VlbEvaluator(LikelihoodEvaluator):
    """Evaluates the bound.

    Attributes:
      terms: number of terms per image, K.
      num_timesteps: length of the chain, T.
      decoder: decoder of L_0.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        make_denoise_fn: Callable[[Any, Any], DenoiseFn],
        mesh: Mesh,
        *,
        decoder: str = "exact",
        batch_size: int,
        timesteps_per_image: int = 0,
        pixel_format: pixels.PixelFormat = pixels.UINT8,
    ):
        """Validate the arguments, those of `LikelihoodEvaluator` and these:

        Args:
          decoder: decoder of L_0, one of `likelihood.DECODERS`.
          pixel_format: type and range of the images, of discrete levels.
          timesteps_per_image: number of sampled terms for an unbiased estimate, even and >= 4; 0 for all T terms.

        Raises:
          ValueError: timesteps_per_image is odd, below 4 or not below T; the decoder is unknown; the images are floats.
        """
        half_bin = 1 / (num_levels(pixel_format) - 1)
        likelihood.check_decoder(decoder)
        self.decoder = decoder
        self.num_timesteps = steps = schedule.num_timesteps
        if timesteps_per_image and (timesteps_per_image % 2 or not 4 <= timesteps_per_image < steps):
            raise ValueError(
                f"{timesteps_per_image} timesteps per image: they are sampled in pairs, always including t = 0, so use "
                f"an even number from 4 to below {steps}, or 0 for all"
            )
        super().__init__(mesh, batch_size)
        self.terms = timesteps_per_image or steps
        self.chunk_size = chunk_size(self.terms, max(1, self.terms // 20))

        def choose(key_data: jax.Array) -> tuple[jax.Array, jax.Array]:
            if timesteps_per_image:
                t, weights = vlb.sample_timesteps(schedule, jax.random.wrap_key_data(key_data), self.terms // 2)
                return t.T, weights.T
            t = jnp.broadcast_to(jnp.arange(steps, dtype=jnp.int32), (key_data.shape[0], steps))
            return t, jnp.ones(t.shape)

        def advance(params: Any, cond: Any, images: jax.Array, key_data: jax.Array, t: jax.Array, first: jax.Array):
            keys, denoise_fn = jax.random.wrap_key_data(key_data), make_denoise_fn(params, cond)
            x_start = pixel_format.from_data(images)
            parts = (schedule, parameterization, denoise_fn, x_start)
            if timesteps_per_image:
                rows = jax.lax.dynamic_slice_in_dim(t.T, first, self.chunk_size)
                terms = vlb.scan_sampled_vlb_terms(*parts, rows, keys, first_row=first, decoder=decoder, half_bin=half_bin)
            else:
                terms = vlb.scan_vlb_terms(
                    *parts, keys, first_t=first, count=self.chunk_size, decoder=decoder, half_bin=half_bin
                )
            return terms.bits.T, terms.xstart_mse.T, terms.eps_mse.T

        def prior(images: jax.Array) -> jax.Array:
            return vlb.prior_bpd(schedule, pixel_format.from_data(images))

        def compiled(fn: Callable, in_specs: tuple) -> Callable:
            return jax.jit(self._driver.shard(fn, in_specs))

        self._choose = compiled(choose, (SHARDED,))
        self._advance = compiled(advance, (REPLICATED, SHARDED, SHARDED, SHARDED, SHARDED, REPLICATED))
        self._prior = compiled(prior, (SHARDED,))

    def _compute(self, params: Any, batch: Batch) -> tuple:
        images, cond = batch.inputs
        t, weights = self._choose(batch.key_data)
        columns = []
        for first in batch.chunks(self.terms, self.chunk_size):
            start = min(first, self.terms - self.chunk_size)  # a last chunk of fewer terms begins with some of the one before
            terms = self._advance(params, cond, images, batch.key_data, t, jnp.int32(start))
            terms = jax.tree.map(operator.itemgetter((slice(None), slice(first - start, None))), terms)
            columns.append(jax.block_until_ready(terms))  # else the progress would show dispatched work
        return t, weights, columns, self._prior(images)

    def _result(self, found: tuple, first_image: int) -> VlbBatch:
        t, weights, columns, prior = found
        terms = (np.concatenate(column, axis=1) for column in zip(*columns, strict=True))
        return VlbBatch(t, *(array.astype(np.float64) for array in (weights, *terms, prior)))
