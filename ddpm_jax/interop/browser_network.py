"""The trained network as part of an HTML page: converted to ONNX, compared with JAX, and joined with its runtime."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.diffusion.parameterization import DenoiseFn
from ddpm_jax.interop import export_onnx, onnx_comparison, onnx_model, onnxruntime_web
from ddpm_jax.interop.onnxruntime_web import RuntimeAssets
from ddpm_jax.runtime.errors import NumericalError

NAME = "denoiser"  # of the model in the page: `onnxNetworks.load(NAME)`
NUM_EXAMPLES = 4  # images that are compared with JAX
ROUNDING = 1e-4  # largest difference of an output with rounded parameters, relative to its largest value or to 1
MANTISSA_BITS = 16  # of a rounded parameter, which has 24 bits in all; 23 in float32


def network_elements(
    make_denoise_fn: Callable[[Any, Any], DenoiseFn],
    params: Any,
    *,
    image_shape: Sequence[int],
    num_timesteps: int,
    num_labels: int,
    assets: RuntimeAssets,
    rounds: bool = False,
) -> str:
    """HTML elements with the network and its runtime, as `onnxruntime_web.page_elements`; the model is `network_model`'s.

    Args:
      make_denoise_fn: (params, labels) -> denoise_fn, in float32.
      params: pytree of NumPy arrays.
      image_shape: (H, W, C).
      num_timesteps: T.
      num_labels: number of labels that the network knows, the null label included; 0 for a network without labels.
      assets: from `onnxruntime_web.runtime_assets`, which is asked first: it fails at once, and the conversion takes minutes.
      rounds: whether the parameters in the page are `rounded`.

    Raises:
      UnavailableError: the packages for ONNX are not installed.
      InvalidArgumentError: ONNX cannot express the network.
      NumericalError: the model differs from the network, or rounding changes its output by more than `ROUNDING`.
    """
    written = rounded(params) if rounds else params
    cond = np.zeros(1, np.int32) if num_labels else None
    model = export_onnx.network_model(make_denoise_fn, written, image_shape=image_shape, cond=cond)
    examples, generator = [], np.random.default_rng(0)
    for number, t in enumerate(np.linspace(0, num_timesteps - 1, NUM_EXAMPLES).round().astype(np.int32)):
        label = [np.full(1, number % num_labels, np.int32)] if num_labels else []
        examples.append([generator.standard_normal((1, *image_shape), np.float32), t[None], *label])
    exact, function = (export_onnx.network_function(make_denoise_fn, each, cond) for each in (params, written))
    onnx_comparison.compare(model, function, examples, name="network")
    if rounds:
        _check_rounding(exact, function, examples)
    return onnxruntime_web.page_elements({NAME: model}, assets)


def rounded(params: Any) -> Any:
    """Parameters to 24 bits, by rounding the mantissa to the nearest, ties to even; a quarter less in a page.

    The output of the trained digits' network, up to 4.7, changes by 2.4e-5; with the weights in float16 by 1.1e-3.
    """
    dropped = np.uint32(23 - MANTISSA_BITS)

    def of_leaf(leaf: Any) -> np.ndarray:
        bits = np.ascontiguousarray(leaf, np.float32).view(np.uint32)
        half = (np.uint32(1) << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
        return ((bits + half) >> dropped << dropped).view(np.float32).reshape(np.shape(leaf))

    return jax.tree.map(of_leaf, params)


def _check_rounding(exact: Callable, of_rounded: Callable, examples: Sequence[Sequence[np.ndarray]]) -> None:
    with onnx_model.on_cpu():
        for arguments in examples:
            want, got = (np.asarray(jax.jit(function)(*arguments), np.float64) for function in (exact, of_rounded))
            difference = np.abs(got - want).max() / max(1.0, np.abs(want).max())
            if not difference <= ROUNDING:  # NaN included
                raise NumericalError(
                    f"the output with parameters of 24 bits, which the page has space for, differs by {difference:.1e}"
                )


def packed_bytes(params: Any) -> int:
    """The size of the parameters in a page, float32."""
    content = b"".join(np.asarray(leaf, np.float32).tobytes() for leaf in jax.tree.leaves(params))
    return len(onnxruntime_web.packed(onnxruntime_web.byte_planes(content)))
