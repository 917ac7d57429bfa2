"""Model FLOPs utilization (MFU, PaLM 2204.02311, appendix B): FLOPs of a training step and the peak FLOP/s of a device."""

import logging
from typing import Any

import jax

logger = logging.getLogger(__name__)

# device_kind of JAX -> peak FLOP/s of dense matrix products in bfloat16, for one JAX device. The kinds are tried in this order
# as a part of the name. Sources: docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm (per chip; a JAX device of
# v2 and v3 is one of the two cores of a chip), and NVIDIA's data sheets of A100, H100, H200, B200 and L4, without sparsity.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6": 918e12,  # v6e
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of the device in bfloat16; None for a CPU and for devices that the table does not have."""
    if device.platform == "cpu":
        return None
    words = device.device_kind.replace("-", " ")
    exact = set(words.split())
    return next((peak for kind, peak in PEAK_FLOPS.items() if (kind in words if " " in kind else kind in exact)), None)


def step_flops(jitted: Any, *arguments: Any, repeats: int = 1) -> float | None:
    """FLOPs of one call of a jitted function, over all devices, as XLA counts them before optimization.

    The function is lowered but not compiled, so this takes the time of a trace. Custom kernels count as 0, and recomputed
    activations (`remat`) count again.

    Args:
      jitted: function made by `jax.jit`.
      *arguments: of the call, or their shapes.
      repeats: iterations of the loop that makes up the function: XLA counts the body of a loop once.

    Returns:
      None if XLA cannot count.
    """
    try:
        flops = jitted.lower(*arguments).cost_analysis()["flops"]
    except (KeyError, TypeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        logger.debug("no FLOPs of the step: %s", error)
        return None
    return repeats * float(flops) if flops > 0 else None
