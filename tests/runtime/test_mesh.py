import socket
import subprocess
import sys
import urllib.error
from dataclasses import dataclass

import jax
import numpy as np
import pytest
import requests
from jax._src import xla_bridge
from jax._src.clusters import cloud_tpu_cluster
from jax._src.clusters import cluster as cluster_base
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from ddpm_jax.runtime.distributed import initialize_distributed
from ddpm_jax.runtime.errors import DistributedError, InvalidArgumentError
from ddpm_jax.runtime.mesh import (
    batch_sharding,
    check_batch,
    describe,
    fsdp_size,
    images_per_batch,
    make_mesh,
    process_position,
    replicated,
    training_mesh,
)
from tests import preloaded

CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "KUBERNETES_SERVICE_HOST",
    "OMPI_MCA_orte_hnp_uri",
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "TPU_PROCESS_ADDRESSES",
    "TPU_SKIP_MDS_QUERY",
    "TPU_WORKER_HOSTNAMES",
    "TPU_WORKER_ID",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_SLICE_ID",
)
NO_SERVER = "127.0.0.1:1"  # a port without a server


def test_mesh_has_one_auto_axis_over_all_devices():
    mesh = make_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.axis_types == (AxisType.Auto,)
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in jax.devices())


def test_mesh_over_some_devices():
    assert list(make_mesh(jax.devices()[:2]).devices.flat) == jax.devices()[:2]


@dataclass(frozen=True)
class StandIn:
    id: int
    process_index: int


def stand_ins(*process_of_device):
    """Devices 0, 1, ... of these processes."""
    return [StandIn(number, index) for number, index in enumerate(process_of_device)]


def test_the_devices_of_a_process_are_contiguous():
    # As on a TPU pod: hosts own squares of 2x2 chips, numbered row by row.
    devices = stand_ins(0, 0, 1, 1, 0, 0, 1, 1)
    assert [device.id for device in make_mesh(devices).devices.flat] == [0, 1, 4, 5, 2, 3, 6, 7]


