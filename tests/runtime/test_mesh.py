import subprocess
import sys
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from ddpm_jax.runtime.errors import PersonError, UsageError
from ddpm_jax.runtime.mesh import batch_sharding, check_batch, initialize_distributed, make_mesh, replicated

CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "KUBERNETES_SERVICE_HOST",
    "OMPI_MCA_orte_hnp_uri",
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
)


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


def test_the_devices_of_a_process_lie_side_by_side():
    # As on a TPU pod: hosts own squares of 2x2 chips, which are numbered row by row.
    devices = stand_ins(0, 0, 1, 1, 0, 0, 1, 1)
    assert [device.id for device in make_mesh(devices).devices.flat] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_processes_with_unequal_numbers_of_devices():
    with pytest.raises(UsageError, match="have 2, 1 devices: give each of them the same number"):
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
        (100, 1, "a batch of 100 images does not divide evenly over 8 devices: use 96 or 104"),
        (8, 2, "over 8 devices x 2 accumulation steps: use 16"),
        (40, 3, "use 24 or 48"),
        (0, 1, "use 8"),
        (-8, 1, "use 8"),
        (8, 0, "accumulation_steps is 0"),
    ],
)
def test_batches_that_do_not_divide_name_the_nearest(batch_size, accumulation, words):
    with pytest.raises(UsageError) as error:
        check_batch(batch_size, make_mesh(), accumulation)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("host:1234", None, None), "--num_processes and --process_id missing"),
        (("host:1234", 2, None), "--process_id missing"),
        ((None, None, 0), "--coordinator and --num_processes missing"),
        (("", 2, 0), "--coordinator missing"),
        (("host", 2, 0), "HOST:PORT"),
        (("host:1234", 2, 2), "between 0 and 1"),
    ],
)
def test_flags_that_do_not_belong_together(flags, words):
    with pytest.raises(UsageError, match=words):
        initialize_distributed(*flags)


@pytest.mark.parametrize(
    "environment",
    [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1"}],
    ids=["bare", "pod", "one task"],
)
def test_a_lone_machine_is_left_alone(monkeypatch, environment):
    for name in CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert initialize_distributed() is False
    assert jax.process_count() == 1


def test_a_cluster_joined_too_late_is_a_defect(monkeypatch):
    jax.devices()
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://127.0.0.1:34911")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    with pytest.raises(RuntimeError, match="before any JAX calls"):
        initialize_distributed()


def test_an_unusable_cluster_is_told_in_one_line(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(PersonError, match=r"^cannot join the other processes at host:1234: DEADLINE_EXCEEDED: no answer$"):
        initialize_distributed("host:1234", 2, 1)


TWO_PROCESSES = """
import sys, jax
from ddpm_jax.runtime.mesh import *
assert initialize_distributed("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
mesh = make_mesh()
total = multihost_utils.process_allgather(jax.numpy.float32(jax.process_index() + 1)).sum()
open(sys.argv[3], "w").write(f"{jax.process_count()} {mesh.size} {int(total)}")
"""


def test_two_processes_join_by_flags(free_port, tmp_path, child_environment):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(free_port), str(index), tmp_path / str(index)],
            env=child_environment(devices=2),
            stdout=subprocess.DEVNULL,  # Gloo's
        )
        for index in range(2)
    ]
    for index, child in enumerate(children):
        assert child.wait(timeout=120) == 0
        assert (tmp_path / str(index)).read_text() == "2 4 3"


def test_a_lone_process_that_touched_nothing_yet(child_environment):
    program = (
        "from ddpm_jax.runtime.mesh import *\nassert initialize_distributed() is False\nimport jax\nprint(jax.device_count())"
    )
    environment = {name: value for name, value in child_environment(devices=2).items() if name not in CLUSTER_VARIABLES}
    child = subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True)
    assert (child.stdout, child.stderr) == ("2\n", "")
