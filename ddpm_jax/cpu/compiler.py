"""XLA settings that make networks faster on CPUs. They do not affect accelerators.

docs/performance.md has the measurements.
"""

import contextlib
import os

import jax
from jaxlib import version

# XLA runs convolutions with YNNPACK. For 64 channels or more, Eigen's kernel gradients take two thirds of its time. Networks
# with fewer channels are faster with YNNPACK, and with one device per core, since their operations are too small to be split
# over cores. The operations of wide networks split well, and each further device would repeat Adam's update.
MIN_CHANNELS_FOR_EIGEN = 64
MIN_IMAGES_PER_DEVICE = 32  # in a training batch
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_VERSIONS_WITH_FLAG = ("0.10.2", "0.12.0.1")  # of jaxlib; XLA aborts the process at an unknown flag
_DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"


def set_xla_flags(min_channels: int) -> None:
    """Set XLA_FLAGS for a network whose narrowest layers have `min_channels`, unless the user has set the flag.

    XLA reads them once: call this before JAX initializes a device.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if min_channels >= MIN_CHANNELS_FOR_EIGEN and version.__version__ in _VERSIONS_WITH_FLAG and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=-individual_convolution".strip()


def set_num_devices(min_channels: int, batch_size: int) -> None:
    """Set the number of CPU devices for a network, unless the user has set it or JAX has initialized its devices.

    Do not call it in a distributed run.

    Args:
      min_channels: channels of the narrowest layers of the network.
      batch_size: images per training micro-batch; the number of devices divides it.
    """
    by_user = _DEVICE_COUNT_FLAG in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices != -1
    if min_channels < MIN_CHANNELS_FOR_EIGEN and not by_user:
        # JAX raises after it has initialized its devices, as in a notebook: then these are used.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_cpu_devices(batch_size, available_cpus()))


def available_cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_cpu_devices(batch_size: int, cpus: int) -> int:
    """The largest number of devices, at most one per CPU, that divides the batch into at least MIN_IMAGES_PER_DEVICE each."""
    return max((n for n in range(1, cpus + 1) if batch_size % n == 0 and batch_size // n >= MIN_IMAGES_PER_DEVICE), default=1)