@dataclass(frozen=True)
class OfSlice(StandIn):
    """A device of a TPU slice."""

    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def two_slices():
    """Two slices of two processes with two devices each; the processes of slice 1 have the lower numbers."""
    return [OfSlice(number, number // 2, 1 - number // 4) for number in range(8)]


def test_slices_are_contiguous_and_so_are_their_processes():
    mesh = make_mesh(two_slices()[::-1])
    assert [device.slice_index for device in mesh.devices.flat] == [0] * 4 + [1] * 4
    assert [device.id for device in mesh.devices.flat] == [4, 5, 6, 7, 0, 1, 2, 3]
    # Each process reads the part of the batch that its devices have.
    assert [process_position(mesh, index) for index in range(4)] == [2, 3, 0, 1]


@pytest.mark.parametrize(("data", "fsdp", "shape"), [(-1, 4, (2, 4)), (4, -1, (4, 2)), (4, 2, (4, 2))])
def test_only_the_data_axis_crosses_slices(data, fsdp, shape):
    mesh = training_mesh(make_mesh(two_slices()), data=data, fsdp=fsdp)
    assert dict(mesh.shape) == {"data": shape[0], "fsdp": shape[1]}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    for copy in mesh.devices:
        assert len({device.slice_index for device in copy}) == 1
    hybrid = mesh_utils.create_hybrid_device_mesh((shape[0] // 2, shape[1]), (2, 1), two_slices())
    np.testing.assert_array_equal(hybrid, mesh.devices)  # JAX's function, where it has no topology to follow


def test_without_fsdp_the_mesh_is_unchanged():
    mesh = make_mesh()
    for data in (-1, 8):
        assert training_mesh(mesh, data=data) is mesh
    assert (fsdp_size(mesh), describe(mesh)) == (1, "")
    spread = training_mesh(mesh, fsdp=4)
    assert (fsdp_size(spread), describe(spread)) == (4, " as data=2 x fsdp=4")
    np.testing.assert_array_equal(spread.devices.ravel(), mesh.devices)


@pytest.mark.parametrize(
    ("devices", "sizes", "words"),
    [
        (None, {"fsdp": 3}, "`fsdp` is 3, which does not divide the number of devices, 8: use 1 or 2 or 4 or 8"),
        (None, {"fsdp": 0}, "`data` is -1 and `fsdp` is 0: give numbers of devices above 0"),
        (None, {"data": -1, "fsdp": -1}, "-1 for the rest in one of them"),
        (None, {"data": 3, "fsdp": 2}, "`data` is 3, but 8 devices / 2 of `fsdp` are 4: use that, or -1"),
        (None, {"data": 3, "fsdp": -1}, "`data` is 3, but 8 devices / 2 of `fsdp` are 4"),
        (
            two_slices(),
            {"fsdp": 8},
            "`fsdp` is 8, which does not divide the number of devices of each slice, 4, 4: use 1 or 2 or 4",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices(devices, sizes, words):
    with pytest.raises(InvalidArgumentError) as error:
        training_mesh(make_mesh(devices), **sizes)
    assert words in str(error.value)


def test_a_batch_is_split_over_both_axes():
    images = jax.device_put(np.arange(16.0).reshape(16, 1), batch_sharding(training_mesh(make_mesh(), fsdp=4)))
    for number, shard in enumerate(images.addressable_shards):
        np.testing.assert_array_equal(shard.data, [[2.0 * number], [2.0 * number + 1]])


def test_processes_with_unequal_numbers_of_devices():
    with pytest.raises(InvalidArgumentError, match="have 2, 1 devices: give each of them the same number"):
        check_batch(12, make_mesh(stand_ins(0, 0, 1)))


def test_shardings_split_the_batch_and_copy_the_rest():
    mesh = make_mesh()
    images = jax.device_put(np.arange(16.0).reshape(16, 1), batch_sharding(mesh))
    for number, shard in enumerate(images.addressable_shards):
        np.testing.assert_array_equal(shard.data, [[2.0 * number], [2.0 * number + 1]])
    params = jax.device_put(np.arange(16.0), replicated(mesh))
    for shard in params.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(16.0))


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (128, 1), (16, 2), (96, 3)])
def test_batches_that_divide_pass(batch_size, accumulation):
    check_batch(batch_size, make_mesh(), accumulation)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "words"),
    [
        (100, 1, "`batch_size` is 100, which does not divide evenly over 8 devices: use 96 or 104"),
        (8, 2, "over 8 devices x 2 accumulation steps: use 16"),
        (40, 3, "use 24 or 48"),
        (0, 1, "use 8"),
        (-8, 1, "use 8"),
        (8, 0, "`accumulation_steps` is 0"),
    ],
)
def test_batches_that_do_not_divide_name_the_nearest(batch_size, accumulation, words):
    with pytest.raises(InvalidArgumentError) as error:
        check_batch(batch_size, make_mesh(), accumulation)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("host:1234", None, None), "`num_processes` and `process_id` missing"),
        (("host:1234", 2, None), "`process_id` missing"),
        ((None, None, 0), "`coordinator` and `num_processes` missing"),
        (("", 2, 0), "`coordinator` missing"),
        (("host", 2, 0), "HOST:PORT"),
        (("host:123456", 2, 0), "HOST:PORT"),
        (("host:1234", 2, 2), "between 0 and 1"),
        (("host:1234", 0, 0), "`num_processes=0` must be at least 1"),
    ],
)
def test_incomplete_or_inconsistent_flags(flags, words):
    with pytest.raises(InvalidArgumentError, match=words):
        initialize_distributed(*flags)


@pytest.fixture
def cluster(monkeypatch):
    """(variables) -> sets these variables and removes all others that JAX uses to detect a cluster."""

    def set_variables(variables):
        for name in CLUSTER_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def tpu_host(cluster, monkeypatch):
    """(variables) -> simulates a TPU host whose metadata server cannot be reached, and returns the requests made.

    The server's address is replaced by one where nothing listens, so that `requests` fails by itself as on such a host.
    """
    requests_made = []

    def set_variables(variables):
        cluster({"GCE_METADATA_IP": NO_SERVER, **variables})
        for module in (cluster_base, cloud_tpu_cluster):
            monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
        monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)  # other tests have used the devices
        get = requests.get
        monkeypatch.setattr(requests, "get", lambda url, **options: requests_made.append(url) or get(url, **options))
        return requests_made

    return set_variables


