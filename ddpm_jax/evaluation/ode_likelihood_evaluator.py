"""The likelihood of images under the probability flow, over all devices.

Every image is dequantised once and has a solver of its own (`flow_likelihood.py`). Each device works through its share
of a batch without a collective, so no device waits for another before the batch is done. Image i of a key draws all
its noise, u and z, from fold_in(key, i), whatever the batch size and the number of devices.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.evaluation import ode_likelihood
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
      start_sigma: the noise level at which the flow ends and densities are taken, in units of [-1, 1].
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        make_denoise_fn: Callable[[Any, jax.Array | None], DenoiseFn],
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
          make_denoise_fn: (params, labels int32 [B] or None) -> denoise_fn, which is asked with floating t.
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
        self.mesh = mesh
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.start_sigma = ode_likelihood.start_sigma(schedule)
        self._limits = f"{max_steps} steps at rtol {rtol:g} and atol {atol:g}"
        sharded, replicated = P(*mesh.axis_names), P()

        def measure(params: Any, labels: jax.Array | None, images: jax.Array, key_data: jax.Array):
            keys = jax.random.wrap_key_data(key_data)

            def one(x: jax.Array, label: jax.Array | None, key: jax.Array) -> ode_likelihood.OdeLogLikelihood:
                return ode_likelihood.ode_log_likelihood(
                    schedule,
                    parameterization,
                    make_denoise_fn(params, None if label is None else label[None]),
                    x,
                    key,
                    probes=probes,
                    rtol=rtol,
                    atol=atol,
                    max_steps=max_steps,
                )

            return jax.vmap(one)(ode_likelihood.dequantize(images, keys), labels, keys)

        in_specs = (replicated, sharded, sharded, sharded)
        # check_vma would have every loop's carry marked as differing between devices, which diffrax's are not. It guards
        # collectives and the gradients through them; there are none here.
        self._measure = jax.jit(jax.shard_map(measure, mesh=mesh, in_specs=in_specs, out_specs=sharded, check_vma=False))

    def measure(
        self,
        params: Any,
        key: jax.Array,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        first_image: int = 0,
        report: Callable[[float], None] = lambda images: None,
    ) -> Iterator[OdeLikelihoodBatch]:
        """Yield the likelihoods of the images, batch by batch.

        Args:
          params: what `make_denoise_fn` takes, replicated over the mesh.
          key: the root; image i draws from fold_in(key, first_image + i). Another key is another draw of u and z.
          images: uint8 [N, H, W, C], the same on every host.
          labels: int [N] for a conditional network.
          first_image: index of the first.
          report: called with the number of images done.

        Raises:
          NumericalError: the solver gave up on an image.
        """
        for done in range(0, len(images), self.batch_size):
            count = min(self.batch_size, len(images) - done)
            # The last batch is filled up with its own last image: no second compilation.
            rows = done + np.minimum(np.arange(self.batch_size), count - 1)
            batch = self._on_devices(images[rows])
            device_labels = None if labels is None else self._on_devices(np.asarray(labels, np.int32)[rows])
            key_data = _image_key_data(key, self._on_devices((first_image + rows).astype(np.int32)))
            found = self._on_host(self._measure(params, device_labels, batch, key_data))
            finished = found.finished[:count]
            if not finished.all():
                raise NumericalError(
                    f"the flow of image {first_image + done + int(np.argmin(finished))} did not end within {self._limits}: "
                    "set `rtol` to a larger value (and check that the weights are finite)"
                )
            nats, prior_nats = (np.asarray(column, np.float64)[:count] for column in (found.nats, found.prior_nats))
            report(done + count)
            yield OdeLikelihoodBatch(
                bits=ode_likelihood.bits_per_dim(nats),
                prior_bits=-prior_nats / np.log(2.0),
                evaluations=found.evaluations[:count],
            )

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
