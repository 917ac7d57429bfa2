"""Checkpoints on disk, with realistic damage; eight devices (tests/conftest.py)."""

import logging
import os
import resource
import shutil
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import CheckpointError, FileAccessError, InvalidArgumentError
from ddpm_jax.runtime.mesh import make_mesh, replicated
from tests import preloaded

# Odd sizes, sizes divisible by eight devices, sizes stored inside and outside the index.
SHAPES = {"kernel": (3, 3, 8, 16), "bias": (16,), "odd": (7, 11), "table": (1000, 3), "scale": ()}


def make_state(seed=0, devices=None):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    params = {name: jax.random.normal(key, shape) for (name, shape), key in zip(SHAPES.items(), keys, strict=True)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = {
        "params": {"block": params, "list": [jnp.arange(3), (jnp.ones(2, jnp.bfloat16),)]},
        "opt_state": optimizer.init(params),
        "step": jnp.int32(seed),
        "nothing": (optax.EmptyState(), None),
    }
    return jax.device_put(state, replicated(make_mesh(devices)))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def host(tree):
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def assert_same(read, written):
    assert jax.tree.structure(read) == jax.tree.structure(written)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(written), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(folder, steps, **arguments):
    """A folder with a checkpoint of make_state(step) for each step."""
    with CheckpointManager(folder, max_to_keep=arguments.pop("max_to_keep", 10), **arguments) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step))
    return folder