@pytest.mark.parametrize(
    "environment",
    [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1"}],
    ids=["bare", "pod", "one task"],
)
def test_a_single_host_does_not_join(cluster, environment):
    cluster(environment)
    assert initialize_distributed() is False
    assert jax.process_count() == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": ""},
        {"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_HOSTNAMES": "a,b"},
        {
            "TPU_WORKER_HOSTNAMES": "pod-0",
            "TPU_WORKER_ID": "0",
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "JOB_COMPLETION_INDEX": "0",
        },
    ],
    ids=["one name", "no name", "one address", "a one-host pod"],
)
def test_a_tpu_host_without_peers_queries_no_metadata_server(tpu_host, environment):
    requests_made = tpu_host(environment)
    assert initialize_distributed() is False
    assert not requests_made


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"},
    ],
    ids=["unknown", "several hosts", "several slices"],
)
def test_a_metadata_server_that_cannot_be_reached_is_one_line(tpu_host, environment):
    requests_made = tpu_host(environment)
    with pytest.raises(DistributedError) as caught:
        initialize_distributed()
    assert len(requests_made) == 1
    message = str(caught.value)
    assert message.startswith("cannot find the other processes of this job: ")
    assert "HTTPConnectionPool" not in message
    assert "`coordinator=127.0.0.1:8476` `num_processes=1` `process_id=0`" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.exceptions.ReadTimeout("timed out"), "timed out"),
        (requests.exceptions.InvalidURL("no host"), "no host"),  # also a ValueError
        (urllib.error.URLError(OSError(113, "No route to host")), "no route to host"),
        (TimeoutError(110, "Connection timed out"), "connection timed out"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (RuntimeError("Failed to recognize coordinator address\nhost-0"), "Failed to recognize coordinator address host-0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_the_network_are_one_line(cluster, monkeypatch, error, words):
    def fail(**_):
        raise error

    cluster({})
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(DistributedError, match=f"{words}. On a single host add `coordinator=") as caught:
        initialize_distributed()
    assert "\n" not in str(caught.value)


def test_a_bug_keeps_its_traceback(cluster, monkeypatch):
    def fail(**_):
        raise KeyError("x")

    cluster({})
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(KeyError):
        initialize_distributed()


def test_a_cluster_joined_too_late_is_a_bug(monkeypatch):
    jax.devices()
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://127.0.0.1:34911")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    with pytest.raises(RuntimeError, match="before any JAX calls"):
        initialize_distributed()


def test_an_unusable_cluster_is_a_one_line_error(monkeypatch):
    def fail(**_):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(
        DistributedError, match=r"^cannot join the other processes at host:1234: DEADLINE_EXCEEDED: no answer more$"
    ):
        initialize_distributed("host:1234", 2, 1)


TWO_PROCESSES = """
import sys, jax
from ddpm_jax.runtime.distributed import initialize_distributed
from ddpm_jax.runtime.mesh import make_mesh
assert initialize_distributed("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
mesh = make_mesh()
total = multihost_utils.process_allgather(jax.numpy.float32(jax.process_index() + 1)).sum()
open(sys.argv[3], "w").write(f"{jax.process_count()} {mesh.size} {int(total)}")
"""


def test_two_processes_join_by_flags(free_port, tmp_path, child_environment):
    children = [
        preloaded.Process(
            [sys.executable, "-c", TWO_PROCESSES, str(free_port), str(index), tmp_path / str(index)],
            env=child_environment(devices=2),
        )
        for index in range(2)
    ]
    for index, child in enumerate(children):
        assert child.wait(timeout=120) == 0
        assert (tmp_path / str(index)).read_text() == "2 4 3"


def test_a_single_process_without_used_devices(child_environment):
    program = (
        "from ddpm_jax.runtime.distributed import initialize_distributed\n"
        "assert initialize_distributed() is False\nimport jax\nprint(jax.device_count())"
    )
    environment = {name: value for name, value in child_environment(devices=2).items() if name not in CLUSTER_VARIABLES}
    child = subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True)
    assert (child.stdout, child.stderr) == ("2\n", "")


ADVICE_OF_A_SINGLE_HOST = """
import requests
from jax._src.clusters import cloud_tpu_cluster, cluster
cluster.running_in_cloud_tpu_vm = cloud_tpu_cluster.running_in_cloud_tpu_vm = True
import os, sys
os.environ.pop("TPU_SKIP_MDS_QUERY")  # set by JAX if there is no TPU
from ddpm_jax.runtime.distributed import initialize_distributed
assert initialize_distributed("127.0.0.1:" + sys.argv[1], 1, 0) is True
import jax
print(jax.process_count(), jax.device_count())
"""


def test_the_flags_in_the_error_work_without_a_service(free_port, child_environment):
    """JAX queries the TPU's metadata server even with all three flags, unless this is disabled."""
    environment = {name: value for name, value in child_environment(devices=2).items() if name not in CLUSTER_VARIABLES}
    environment["GCE_METADATA_IP"] = NO_SERVER
    child = subprocess.run(
        [sys.executable, "-c", ADVICE_OF_A_SINGLE_HOST, str(free_port)], env=environment, capture_output=True, text=True
    )
    assert (child.returncode, child.stdout) == (0, "1 2\n"), child.stderr


def test_batches_of_sampling_grow_with_the_accelerators(monkeypatch):
    assert images_per_batch(0) == 64  # eight CPU devices
    assert images_per_batch(10) == 10
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert images_per_batch(0) == 64 * jax.device_count() == 512
    assert images_per_batch(10) == 10
