"""Likelihood of images under the probability-flow ODE, on all devices.

Each image is dequantized once and has its own solver (`ode_likelihood.py`). The devices use no collectives, so they only
synchronize at the end of a batch. The noise of image i, u and z, comes from fold_in(key, i), independent of the batch size
and the number of devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.diffusion import pixels
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.evaluation import ode_likelihood
from ddpm_jax.evaluation.likelihood_evaluator import LikelihoodEvaluator, num_levels
from ddpm_jax.runtime.batch_driver import REPLICATED, SHARDED, Batch
from ddpm_jax.runtime.errors import NumericalError


class OdeLikelihoodBatch(NamedTuple):
    """Likelihoods of consecutive images; NumPy, on every host.

    Attributes:
      bits: float64 [n], bits per dimension, (28) of `ode_likelihood.py`, with one sample of u per image.
      prior_bits: float64 [n], the term of N(x_{t=T-1}; 0, I).
      evaluations: int32 [n], network evaluations of each image.
    """

    bits: np.ndarray
    prior_bits: np.ndarray
    evaluations: np.ndarray


class OdeLikelihoodEvaluator(LikelihoodEvaluator):
    """Evaluates likelihoods.

    Attributes:
      probes: random directions per image; 0 for the exact trace.
      rtol: relative tolerance per step.
      start_sigma: noise level of the images whose density is computed, in units of [-1, 1].
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        make_denoise_fn: Callable[[Any, Any], DenoiseFn],
        mesh: Mesh,
        *,
        batch_size: int,
        probes: int = 1,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_steps: int = 1000,
        pixel_format: pixels.PixelFormat = pixels.UINT8,
    ):
        """Validate the arguments: those of `LikelihoodEvaluator` and of `ode_likelihood.ode_log_likelihood`, and

        pixel_format, the type and range of the images, of discrete levels.

        The clipping of the parameterization is not applied, and the denoise_fn must accept floating t.

        Raises:
          ValueError: an argument is invalid; see `ode_likelihood.validate_args`.
        """
        ode_likelihood.validate_args(schedule, parameterization, probes=probes, rtol=rtol, atol=atol, max_steps=max_steps)
        super().__init__(mesh, batch_size)
        self.num_levels = num_levels(pixel_format)
        self.probes, self.rtol = probes, rtol
        self.start_sigma = ode_likelihood.start_sigma(schedule)
        self._limits = f"{max_steps} steps at rtol {rtol:g} and atol {atol:g}"

        def evaluate(params: Any, cond: Any, images: jax.Array, key_data: jax.Array):
            keys = jax.random.wrap_key_data(key_data)

            def one(x: jax.Array, cond: Any, key: jax.Array) -> ode_likelihood.OdeLogLikelihood:
                return ode_likelihood.ode_log_likelihood(
                    schedule,
                    parameterization,
                    make_denoise_fn(params, jax.tree.map(lambda array: array[None], cond)),
                    x,
                    key,
                    probes=probes,
                    rtol=rtol,
                    atol=atol,
                    max_steps=max_steps,
                )

            return jax.vmap(one)(ode_likelihood.dequantize(images, keys, self.num_levels, pixel_format.low), cond, keys)

        in_specs = (REPLICATED, SHARDED, SHARDED, SHARDED)
        # check_vma requires that loop carries are marked as varying over devices, which diffrax does not do. It guards
        # collectives and the gradients through them; there are none here.
        self._evaluate = jax.jit(self._driver.shard(evaluate, in_specs, check_vma=False))

    def _compute(self, params: Any, batch: Batch) -> ode_likelihood.OdeLogLikelihood:
        images, cond = batch.inputs
        return self._evaluate(params, cond, images, batch.key_data)

    def _result(self, found: ode_likelihood.OdeLogLikelihood, first_image: int) -> OdeLikelihoodBatch:
        if not found.success.all():
            raise NumericalError(
                f"the ODE of image {first_image + int(np.argmin(found.success))} was not solved within {self._limits}: "
                "set `rtol` to a larger value (and check that the weights are finite)"
            )
        return OdeLikelihoodBatch(
            bits=ode_likelihood.bits_per_dim(found.nats.astype(np.float64), self.num_levels),
            prior_bits=-found.prior_nats.astype(np.float64) / np.log(2.0),
            evaluations=found.evaluations,
        )
