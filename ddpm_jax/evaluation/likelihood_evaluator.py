"""What the evaluators of the likelihood of images share: batches over all devices, with one random key per image."""

import abc
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.diffusion import pixels
from ddpm_jax.runtime.batch_driver import Batch, BatchDriver


def num_levels(pixel_format: pixels.PixelFormat) -> int:
    """Number of levels of the images. Raises ValueError for floats, of which bits per dimension are not defined."""
    if not pixel_format.num_levels:
        raise ValueError(
            f"bits/dim needs images with discrete levels, which have probabilities, and these are {pixel_format.dtype}, which "
            "have a density"
        )
    return pixel_format.num_levels


class LikelihoodEvaluator(abc.ABC):
    """Subclasses define `_compute` for a batch on the devices, and `_result`, which converts its output on the host.

    Nothing is compiled before the first use. The arguments of all subclasses:

    Args:
      schedule: noise schedule of the training, T steps.
      parameterization: meaning of the network output.
      make_denoise_fn: (params, cond) -> denoise_fn.
      mesh: with one axis, "data", over which each batch is split.
      batch_size: images per batch over all devices; rounded up to a multiple of the number of devices.
    """

    def __init__(self, mesh: Mesh, batch_size: int):
        self._driver = BatchDriver(mesh, batch_size)
        self.batch_size = self._driver.batch_size

    def evaluate(
        self,
        params: Any,
        key: jax.Array,
        images: np.ndarray,
        cond: Any = None,
        *,
        first_image: int = 0,
        report: Callable[[float], None] = lambda images: None,
    ) -> Iterator[Any]:
        """Yield the results of the images, batch by batch: a named tuple of arrays [n, ...].

        Args:
          params: parameters of the network, replicated over the mesh.
          key: root key; image i uses fold_in(key, first_image + i).
          images: [N, H, W, C] in levels, the same on every host.
          cond: pytree of arrays [N, ...] for a conditional network.
          first_image: index of the first image.
          report: called with the number of finished images, including fractions of a batch.

        Raises:
          NumericalError: the ODE of an image was not solved.
        """
        batches = self._driver.split((images, cond), len(images))
        yield from self._run_batches(params, key, batches, first_image, report)

    def evaluate_rows(
        self,
        params: Any,
        key: jax.Array,
        read: Callable[[np.ndarray], tuple[np.ndarray, Any]],
        num_images: int,
        *,
        report: Callable[[float], None] = lambda images: None,
    ) -> Iterator[Any]:
        """As `evaluate`, of images that each host reads when it needs them, and only its own.

        Args:
          read: indices of images, int [n], in 0 .. num_images-1 -> (images [n, H, W, C], cond).
          num_images: N.
          params, key, report: as for `evaluate`.
        """

        def batches() -> Iterator[tuple[int, Any]]:
            for first in range(0, num_images, self.batch_size):
                yield min(self.batch_size, num_images - first), lambda rows, first=first: read(first + rows)

        yield from self._run_batches(params, key, batches(), 0, report)

    def _run_batches(
        self, params: Any, key: jax.Array, batches: Iterator[tuple[int, Any]], first_image: int, report: Callable[[float], None]
    ) -> Iterator[Any]:
        compute = functools.partial(self._compute, params)
        for found in self._driver.run(compute, batches, key=key, first_image=first_image, report=report):
            result = self._result(found, first_image)
            first_image += len(result[0])
            yield result

    @abc.abstractmethod
    def _compute(self, params: Any, batch: Batch) -> Any: ...

    @abc.abstractmethod
    def _result(self, found: Any, first_image: int) -> Any: ...
