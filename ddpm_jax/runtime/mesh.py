"""Devices: one mesh axis over all devices of all processes.

Data parallelism only: parameters are replicated, the batch is split along its first axis.
"""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.runtime.errors import InvalidArgumentError

DATA_AXIS = "data"
IMAGES_PER_DEVICE = 64  # of a batch in sampling and evaluation, by default


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the one axis "data" over `devices`, by default every device of every process.

    The devices of a process are contiguous, so that each process reads one slice of the batch. `jax.make_mesh` follows
    the physical topology and interleaves processes on a TPU pod; a single all-reduce does not need that order.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    # Auto axes: under JAX's default, Explicit, Linen's Dropout fails.
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters, EMA, optimizer state."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: images [B, H, W, C], labels [B]."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def images_per_batch(batch_size: int) -> int:
    """`batch_size`, or for 0 the default: IMAGES_PER_DEVICE for each GPU or TPU core of the job; on CPUs, whose devices share
    cores and memory, for all of them."""
    return batch_size or IMAGES_PER_DEVICE * (1 if jax.default_backend() == "cpu" else jax.device_count())


def check_batch(batch_size: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Checks that every process, and every device in every micro-batch, gets the same number of images.

    Raises:
      InvalidArgumentError: `batch_size` is not a positive multiple of devices x accumulation_steps (the message names the
        nearest), or the processes have different numbers of devices.
    """
    counts = Counter(device.process_index for device in mesh.devices.flat)
    if len(set(counts.values())) > 1:
        listed = ", ".join(str(count) for _, count in sorted(counts.items()))
        raise InvalidArgumentError(f"the processes have {listed} devices: give each of them the same number")
    if accumulation_steps < 1:
        raise InvalidArgumentError(f"`accumulation_steps` is {accumulation_steps}: it must be at least 1")
    unit = mesh.size * accumulation_steps
    if batch_size > 0 and batch_size % unit == 0:
        return
    below = max(batch_size, 0) // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    parts = f"{mesh.size} device{'s' * (mesh.size > 1)}"
    if accumulation_steps > 1:
        parts += f" x {accumulation_steps} accumulation steps"
    raise InvalidArgumentError(f"`batch_size` is {batch_size}, which does not divide evenly over {parts}: use {nearest}")