@pytest.fixture(scope="module")
def ten_and_twenty(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoints"), [10, 20])


@pytest.fixture
def folder(ten_and_twenty, tmp_path):
    """Two checkpoints to damage."""
    return shutil.copytree(ten_and_twenty, tmp_path, dirs_exist_ok=True)


def large_file(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_a_state_is_restored_bit_for_bit(tmp_path):
    with CheckpointManager(tmp_path / "new", max_to_keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(7, make_state(7), wait=True)
        assert checkpoints.steps() == [7]
        state, step = checkpoints.restore(abstract(make_state(0)))
    assert step == 7
    assert_same(state, make_state(7))
    assert state["params"]["block"]["odd"].sharding.is_equivalent_to(replicated(make_mesh()), 2)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_it_is_restored_on_another_number_of_devices(tmp_path, before, after):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(1, make_state(1, jax.devices()[:before]))
        state, _ = checkpoints.restore(abstract(make_state(0, jax.devices()[:after])))
    assert_same(state, make_state(1))
    assert len(state["params"]["block"]["odd"].devices()) == after


@pytest.mark.parametrize("devices", [1, 8])
def test_buffers_may_be_donated_while_they_are_written(tmp_path, devices):
    state = {"params": make_state(0, jax.devices()[:devices])["params"], "step": make_state(0, jax.devices()[:devices])["step"]}
    train_step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    copies = {}
    with CheckpointManager(tmp_path, max_to_keep=20) as checkpoints:
        for step in range(8):
            copies[step] = host(state)
            checkpoints.save(step, state)
            for _ in range(3):
                state = train_step(state)
        for step, copy in copies.items():
            assert_same(host(checkpoints.restore(abstract(state), step)[0]), copy)


def test_a_part_is_read_without_the_rest(folder):
    shutil.rmtree(folder / "20" / "opt_state")
    with CheckpointManager(folder, max_to_keep=1, read_only=True) as checkpoints:
        part, step = checkpoints.restore_part(abstract({"params": make_state(0)["params"]}))
    assert step == 20
    assert_same(part, {"params": make_state(20)["params"]})


@pytest.mark.parametrize(
    ("max_to_keep", "keep_period", "left"),
    [(1, 0, [9]), (3, 0, [7, 8, 9]), (2, 4, [0, 4, 8, 9]), (1, 3, [0, 3, 6, 9])],
)
def test_retention(tmp_path, max_to_keep, keep_period, left):
    state = {"step": jnp.int32(0)}
    for begin in (0, 5):  # a restart changes nothing
        with CheckpointManager(tmp_path, max_to_keep=max_to_keep, keep_period=keep_period) as checkpoints:
            for step in range(begin, begin + 5):
                checkpoints.save(step, state)
    assert sorted(int(folder.name) for folder in tmp_path.iterdir()) == left
    with CheckpointManager(tmp_path, max_to_keep=1, read_only=True) as checkpoints:
        assert checkpoints.steps() == left


def test_a_saved_step_is_not_saved_again(tmp_path):
    saved(tmp_path, [5])
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        assert not checkpoints.save(5, make_state(6))
        with pytest.raises(ValueError, match="older than the newest"):
            checkpoints.save(4, make_state(4))
        assert_same(checkpoints.restore(abstract(make_state()), 5)[0], make_state(5))


DAMAGES = {
    "short": lambda folder: os.truncate(large_file(folder), large_file(folder).stat().st_size // 2),
    "empty": lambda folder: os.truncate(large_file(folder), 0),
    "all short": lambda folder: [os.truncate(file, file.stat().st_size // 2) for file in folder.rglob("*") if file.is_file()],
    "bit": lambda folder: flip_bit(large_file(folder)),
    "missing": lambda folder: large_file(folder).unlink(),
    "no index": lambda folder: (folder / "params" / "_METADATA").unlink(),
    "no field": lambda folder: shutil.rmtree(folder / "params"),
    "empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    # As after a kill during a deletion.
    "half deleted": lambda folder: ((folder / "checksums.json").unlink(), shutil.rmtree(folder / "opt_state")),
}


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(folder, damage, capfd, log_lines):
    DAMAGES[damage](folder / "20")
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        state, step = checkpoints.restore(abstract(make_state()))
        assert step == 10
        assert_same(state, make_state(10))
        (line,) = log_lines
        assert line.startswith(f"the checkpoint {folder / '20'} is damaged (")
        assert line.endswith("was renamed to damaged-20; resuming from step 10")
        assert "\n" not in line
        assert checkpoints.steps() == [10]
        assert checkpoints.save(20, make_state(20))
        assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(20))
    assert (folder / "damaged-20").is_dir()
    assert capfd.readouterr() == ("", "")  # nothing but that line


def test_a_damaged_checkpoint_is_a_warning(folder, caplog):
    """Python prints it on stderr if logging is not configured, as in a notebook."""
    DAMAGES["short"](folder / "20")
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        checkpoints.restore(abstract(make_state()))
    assert [record.levelname for record in caplog.records if record.name.startswith("ddpm_jax")] == ["WARNING"]


def test_a_second_damaged_checkpoint_gets_another_name(folder):
    (folder / "damaged-20").mkdir()
    DAMAGES["bit"](folder / "20")
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        checkpoints.restore(abstract(make_state()))
    assert sorted(file.name for file in folder.iterdir()) == ["10", "damaged-20", "damaged-20.1"]


def test_a_reader_renames_nothing(folder, log_lines):
    DAMAGES["bit"](folder / "20")
    with CheckpointManager(folder, max_to_keep=1, read_only=True) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 10
    assert len(log_lines) == 1
    assert sorted(file.name for file in folder.iterdir()) == ["10", "20"]


def test_if_all_are_damaged_none_is_renamed(folder):
    for step in ("10", "20"):
        DAMAGES["bit"](folder / step)
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match="10, 20 are damaged") as error:
            checkpoints.restore(abstract(make_state()))
        with pytest.raises(CheckpointError, match="20 is damaged"):
            checkpoints.restore(abstract(make_state()), 20)
    assert "\n" not in str(error.value)
    assert sorted(file.name for file in folder.iterdir()) == ["10", "20"]


def test_a_missing_step(folder):
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 15 in .*; there are 10, 20$"):
            checkpoints.restore(abstract(make_state()), 15)
        assert_same(checkpoints.restore(abstract(make_state()), 10)[0], make_state(10))


@pytest.mark.parametrize("read_only", [True, False])
def test_an_empty_folder(tmp_path, read_only):
    with CheckpointManager(tmp_path / "new", max_to_keep=1, read_only=read_only) as checkpoints:
        assert checkpoints.steps() == []
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            checkpoints.restore(abstract(make_state()))
    assert (tmp_path / "new").exists() is not read_only


def test_missing_checksums_are_written_by_the_next_start(folder):
    (folder / "20" / "checksums.json").unlink()
    with CheckpointManager(folder, max_to_keep=2, read_only=True) as checkpoints:
        checkpoints.restore(abstract(make_state()))
    assert not (folder / "20" / "checksums.json").exists()
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 20
    flip_bit(large_file(folder / "20"))
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 10  # detected by the checksums


def test_a_state_of_another_model_is_not_damage(folder):
    with CheckpointManager(folder, max_to_keep=2) as checkpoints:
        here = make_state()
        here["params"]["block"]["bias"] = jnp.zeros(32)
        here["params"]["list"][1] = (jnp.ones(2),)
        here["params"]["block"]["more"] = jnp.zeros(3)
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(abstract(here))
        line = str(error.value)
        assert "params/block/bias is float32[16] in the checkpoint and float32[32] here" in line
        assert "params/block/more is missing in the checkpoint and float32[3] here" in line
        assert "params/list/1/0 is bfloat16[2] in the checkpoint and float32[2] here" in line
        assert "\n" not in line
        lacking = {name: tree for name, tree in make_state().items() if name != "opt_state"}
        with pytest.raises(CheckpointError, match="opt_state is missing from the model"):
            checkpoints.restore(abstract(lacking))
        with pytest.raises(CheckpointError, match="ema_params is missing from the checkpoint"):
            checkpoints.restore_part(abstract({"ema_params": lacking["params"]}))
    assert sorted(file.name for file in folder.iterdir()) == ["10", "20"]


@pytest.mark.parametrize("arguments", [{"max_to_keep": 0}, {"max_to_keep": 1, "keep_period": -1}])
def test_impossible_retention(tmp_path, arguments):
    with pytest.raises(InvalidArgumentError):
        CheckpointManager(tmp_path, **arguments)


def test_a_file_with_the_name_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match="cannot use the checkpoint folder"):
        CheckpointManager(tmp_path / "file", max_to_keep=1)


def test_a_full_disk_is_one_error_and_older_checkpoints_are_kept(tmp_path, capfd):
    saved(tmp_path, [1])
    big = {**make_state(2), "params": {"block": jax.random.normal(jax.random.key(0), (1000, 1000))}}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))  # writing more fails, as on a full disk
    try:
        checkpoints = CheckpointManager(tmp_path, max_to_keep=3)
        checkpoints.save(2, big)
        with pytest.raises(FileAccessError, match=f"cannot write a checkpoint into {tmp_path}: ") as error:
            checkpoints.wait()
        with pytest.raises(FileAccessError, match="cannot write a checkpoint"):
            checkpoints.save(3, big)
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "\n" not in str(error.value)
    assert f"{tmp_path}: file too large. Earlier checkpoints are complete" in str(error.value)
    assert capfd.readouterr() == ("", "")
    # Writes that are not awaited may still run here; a user's next start is another process, after all of them.
    left = None
    while left != (left := sorted(tmp_path.rglob("*"))):
        time.sleep(0.5)
    with CheckpointManager(tmp_path, max_to_keep=3) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 1
        assert checkpoints.save(2, make_state(2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "2"]


def test_library_logs_of_the_other_writes_of_a_failed_save_are_hidden(tmp_path, caplog, monkeypatch):
    # With `ulimit -f 100` or a full tmpfs there are hundreds of tracebacks before the error, at random times.
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    CheckpointManager(tmp_path, max_to_keep=1).close()
    CheckpointManager(tmp_path, max_to_keep=1).close()
    late, other = (types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "broken"))
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert shown == [other]
    log = logging.getLogger("asyncio")
    log.error("_GatheringFuture exception was never retrieved\nfuture: <_GatheringFuture finished exception=ValueError()>")
    log.error("another matter")
    assert caplog.messages == ["another matter"]


KILLED = """
import os, sys, threading, time, pathlib, signal
import jax, jax.numpy as jnp
from ddpm_jax.runtime.checkpoint import CheckpointManager
folder = pathlib.Path(sys.argv[1])
state = {"params": {str(i): jnp.full((500_000,), float(i)) for i in range(8)}}
checkpoints = CheckpointManager(folder, max_to_keep=2)
checkpoints.save(1, state, wait=True)
def kill():
    while not any(folder.glob("2*/params*")):
        time.sleep(0.0005)
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill).start()
checkpoints.save(2, state)
time.sleep(60)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_a_kill_during_a_save(tmp_path, delay, child_environment):
    child = preloaded.Process([sys.executable, "-c", KILLED, tmp_path, str(delay)], env=child_environment())
    assert child.wait(timeout=120) == -signal.SIGKILL
    left = sorted(file.name for file in tmp_path.iterdir())
    assert "1" in left
    if delay == 0.0:
        assert len(left) == 2
        assert "tmp" in left[1]  # the save was unfinished
    state = {"params": {str(i): jnp.full((500_000,), float(i)) for i in range(8)}}
    with CheckpointManager(tmp_path, max_to_keep=2) as checkpoints:
        read, step = checkpoints.restore(abstract(state))
        assert_same(read, state)
        assert step == int(left[-1] if left[-1].isdigit() else left[0])
        checkpoints.save(3, state)
    assert sorted(file.name for file in tmp_path.iterdir()) == [str(step), "3"]


def test_a_pinned_step_is_kept_until_another_one_is_pinned(tmp_path):
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, {"x": jnp.float32(step)})
            if step == 2:
                checkpoints.pin(2)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4]
    with CheckpointManager(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.pin(2)
        checkpoints.save(5, {"x": jnp.float32(5)}, wait=True)
        assert checkpoints.steps() == [2, 5]
        checkpoints.pin(6)  # before it is saved
        checkpoints.save(6, {"x": jnp.float32(6)}, wait=True)
        checkpoints.save(7, {"x": jnp.float32(7)}, wait=True)
        assert checkpoints.steps() == [6, 7]
