"""A run that is killed at any time and rerun is bit-identical to an uninterrupted one.

Real processes are killed. Dropout, flips, label dropout, a learned variance, loss-aware timestep sampling, accumulation
and image grids during training are all on.
"""

import json
import os
import re
import signal
import time

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.runtime.checkpoint import CheckpointManager
from tests import preloaded

STEPS = 60
FIELDS = {
    "data.random_flip": True,
    "model.unet.dropout": 0.1,
    "model.class_conditional": True,
    "model.label_dropout": 0.2,
    "diffusion.variance": "learned_range",
    "diffusion.loss": "hybrid",
    "diffusion.timestep_sampler": "second_moment",
    "ema.extra_decays": (0.99,),
    "ema.power_sigma_rel": (0.05, 0.1),
    "optimizer.accumulation_steps": 2,
    "train.num_steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": 10,
    "train.sample_every": 30,
    "train.max_to_keep": 2,
}


def final_state(workdir, config):
    """Step and leaves of the final state of the run."""
    key = jax.random.key(0)
    abstract = jax.eval_shape(build.build_init(config), key)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), abstract)
    with CheckpointManager(workdir / "checkpoints", max_to_keep=2, read_only=True) as checkpoints:
        fields, step = checkpoints.restore(abstract.fields())
    leaves, _ = jax.tree_util.tree_flatten_with_path(fields)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def logged_step(workdir):
    """The last complete step in metrics.jsonl, 0 before the first."""
    file = workdir / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+).*\n', file.read_text()) if file.exists() else []
    return int(steps[-1]) if steps else 0


def saving(workdir):
    """Whether a checkpoint is being written right now."""
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in name for name in os.listdir(folder))


class Run:
    """A training process in the background."""

    def __init__(self, line, log):
        # Without the eight devices of the tests: a user's machine has one.
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        self.process = preloaded.Process(line, stdout=log, stderr=log, env=environment)

    def until(self, condition, what):
        """Return as soon as `condition` holds."""
        deadline = time.monotonic() + 200
        while not condition():
            assert self.process.poll() is None, f"the run ended before: {what}"
            assert time.monotonic() < deadline, f"never came: {what}"
            time.sleep(0.002)  # long enough to leave the CPU to the runs

    def stop(self, number):
        self.process.send_signal(number)
        return self.process.wait(timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_repeatedly_equals_an_uninterrupted_one(tmp_path, command, tiny_config, metrics):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # At the same time: they must not affect each other.
    uninterrupted = Run(command(whole, fields=FIELDS), tmp_path / "log_whole")

    def start():
        return Run(command(killed, fields=FIELDS), tmp_path / "log_killed")

    run = start()
    run.until(lambda: (killed / "training.lock").exists(), "the workdir was locked")
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL  # before anything was computed
    assert not (killed / "config.json").exists()

    uninterrupted.until(lambda: logged_step(whole) >= 1, "the first step")  # so that later starts use the compilation cache
    run = start()
    run.until(lambda: saving(killed) and logged_step(killed) >= 9, "the first checkpoint was being written")
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL
    last = logged_step(killed)
    assert 9 <= last < STEPS

    run = start()
    run.until(lambda: logged_step(killed) >= 14, "step 14")  # between two checkpoints
    record = (killed / "config.json").read_bytes(), (killed / "history.jsonl").read_bytes()
    second = Run(command(killed, fields=FIELDS | {"optimizer.learning_rate": 1.0}), tmp_path / "log_second")
    while second.process.poll() is None:
        os.kill(run.process.pid, signal.SIGSTOP)  # so that it does not end meanwhile but keeps the workdir
        time.sleep(0.05)
    assert second.process.returncode == 1
    assert f"{killed} is in use: process {run.process.pid} on " in (tmp_path / "log_second").read_text()
    assert record == ((killed / "config.json").read_bytes(), (killed / "history.jsonl").read_bytes())
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL

    run = start()
    run.until(lambda: logged_step(killed) >= 28 and saving(killed), "a later checkpoint was being written")
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL

    run = start()
    run.until(lambda: logged_step(killed) >= 43, "step 43")
    assert run.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    stopped = logged_step(killed)
    with CheckpointManager(killed / "checkpoints", max_to_keep=2, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == stopped >= 43  # saved at the current step, not at the last multiple of ten

    run = start()
    assert run.process.wait(timeout=200) == 0
    assert uninterrupted.process.wait(timeout=200) == 0
    assert f"step {stopped:,} is saved" in (tmp_path / "log_killed").read_text()

    config = tiny_config(FIELDS)
    step, leaves = final_state(killed, config)
    expected_step, expected = final_state(whole, config)
    assert step == expected_step == STEPS
    assert leaves.keys() == expected.keys()
    assert sum(leaf.size for leaf in leaves.values()) > 3 * 5_000  # parameters, EMA and both moments are in it
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaves[name], leaf, err_msg=name)

    history = [json.loads(line) for line in (killed / "history.jsonl").read_text().splitlines()]
    assert [entry["changed"] for entry in history] == [{}] * len(history)
    assert [entry["step"] for entry in history] == sorted(entry["step"] for entry in history)
    assert history[-1]["step"] == stopped

    # metrics.jsonl is complete as well: every step once, with the same loss.
    rows, expected_rows = metrics(killed), metrics(whole)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in expected_rows]
    assert not [name for name in os.listdir(killed / "checkpoints") if "tmp" in name]
    picture = "samples/step_00000030.png"
    assert (killed / picture).read_bytes() == (whole / picture).read_bytes()
