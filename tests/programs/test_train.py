"""The training program, run in this process on eight devices."""

import math
import os
import re
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build
from ddpm_jax.programs import train
from ddpm_jax.runtime import progress
from ddpm_jax.runtime.checkpoint import Checkpoints
from ddpm_jax.runtime.errors import PersonError, UsageError


def steps_saved(workdir):
    with Checkpoints(workdir / "checkpoints", keep_latest=1, read_only=True) as checkpoints:
        return checkpoints.steps()


def test_a_run_leaves_what_the_contract_says(tmp_path, tiny_config, metrics, capfd, monkeypatch):
    monkeypatch.setattr(progress, "LEAST_S", 0.0)  # six tiny steps may take less time than a speed needs
    fields = {
        "train.sample_every": 3,
        "train.keep_latest": 1,
        "train.keep_every": 4,
        "train.tensorboard": True,
        "sampling.keep": 2,
    }
    assert train.run(tiny_config(fields), str(tmp_path)) == 0
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert {"loss", "grad_norm", "param_norm", "learning_rate"} < row.keys()
        assert all(math.isfinite(value) for value in row.values())
        quartiles = [row[f"loss_q{i}"] for i in range(1, 5) if f"loss_q{i}" in row]
        assert min(quartiles) <= row["loss"] <= max(quartiles)
    config = tiny_config()
    assert rows[0]["learning_rate"] == pytest.approx(config.optimizer.learning_rate * 2 / config.optimizer.warmup_steps)
    assert steps_saved(tmp_path) == [4, 6]  # the latest, and every fourth
    names = sorted(os.listdir(tmp_path / "samples"))
    assert names == [f"step_{step:08d}{kind}.png" for step in (3, 6) for kind in ("-pred_xstart", "-x_t", "")]
    grid = np.asarray(Image.open(tmp_path / "samples" / "step_00000006.png"))
    assert grid.ndim == 2
    assert grid.shape[0] >= 2 * 64
    assert any("tfevents" in name for _, _, files in os.walk(tmp_path) for name in files)
    out = capfd.readouterr().err
    assert "conv_in/kernel" in out  # the parameter table
    assert "first step done" in out
    assert re.search(r"steps/s.*images/s.*left", out)
    assert "step_00000006.png" in out


def test_one_trace_serves_all_steps(tmp_path, tiny_config, monkeypatch):
    traces = []
    original = build.train_step

    def counting(*args, **kwargs):
        traces.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(build, "train_step", counting)
    assert train.run(tiny_config(), str(tmp_path)) == 0
    assert len(traces) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, tiny_config, monkeypatch):
    original = build.train_step

    def poisoned(state, batch, key, **kwargs):
        new, metrics = original(state, batch, key, **kwargs)
        return new, metrics | {"loss": jax.numpy.where(state.step == 4, jax.numpy.nan, metrics["loss"])}

    monkeypatch.setattr(build, "train_step", poisoned)
    with pytest.raises(PersonError, match=r"loss is not finite at step 5; the last good checkpoint is of step 4") as caught:
        train.run(tiny_config({"train.num_steps": 20}), str(tmp_path))
    assert "\n" not in str(caught.value)
    assert steps_saved(tmp_path)[-1] == 4


def test_training_goes_on_to_a_new_goal_and_a_finished_run_takes_no_step(tmp_path, tiny_config, metrics):
    assert train.run(tiny_config(), str(tmp_path)) == 0
    assert train.run(tiny_config(), str(tmp_path)) == 0
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 6]
    assert train.run(tiny_config({"train.num_steps": 8}), str(tmp_path)) == 0
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 6, 8]
    with pytest.raises(PersonError, match=r"model\.ch was 8, now 16"):
        train.run(tiny_config({"model.ch": 16}), str(tmp_path))


def test_ctrl_c_saves(tmp_path, tiny_config, monkeypatch):
    original = train.StepLog.add

    def interrupting(self, step, metrics):
        original(self, step, metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.StepLog, "add", interrupting)
    assert train.run(tiny_config({"train.num_steps": 50}), str(tmp_path)) == 128 + signal.SIGINT
    assert steps_saved(tmp_path)[-1] == 3


def test_a_window_of_steps_can_be_profiled(tmp_path, tiny_config):
    assert train.run(tiny_config(), str(tmp_path), profile="2:4") == 0
    assert [name for _, _, files in os.walk(tmp_path / "profile") for name in files if name.endswith(".xplane.pb")]
    for wrong in ("2", "4:2", "a:b", "2:"):
        with pytest.raises(UsageError, match="FIRST:LAST"):
            train.parse_profile(wrong)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"diffusion.schedule": "quadric"}, "config.diffusion.schedule is 'quadric': choose one of linear, cosine, sigmoid"),
        ({"diffusion.prediction": "noise"}, "eps, x_start, v"),
        ({"diffusion.variance": "large"}, "fixed_small, fixed_large"),
        ({"diffusion.loss": "huber"}, "simple"),
        ({"diffusion.num_timesteps": 10, "diffusion.schedule": "linear"}, "cosine schedule"),
        ({"sampling.sampler": "euler"}, "ancestral, ddim"),
        ({"sampling.spacing": "even"}, "leading, linspace, trailing, quadratic"),
        ({"sampling.weights": "best"}, "ema, raw"),
        ({"sampling.num_steps": 101}, "choose 1..100"),
        ({"sampling.eta": 7.0}, "DDIM"),
        ({"sampling.label": 3}, "class_conditional is False"),
        ({"sampling.label": 10, "model.class_conditional": True}, "0..9"),
        ({"sampling.keep": 5}, "only 4 steps"),
        ({"model.dtype": "float16"}, "float32, bfloat16"),
        ({"model.ch": 10}, "multiple of 4"),
        ({"model.ch_mult": (1, 1, 1, 1, 1)}, "cannot be halved 4 times"),
        ({"model.attn_resolutions": (16,)}, "[16]"),
        ({"model.ch_mult": (1, "2")}, "config.model.ch_mult holds '2': it must be a list of whole numbers, such as (1,2)"),
        ({"ema.decays": ("slow",)}, "config.ema.decays holds 'slow': it must be a list of numbers"),
        ({"evaluation.samplers": (1,)}, "config.evaluation.samplers holds 1: it must be a list of words"),
        ({"ema.decays": (2.0,)}, "config.ema: the decay 2"),
        ({"model.dropout": 1.0}, "below 1"),
        ({"model.class_conditional": True, "data.num_classes": 0}, "needs labels"),
        ({"model.class_conditional": True, "data.num_classes": 5}, "digits has 10 classes"),
        ({"data.name": "digitz", "data.data_dir": "/nowhere"}, "digitz"),
        ({"data.split": "validation"}, "train, test or all"),
        ({"data.channels": 2}, "1, 3"),
        ({"data.image_size": 16}, "config.data.image_size=8"),
        ({"train.batch_size": 12}, "use 8 or 16"),
        ({"train.num_steps": 0}, "above 0"),
        ({"optimizer.clip_norm": -1.0}, "0 or more"),
        ({"ema.decay": 1.5}, "below 1"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_a_config_is_said_in_one_line(tmp_path, tiny_config, fields, said):
    with pytest.raises(PersonError) as caught:
        train.run(tiny_config(fields), str(tmp_path / "run"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()  # found before anything was computed
