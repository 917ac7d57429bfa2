"""How XLA uses a CPU: settings that make networks faster there. Programs for accelerators stay as they are.

docs/performance.md has the numbers behind them.
"""

import os

# XLA hands convolutions to YNNPACK. From 64 channels on Eigen takes two thirds of its time for the filters' gradients;
# narrower ones are quicker as they are, and quicker yet where each core has images of its own: one operation of theirs is
# too little to be shared out among cores. Wide ones share well, and would do Adam's work once more for each device.
WIDE = 64
LEAST_IMAGES = 32  # of a training batch, for each device
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_KNOWN_TO = ("0.10.2", "0.12.0.1")  # XLA ends the process over a flag that it does not know
_COUNT_FLAG = "--xla_force_host_platform_device_count"


def set_cpu_flags(width: int) -> None:
    """Add to XLA_FLAGS what suits a network of `width` channels, unless the person has set it.

    XLA reads them once, before it touches a device: call this before anything does.
    """
    from jaxlib import version  # without JAX: --help needs none of it

    flags = os.environ.get("XLA_FLAGS", "")
    if width >= WIDE and version.__version__ in _KNOWN_TO and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=-individual_convolution".strip()


def set_cpu_devices(width: int, batch_size: int) -> None:
    """Make as many devices of the CPU as suit a network of `width` channels, unless the person has said how many.

    For a process on its own, before it touches a device; of several, each has as many as it is told.

    Args:
      width: channels.
      batch_size: of training, in one micro-batch; the devices divide it evenly.
    """
    import jax

    said = _COUNT_FLAG in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices != -1
    if width < WIDE and not said:
        jax.config.update("jax_num_cpu_devices", devices_for(batch_size, cores()))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices_for(batch_size: int, cores: int) -> int:
    """The most devices, one a core at most, that get the same number of images each, and not too few."""
    return max((n for n in range(1, cores + 1) if batch_size % n == 0 and batch_size // n >= LEAST_IMAGES), default=1)
