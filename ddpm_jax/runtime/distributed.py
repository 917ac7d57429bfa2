"""Multi-process jobs: every process runs the same program on the devices of its host, and all fail and stop together.

If one process fails alone, the others block in a collective. Information that only one process has (a missing file, a
signal) is therefore broadcast before any process acts on it. With one process, these functions do nothing.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ddpm_jax.runtime.errors import DistributedError, ExpectedError, InvalidArgumentError, error_line
from ddpm_jax.runtime.mesh import batch_sharding, replicated
from ddpm_jax.runtime.progress import Progress

EXIT_GRACE_S = 10.0  # how long a failed process waits for the others to exit
VOTE_INTERVAL_S = 0.5  # between two votes on whether to stop; a host has some 30 s between the notice and its end
MAX_VOTE_STEPS = 16
MESSAGE_BYTES = 1024  # of a broadcast error

# Parts of the error messages of collectives when another process is gone.
_PEER_LOST_PATTERNS = ("gloo", "nccl", "connection reset", "connection closed", "heartbeat", "coordination service")
_TPU_WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # the first that is set is used, as in JAX
_INDEXED_POD = ("JOB_COMPLETION_INDEX", *_TPU_WORKERS)
_LAUNCHERS = ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri")
_CLUSTERED = (*_INDEXED_POD, *_LAUNCHERS)
# Packages with which JAX detects its cluster; not all of their errors are OSErrors.
_NETWORK_PACKAGES = ("requests", "urllib3", "http", "kubernetes")


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
    given = {"`coordinator`": coordinator, "`num_processes`": num_processes, "`process_id`": process_id}
    missing = [name for name, value in given.items() if value is None or value == ""]
    if 0 < len(missing) < len(given):
        raise InvalidArgumentError(f"{', '.join(given)} must be given together: {' and '.join(missing)} missing")
    explicit = not missing
    options: dict[str, Any] = {}
    if coordinator and num_processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidArgumentError(f"`coordinator={coordinator}` must be HOST:PORT, the address of process 0")
        if num_processes < 1:
            raise InvalidArgumentError(f"`num_processes={num_processes}` must be at least 1")
        if not 0 <= process_id < num_processes:
            raise InvalidArgumentError(
                f"`process_id={process_id}` must be between 0 and {num_processes - 1}, one less than `num_processes`"
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


def is_primary_process() -> bool:
    """Whether this is process 0, which writes files and logs."""
    return jax.process_index() == 0


@contextlib.contextmanager
def show_progress(total: int, unit: str = "images", title: str = "") -> Iterator[Callable[[float], None]]:
    """Context: a function to call with how many of `total` are done, fractions included; process 0 shows it on stderr."""
    with Progress(total, unit, title) as progress:
        yield progress.update if is_primary_process() else lambda done: None


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Context manager that raises an error of one process in all processes, so that none blocks forever.

    Every process must enter it, and the body must not wait for another process.

    Raises:
      DistributedError, InvalidArgumentError: another process failed; with the message of the first one. A process that
        failed itself raises its own error.
    """
    if jax.process_count() == 1:
        yield
        return
    own = None
    try:
        yield
    except Exception as error:
        own = error
    messages = multihost_utils.process_allgather(_encode(own))
    if own is not None:
        raise own
    for index, message in enumerate(messages):
        if message[0]:
            text = bytes(message[1:]).rstrip(b"\0").decode(errors="ignore")
            kind = InvalidArgumentError if message[0] == InvalidArgumentError.exit_code else DistributedError
            raise kind(f"process {index} stopped: {text}")


def all_processes(mine: bool) -> bool:
    """Logical AND of `mine` over all processes."""
    return mine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def broadcast_ints(numbers: Sequence[int]) -> list[int]:
    """The integers, below 2**31, of process 0; the other processes may see a shared folder later."""
    if jax.process_count() == 1:
        return list(numbers)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    mine = np.zeros(length, np.int32)
    if is_primary_process():
        mine[:] = numbers
    return [int(number) for number in multihost_utils.broadcast_one_to_all(mine)] if length else []


