"""The likelihood of images under the probability flow, over all devices.

Every image is dequantised once and has a solver of its own (`flow_likelihood.py`). Each device works through its share
of a batch without a collective, so no device waits for another before the batch is done. Image i of a key draws all
its noise, u and z, from fold_in(key, i), whatever the batch size and the number of devices.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.evaluation import ode_likelihood
from ddpm_jax.runtime.batch_driver import REPLICATED, SHARDED, BatchDriver
from ddpm_jax.runtime.errors import NumericalError


class OdeLikelihoodBatch(NamedTuple):
    """Likelihoods of consecutive images; NumPy, on every host.

    Attributes:
      bits: float64 [n], bits per dimension of the dequantised levels, one draw of u each. (28) of `flow_likelihood.py`.
      prior_bits: float64 [n], the part of it that N(x_{t=T-1}; 0, I) is.
      evaluations: int32 [n], of the network, for this image.
    """

    bits: np.ndarray
    prior_bits: np.ndarray
    evaluations: np.ndarray


class OdeLikelihoodEvaluator:
    """Compiled once for a network, image shape and batch size; then `measure` for any parameters and images.

    Attributes:
      batch_size: images at a time over all devices.
      probes: random directions for each image; 0 for the exact trace.
      rtol: error allowed in a step, relative.
      start_sigma: the noise level at which the flow ends and densities are taken, in units of [-1, 1].
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
    ):
        """Prepare; nothing is compiled or run yet.

        Args:
          schedule: the chain of T steps that the network was trained on.
          parameterization: what the output of the network means; its clipping is not applied.
          make_denoise_fn: (params, cond) -> denoise_fn, which is asked with floating t.
          mesh: of one axis, "data"; each device takes its share of every batch.
          batch_size: images at a time over all devices; rounded up to a multiple of the number of devices.
          probes: random directions for each image; 0 for the exact trace, D derivatives in each evaluation.
          rtol: error allowed in a step, relative.
          atol: the same, absolute.
          max_steps: after which the solver of an image gives up.

        Raises:
          ValueError: probes, a tolerance, the chain or the prediction are out of range; see `flow_likelihood.check`.
        """
        ode_likelihood.validate_args(schedule, parameterization, probes=probes, rtol=rtol, atol=atol, max_steps=max_steps)
        self._driver = BatchDriver(mesh, batch_size)
        self.batch_size = self._driver.batch_size
        self.probes, self.rtol = probes, rtol
        self.start_sigma = ode_likelihood.start_sigma(schedule)
        self._limits = f"{max_steps} steps at rtol {rtol:g} and atol {atol:g}"

        def measure(params: Any, cond: Any, images: jax.Array, key_data: jax.Array):
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

            return jax.vmap(one)(ode_likelihood.dequantize(images, keys), cond, keys)

        in_specs = (REPLICATED, SHARDED, SHARDED, SHARDED)
        # check_vma would have every loop's carry marked as differing between devices, which diffrax's are not. It guards
        # collectives and the gradients through them; there are none here.
        self._measure = jax.jit(self._driver.shard(measure, in_specs, check_vma=False))

    def measure(
        self,
        params: Any,
        key: jax.Array,
        images: np.ndarray,
        cond: Any = None,
        *,
        first_image: int = 0,
        report: Callable[[float], None] = lambda images: None,
    ) -> Iterator[OdeLikelihoodBatch]:
        """Yield the likelihoods of the images, batch by batch.

        Args:
          params: what `make_denoise_fn` takes, replicated over the mesh.
          key: the root; image i draws from fold_in(key, first_image + i). Another key is another draw of u and z.
          images: uint8 [N, H, W, C], the same on every host.
          cond: pytree of arrays [N, ...] for a conditional network.
          first_image: index of the first.
          report: called with the number of images done.

        Raises:
          NumericalError: the solver gave up on an image.
        """
        done = 0
        for found in self._driver.run(
            lambda batch: self._measure(params, batch.inputs[1], batch.inputs[0], batch.key_data),
            self._driver.split((images, cond), len(images)),
            key=key,
            first_image=first_image,
            report=report,
        ):
            if not found.finished.all():
                image = first_image + done + int(np.argmin(found.finished))
                raise NumericalError(
                    f"the flow of image {image} did not end within {self._limits}: "
                    "set `rtol` to a larger value (and check that the weights are finite)"
                )
            done += len(found.finished)
            yield OdeLikelihoodBatch(
                bits=ode_likelihood.bits_per_dim(found.nats.astype(np.float64)),
                prior_bits=-found.prior_nats.astype(np.float64) / np.log(2.0),
                evaluations=found.evaluations,
            )
