"""Devices: a mesh of one axis over all devices of all processes, and of two axes for training with a sharded state.

The batch is split along its first axis over all devices. Without the second axis, the parameters are replicated; with it,
the training state is sharded over it (`training/fsdp.py`). Sampling and evaluation always use the mesh of one axis.
"""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.runtime.errors import InvalidArgumentError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
IMAGES_PER_DEVICE = 64  # of a batch in sampling and evaluation, by default


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the one axis "data" over `devices`, by default every device of every process.

    The devices of a slice are contiguous, and within it those of a process, so that each process reads one part of the
    batch. `jax.make_mesh` and `mesh_utils.create_hybrid_device_mesh` follow the physical topology and interleave the
    processes of a TPU slice; collectives over all devices of a slice do not need that order.
    """
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda device: (_slice_of(device), device.process_index, device.id),
    )
    # Auto axes: under JAX's default, Explicit, Linen's Dropout fails.
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def local_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process in a mesh of one axis; `mesh` itself with one process."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return mesh if len(local) == mesh.size else Mesh(np.array(local), mesh.axis_names, axis_types=mesh.axis_types)


def training_mesh(mesh: Mesh, *, data: int = -1, fsdp: int = 1) -> Mesh:
    """The devices of `mesh` with the axes "data" and "fsdp"; `mesh` itself if `fsdp` is 1.

    The axis "fsdp" is the inner one, and slices are contiguous in `mesh`. So only sums over "data", which are those of the
    gradients, cross slices.

    Args:
      mesh: of one axis, made by `make_mesh`.
      data: number of copies of the training state; -1 for all devices divided by `fsdp`.
      fsdp: number of devices over which each copy is sharded; -1 for all devices divided by `data`.

    Raises:
      InvalidArgumentError: data x fsdp is not the number of devices, or `fsdp` does not divide the devices of each slice.
    """
    total, slices = mesh.size, Counter(_slice_of(device) for device in mesh.devices.flat)
    if fsdp == -1 and data > 0:
        fsdp = max(1, total // data)
    if fsdp < 1 or data < -1 or data == 0:
        raise InvalidArgumentError(
            f"`data` is {data} and `fsdp` is {fsdp}: give numbers of devices above 0, and -1 for the rest in one of them"
        )
    if any(size % fsdp for size in slices.values()):
        counts = ", ".join(str(size) for _, size in sorted(slices.items()))
        where = f"{' of each slice' * (len(slices) > 1)}, {counts}"
        fitting = [str(size) for size in range(1, total + 1) if not any(each % size for each in slices.values())]
        raise InvalidArgumentError(
            f"`fsdp` is {fsdp}, which does not divide the number of devices{where}: use {' or '.join(fitting)}"
        )
    if data not in (-1, total // fsdp):
        raise InvalidArgumentError(
            f"`data` is {data}, but {total} devices / {fsdp} of `fsdp` are {total // fsdp}: use that, or -1"
        )
    if fsdp == 1:
        return mesh
    return Mesh(mesh.devices.reshape(-1, fsdp), (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto,) * 2)


def process_position(mesh: Mesh, process_index: int) -> int:
    """Which of the equal, consecutive parts of a batch belongs to the devices of a process: 0, 1, ... in the mesh's order."""
    order = list(dict.fromkeys(device.process_index for device in mesh.devices.flat))
    return order.index(process_index)


def fsdp_size(mesh: Mesh) -> int:
    """Number of devices over which each copy of the training state is sharded; 1 if it is replicated."""
    return mesh.shape.get(FSDP_AXIS, 1)


def describe(mesh: Mesh) -> str:
    """For a log line: " as data=2 x fsdp=4"; "" for a mesh of one axis."""
    return " as " + " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items()) if len(mesh.axis_names) > 1 else ""


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices: images [B, H, W, C], labels [B]."""
    axes = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(axes if len(axes) > 1 else axes[0]))


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
    check_batch_size(batch_size, mesh.size, accumulation_steps)


def check_batch_size(batch_size: int, num_devices: int, accumulation_steps: int = 1) -> None:
    """The part of `check_batch` that needs no devices.

    Raises:
      InvalidArgumentError: as `check_batch`.
    """
    if accumulation_steps < 1:
        raise InvalidArgumentError(f"`accumulation_steps` is {accumulation_steps}: it must be at least 1")
    unit = num_devices * accumulation_steps
    if batch_size > 0 and batch_size % unit == 0:
        return
    below = max(batch_size, 0) // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    parts = f"{num_devices} device{'s' * (num_devices > 1)}"
    if accumulation_steps > 1:
        parts += f" x {accumulation_steps} accumulation steps"
    raise InvalidArgumentError(f"`batch_size` is {batch_size}, which does not divide evenly over {parts}: use {nearest}")


def _slice_of(device: jax.Device) -> int:
    """The TPU slice of a device; 0 for platforms without slices."""
    return getattr(device, "slice_index", None) or 0
