"""config.json and history.jsonl of a workdir, after runs in this process on eight devices."""

import json
import os

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.cli import sample, train
from ddpm_jax.runtime import run_record, versions
from ddpm_jax.runtime.errors import ConflictError, InvalidArgumentError, NumericalError
from ddpm_jax.runtime.run_lock import FILE, RunLock
from ddpm_jax.user_messages import UserError

NETWORK = "tests.small_network:Small"

RATE = "optimizer.learning_rate"
TRAINED = {"train.num_steps": 4, "model.unet.dropout": 0.0}


def record(folder):
    """The bytes of both files; None for a missing one."""
    files = [folder / "config.json", folder / "history.jsonl"]
    return [file.read_bytes() if file.exists() else None for file in files]


def test_which_starts_are_recorded(tmp_path, tiny_config, monkeypatch, capfd):
    def start(**fields):
        return train.run(tiny_config(TRAINED | {name.replace("__", "."): x for name, x in fields.items()}), str(tmp_path))

    # Starts that fail before their first step: the data set, the first batch, the first step itself.
    with pytest.raises(InvalidArgumentError, match="digits has"):
        start(data__split="validation")
    with monkeypatch.context() as patch:
        patch.setattr(train.pipeline, "batches", lambda *_, **__: (_ for _ in ()).throw(UserError("a file is broken")))
        with pytest.raises(UserError, match="a file is broken"):
            start()
    with monkeypatch.context() as patch:
        original = build.train_step

        def nan(*args, **kwargs):
            new, metrics = original(*args, **kwargs)
            return new, metrics | {name: np.nan * metrics[name] for name in ("loss", "quartile_sum")}

        patch.setattr(build, "train_step", nan)
        with pytest.raises(NumericalError, match="loss is not finite at step 1"):
            start(optimizer__learning_rate=9.0)
    assert record(tmp_path) == [None, None]

    assert start(seed=3) == 0
    first = json.loads((tmp_path / "config.json").read_text())
    assert (first["seed"], first["optimizer"]["learning_rate"]) == (3, tiny_config().optimizer.learning_rate)
    (entry,) = run_record.read_history(tmp_path)
    assert (entry["step"], entry["changed"], entry["config"]) == (0, {}, first)
    assert entry["devices"] == "8 cpu"
    assert entry["processes"] == 1
    assert entry["versions"]["jax"] == jax.__version__
    assert entry["commit"] == versions.program_commit()
    assert {"date", "host", "command"} < entry.keys()
    assert (tmp_path / FILE).read_bytes() == b""
    capfd.readouterr()

    before = record(tmp_path)
    assert start(seed=3, optimizer__learning_rate=1.0, train__batch_size=16) == 0  # finished: no steps are left
    with pytest.raises(ConflictError, match="seed was 3, now 0"):
        start(seed=0, train__num_steps=6)
    with pytest.raises(ConflictError, match=r"model\.unet\.ch was 8, now 16"):
        start(seed=3, model__unet__ch=16, train__num_steps=6)
    with RunLock(tmp_path), pytest.raises(ConflictError, match=f"in use: process {os.getpid()} on "):
        start(seed=3, train__num_steps=6)
    assert record(tmp_path) == before
    capfd.readouterr()

    assert start(seed=3, train__num_steps=6, optimizer__learning_rate=5e-4, model__unet__dropout=0.1, train__batch_size=16) == 0
    changed = {
        "model.unet.dropout": [0.0, 0.1],
        RATE: [first["optimizer"]["learning_rate"], 5e-4],
        "train.batch_size": [8, 16],
        "train.num_steps": [4, 6],
    }
    assert run_record.read_history(tmp_path)[-1]["changed"] == changed
    assert run_record.read_history(tmp_path)[0] == entry
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 5e-4
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "resuming" in line]
    assert line == (
        "resuming at step 4; changed: model.unet.dropout 0.0 -> 0.1, "
        f"{RATE} {changed[RATE][0]} -> 0.0005, train.batch_size 8 -> 16, train.num_steps 4 -> 6"
    )


@pytest.mark.parametrize(
    "fields",
    [{"diffusion.clip_denoised": False, "diffusion.variance": "fixed_small", "data.random_flip": True, RATE: 7.0, "seed": 5}],
)
def test_sampling_may_change_sampling_fields_and_records_nothing(trained, tiny_config, tmp_path, fields):
    before = record(trained)
    assert sample.run(tiny_config(TRAINED | fields), str(trained), output=str(tmp_path)) == 0
    with pytest.raises(ConflictError, match=r'diffusion\.prediction was ".*", now'):
        sample.run(tiny_config(TRAINED | {"diffusion.prediction": "x_start"}), str(trained), output=str(tmp_path))
    assert record(trained) == before
    report = run_record.report_config(trained, tiny_config(TRAINED | fields).to_dict(), None)
    assert report["seed"] == 0
    assert report["optimizer"]["learning_rate"] == tiny_config().optimizer.learning_rate
    assert report["diffusion"]["variance"] == "fixed_small"


def test_sampling_during_training_needs_no_lock(trained, tiny_config, tmp_path):
    with RunLock(trained) as lock:
        assert sample.run(tiny_config(TRAINED), str(trained), output=str(tmp_path)) == 0
        lock.check()


@pytest.mark.parametrize("steps", [6, 3], ids=["during training", "at the end"])
def test_training_that_lost_its_workdir_saves_nothing(tmp_path, tiny_config, monkeypatch, steps):
    """Another machine took the lock after step 2, while this one did not respond."""
    add = train.DelayedMetricLogger.add

    def losing(self, step, metrics):
        add(self, step, metrics)
        if step == 3:
            holder = json.loads((tmp_path / FILE).read_text())
            (tmp_path / FILE).write_text(json.dumps(holder | {"token": "another", "host": "node7"}))

    monkeypatch.setattr(train.DelayedMetricLogger, "add", losing)
    with pytest.raises(ConflictError, match=r"another training has taken the workdir: .* on node7"):
        train.run(tiny_config({"train.num_steps": steps}), str(tmp_path))
    assert os.listdir(tmp_path / "checkpoints") == ["2"]


def test_clipping_can_be_turned_off_and_on(tmp_path, tiny_config):
    for steps, clip_norm in ((2, 1.0), (4, 0.0), (6, 1.0)):
        assert train.run(tiny_config({"train.num_steps": steps, "optimizer.clip_norm": clip_norm}), str(tmp_path)) == 0
    assert [entry["step"] for entry in run_record.read_history(tmp_path)] == [0, 2, 4]
    assert run_record.read_history(tmp_path)[2]["changed"]["optimizer.clip_norm"] == [0.0, 1.0]


def test_a_run_stopped_before_its_first_step_saves_nothing(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr(train.GracefulShutdown, "check", lambda self: setattr(self, "_agreed", 15) or 15)
    assert train.run(tiny_config(), str(tmp_path)) == 143
    assert record(tmp_path) == [None, None]
    assert os.listdir(tmp_path / "checkpoints") == []
