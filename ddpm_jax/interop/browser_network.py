"""The trained network as part of an HTML page: converted to ONNX, compared with JAX, and joined with its runtime."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax.diffusion.parameterization import DenoiseFn
from ddpm_jax.interop import export_onnx, onnx_comparison, onnxruntime_web
from ddpm_jax.interop.onnxruntime_web import RuntimeAssets

NAME = "denoiser"  # of the model in the page: `onnxNetworks.load(NAME)`
NUM_EXAMPLES = 4  # images that are compared with JAX


def network_elements(
    make_denoise_fn: Callable[[Any, Any], DenoiseFn],
    params: Any,
    *,
    image_shape: Sequence[int],
    num_timesteps: int,
    num_labels: int,
    assets: RuntimeAssets,
) -> str:
    """HTML elements with the network and its runtime, as `onnxruntime_web.page_elements`; the model is `network_model`'s.

    Args:
      make_denoise_fn: (params, labels) -> denoise_fn, in float32.
      params: pytree of NumPy arrays.
      image_shape: (H, W, C).
      num_timesteps: T.
      num_labels: number of labels that the network knows, the null label included; 0 for a network without labels.
      assets: from `onnxruntime_web.runtime_assets`, which is asked first: it fails at once, and the conversion takes minutes.

    Raises:
      UnavailableError: the packages for ONNX are not installed.
      InvalidArgumentError: ONNX cannot express the network.
      NumericalError: the model differs from the network.
    """
    cond = np.zeros(1, np.int32) if num_labels else None
    model = export_onnx.network_model(make_denoise_fn, params, image_shape=image_shape, cond=cond)
    function, generator = export_onnx.network_function(make_denoise_fn, params, cond), np.random.default_rng(0)
    examples = []
    for number, t in enumerate(np.linspace(0, num_timesteps - 1, NUM_EXAMPLES).round().astype(np.int32)):
        label = [np.full(1, number % num_labels, np.int32)] if num_labels else []
        examples.append([generator.standard_normal((1, *image_shape), np.float32), t[None], *label])
    onnx_comparison.compare(model, function, examples, name="network")
    return onnxruntime_web.page_elements({NAME: model}, assets)
