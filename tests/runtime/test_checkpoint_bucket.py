"""Checkpoints in a bucket: complete with Orbax's commit file, checksums of the store, set apart without a rename."""

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.runtime import checksums, run_record, storage
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import CheckpointError, FileAccessError

STATE = {"params": {"a": jnp.arange(3000.0), "b": jnp.ones((2, 3))}, "step": jnp.int32(7)}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def times(factor):
    return jax.tree.map(lambda x: x * factor, STATE)


def assert_is(found, factor):
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), found, times(factor))))


@pytest.fixture
def folder(bucket):
    """A workdir with checkpoints 20 and 30 of three saved ones."""
    with CheckpointManager(storage.path(bucket) / "checkpoints", max_to_keep=2) as checkpoints:
        for step in (10, 20, 30):
            assert checkpoints.save(step, times(step), wait=True)
        assert checkpoints.steps() == [20, 30]
    return storage.path(bucket)


def test_saved_states_are_restored_and_old_ones_deleted(folder):
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == ["20", "30"]
    assert run_record.latest_saved_step(folder) == 30
    for read_only in (True, False):
        with CheckpointManager(folder / "checkpoints", max_to_keep=2, read_only=read_only) as checkpoints:
            for step in (20, 30):
                found, where = checkpoints.restore(abstract(STATE), step)
                assert where == step
                assert_is(found, step)


def test_an_unfinished_checkpoint_is_not_one(folder):
    (folder / "checkpoints" / "30" / checksums.COMMITTED).unlink()
    assert run_record.latest_saved_step(folder) == 20
    with CheckpointManager(folder / "checkpoints", max_to_keep=2, read_only=True) as checkpoints:
        assert checkpoints.steps() == [20]
    with CheckpointManager(folder / "checkpoints", max_to_keep=2) as checkpoints:  # which deletes it
        assert checkpoints.restore(abstract(STATE))[1] == 20
        assert checkpoints.save(30, times(3), wait=True)
        assert_is(checkpoints.restore(abstract(STATE))[0], 3)


def test_a_damaged_checkpoint_is_set_apart_and_can_be_saved_again(folder, log_lines):
    largest = max((folder / "checkpoints" / "30" / "params").rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with CheckpointManager(folder / "checkpoints", max_to_keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match=r"30 is damaged .*has changed since it was written"):
            checkpoints.restore(abstract(STATE), 30)
        found, step = checkpoints.restore(abstract(STATE))
        assert step == 20
        assert_is(found, 20)
        assert "was renamed to damaged-30; resuming from step 20" in log_lines[-1]
        assert checkpoints.save(30, times(4), wait=True)
        assert_is(checkpoints.restore(abstract(STATE))[0], 4)
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == ["20", "30", "damaged-30"]
    name = largest.relative_to(folder / "checkpoints" / "30").as_posix()
    assert (folder / "checkpoints" / "damaged-30" / name).read_bytes() == bytes(content)


def test_a_failed_write_is_reported_and_the_earlier_checkpoints_are_kept(folder, emulator):
    checkpoints = CheckpointManager(folder / "checkpoints", max_to_keep=2)
    with emulator.failing(403, "POST", "checkpoints/40/"), pytest.raises(FileAccessError, match="cannot write a checkpoint"):
        checkpoints.save(40, STATE, wait=True)
    checkpoints.close()
    with CheckpointManager(folder / "checkpoints", max_to_keep=2) as checkpoints:
        assert checkpoints.steps() == [20, 30]
        assert_is(checkpoints.restore(abstract(STATE))[0], 30)