class PreemptionSync:
    """Synchronizes preemption signals: all processes stop in the same step.

    The processes vote in every step, or less often where steps are short: about every VOTE_INTERVAL_S. A vote is read in the
    step after it, by when the devices have usually computed it, so nothing blocks. Reading it at once would make the devices
    wait for the host. How many steps there are to the next vote follows from the vote itself, so all processes agree on it.

    Args:
      mesh: the devices of all processes.
      max_steps: the most steps between two votes.
    """

    def __init__(self, mesh: Mesh, max_steps: int = MAX_VOTE_STEPS) -> None:
        self._num_devices, self._sharding, self._max_steps = mesh.size, batch_sharding(mesh), max_steps
        self._highest = jax.jit(lambda rows: jnp.max(rows, axis=0), out_shardings=replicated(mesh))
        self._result: jax.Array | None = None  # of the last vote, unread
        self._interval, self._steps, self._last_vote = 1, 0, time.monotonic()

    def __call__(self, mine: int, vote_now: bool = False) -> int:
        """Shares the signal `mine`, or 0 for none. Every process must call this at the same point of its program.

        With `vote_now` the processes vote in this call in any case.

        Returns:
          The highest signal of a vote in the previous call, the same in all processes; 0 without one.
        """
        agreed = 0
        if self._result is not None:
            agreed, longest_ms = (int(number) for number in np.asarray(self._result))
            self._result = None
            self._interval = min(max(int(1000 * VOTE_INTERVAL_S) // max(longest_ms, 1), 1), self._max_steps)
        self._steps += 1
        if vote_now or self._steps >= self._interval:
            now = time.monotonic()
            step_ms = min(int(1000 * (now - self._last_vote) / self._steps), np.iinfo(np.int32).max)
            self._result = self._highest(self._make_rows(mine, step_ms))
            self._last_vote, self._steps = now, 0
        return agreed

    def _make_rows(self, *values: int) -> jax.Array:
        """int32 [devices, values], with the values of each device's process."""
        rows = np.tile(np.array(values, np.int32), (self._num_devices, 1))
        return jax.make_array_from_callback(rows.shape, self._sharding, lambda index: rows[index])


@contextlib.contextmanager
def distributed_main() -> Iterator[None]:
    """Context manager or decorator for the entry point of a multi-process job: a process that fails alone exits.

    At exit JAX waits minutes for all processes, while these may be blocked in a collective by this one. If all processes
    fail, all exit normally.

    Raises:
      DistributedError: a collective failed because another process is gone.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        threading.Thread(target=_exit_after_grace_period, args=(code,), daemon=True).start()
        # JAX raises either type.
        lost = isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and not isinstance(error, ExpectedError)
        if lost and any(word in str(error).lower() for word in _PEER_LOST_PATTERNS):
            raise DistributedError(
                f"another process of the job is gone ({error_line(error)}); "
                "rerun the same command on every host to resume from the last checkpoint"
            ) from error
        raise


def _exit_after_grace_period(code: int) -> None:
    time.sleep(EXIT_GRACE_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _encode(error: Exception | None) -> np.ndarray:
    """uint8 [MESSAGE_BYTES]: exit code, or 0 for no error, and the message."""
    row = np.zeros(MESSAGE_BYTES, np.uint8)
    if error is not None:
        line = error_line(error, most=MESSAGE_BYTES, kind=not isinstance(error, ExpectedError))
        data = line.encode()[: MESSAGE_BYTES - 1]
        row[0] = getattr(error, "exit_code", 1)
        row[1 : 1 + len(data)] = np.frombuffer(data, np.uint8)
    return row


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
        "host add `coordinator=127.0.0.1:8476` `num_processes=1` `process_id=0`; on N hosts `coordinator=HOST:PORT` "
        "`num_processes=N`, with the address of the first host, and on each its own `process_id=0..N-1`"
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
