"""Devices: one mesh axis over all devices of all processes.

Data parallelism only: parameters are replicated, the batch is split along its first axis.
"""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.runtime.errors import DistributedError, InvalidArgumentError, error_line

DATA_AXIS = "data"

_TPU_WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # the first that is set is used, as in JAX
_INDEXED_POD = ("JOB_COMPLETION_INDEX", *_TPU_WORKERS)
_LAUNCHERS = ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri")
_CLUSTERED = (*_INDEXED_POD, *_LAUNCHERS)
# Packages with which JAX detects its cluster; not all of their errors are OSErrors.
_NETWORK_PACKAGES = ("requests", "urllib3", "http", "kubernetes")


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


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Joins the other processes of the run. Must be called before any device is used.

    Uses the three arguments if given. Otherwise joins if JAX detects a cluster (Cloud TPU, Slurm, Open MPI, an indexed
    Kubernetes job), and does nothing on a single host. Under Slurm JAX gives each task one GPU: start one task per GPU,
    or set JAX_LOCAL_DEVICE_IDS.

    Returns:
      Whether this process belongs to a distributed run.

    Raises:
      InvalidArgumentError: only some of the three are given, or they contradict each other.
      DistributedError: the other processes, or the service that lists them, cannot be reached.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [flag for flag, value in given.items() if value is None or value == ""]
    if 0 < len(missing) < len(given):
        raise InvalidArgumentError(f"{', '.join(given)} must be given together: {' and '.join(missing)} missing")
    explicit = not missing
    options: dict[str, Any] = {}
    if explicit:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidArgumentError(f"--coordinator={coordinator} must be HOST:PORT, the address of process 0")
        if num_processes < 1:
            raise InvalidArgumentError(f"--num_processes={num_processes} must be at least 1")
        if not 0 <= process_id < num_processes:
            raise InvalidArgumentError(
                f"--process_id={process_id} must be between 0 and {num_processes - 1}, one less than --num_processes"
            )
        options = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
        if not any(name in os.environ for name in _LAUNCHERS):
            # With all three given, JAX would still query TPU and Kubernetes services and ignore the results. A launcher
            # also assigns the devices of this process.
            options["cluster_detection_method"] = "deactivate"
    elif _is_single_host():
        return False
    # JAX's preemption service would replace the SIGTERM handler, also where `GracefulShutdown` is not active: then only
    # SIGKILL could end a process that reads data or samples.
    jax.config.update("jax_enable_preemption_service", False)
    # Must be set before the CPU client is created; other platforms ignore it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = f" at {coordinator}" if explicit else ""
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        # No cluster was detected, so there is no coordinator.
        if not explicit and "coordinator_address" in str(error):
            return False
        if _is_network_error(error):  # requests has ValueErrors too
            raise DistributedError(_not_found(_first_cause(error))) from error
        raise InvalidArgumentError(f"cannot join the other processes{where}: {error_line(error)}") from error
    except jax.errors.JaxRuntimeError as error:
        raise DistributedError(f"cannot join the other processes{where}: {error_line(error)}") from error
    except RuntimeError as error:
        if "distributed.initialize" not in str(error):  # JAX cannot use a launcher's variables or a service's response
            raise DistributedError(_not_found(str(error))) from error
        # A device was already used. This is harmless in a single process; otherwise it is a bug.
        if explicit or jax.default_backend() == "tpu" or any(name in os.environ for name in _CLUSTERED):
            raise
        return False
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise DistributedError(_not_found(_first_cause(error))) from error
    return True


def _is_network_error(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES


def _first_cause(error: BaseException) -> str:
    """The message of the root cause: outer exceptions only add class names and object addresses."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    error = getattr(error, "reason", error)  # of a URLError
    return error_line(error)


def _not_found(reason: str) -> str:
    reason = " ".join(reason.split())
    return (
        f"cannot find the other processes of this job: {reason if len(reason) <= 300 else reason[:300] + '...'}. On a single "
        "host add --coordinator=127.0.0.1:8476 --num_processes=1 --process_id=0; on N hosts --coordinator=HOST:PORT "
        "--num_processes=N, with the address of the first host, and on each its own --process_id=0..N-1"
    )


def _is_single_host() -> bool:
    """Whether this is a single host that JAX would treat as a cluster, where it would fail or hide devices."""
    # A single Slurm task may own all GPUs of its host; JAX would use only the first.
    if os.environ.get("SLURM_STEP_NUM_TASKS") == "1":
        return True
    # JAX would query a metadata server about a TPU host without peers, and not every such host has one.
    workers = next((os.environ[name] for name in _TPU_WORKERS if name in os.environ), None)
    if workers is not None and not any(name in _LAUNCHERS or name.startswith("MEGASCALE_") for name in os.environ):
        return len(workers.split(",")) == 1
    # JAX treats any Kubernetes pod as a cluster; only an indexed job has other processes.
    return "KUBERNETES_SERVICE_HOST" in os.environ and not any(name in os.environ for name in _INDEXED_POD)
