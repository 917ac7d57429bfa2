"""--mode=train, run in this process on eight devices."""

import math
import os
import pathlib
import re
import shlex
import signal
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build, config_validation, sampling_config, training_config
from ddpm_jax.cli import train
from ddpm_jax.runtime import profiling, progress
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import ConflictError, ExpectedError, InvalidArgumentError, NumericalError
from ddpm_jax.samplers.batched import BatchedSampler, NonFiniteSamples

NETWORK = "tests.small_network:Small"


def steps_saved(workdir):
    with CheckpointManager(workdir / "checkpoints", max_to_keep=1, read_only=True) as checkpoints:
        return checkpoints.steps()


def test_a_run_writes_its_files_and_log_lines(tmp_path, tiny_config, metrics, capfd, monkeypatch):
    monkeypatch.setattr(progress, "MIN_WINDOW_S", 0.0)  # six tiny steps may be too fast for a throughput
    fields = {
        "train.sample_every": 3,
        "train.max_to_keep": 1,
        "train.keep_period": 4,
        "train.trackers": ("tensorboard",),
        "sampling.num_intermediates": 2,
    }
    assert train.run(tiny_config(fields), str(tmp_path)) == 0
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert {f"train/{name}" for name in ("loss", "grad_norm", "param_norm", "learning_rate")} < row.keys()
        assert all(math.isfinite(value) for value in row.values())
        quartiles = [row[f"train/loss_q{i}"] for i in range(1, 5) if f"train/loss_q{i}" in row]
        assert min(quartiles) <= row["train/loss"] <= max(quartiles)
    assert {"perf/steps_per_second", "perf/images_per_second", "perf/seconds_left"} < rows[-1].keys()
    assert rows[-1]["perf/images_per_second"] == pytest.approx(8 * rows[-1]["perf/steps_per_second"])
    config = tiny_config()
    assert rows[0]["train/learning_rate"] == pytest.approx(config.optimizer.learning_rate * 2 / config.optimizer.warmup_steps)
    assert steps_saved(tmp_path) == [4, 6]  # the latest, and multiples of 4
    names = sorted(os.listdir(tmp_path / "samples"))
    assert names == [f"step_{step:08d}{kind}.png" for step in (3, 6) for kind in ("-pred_xstart", "-x_t", "")]
    grid = np.asarray(Image.open(tmp_path / "samples" / "step_00000006.png"))
    assert grid.ndim == 2
    assert grid.shape[0] >= 2 * 64
    assert any("tfevents" in name for _, _, files in os.walk(tmp_path) for name in files)
    out = capfd.readouterr().err
    assert out.count("parameters") == 2  # number and file, in one line
    assert re.search(r"^[\d,]+ parameters, listed in .*/parameters\.txt$", out, re.MULTILINE)
    assert "conv_in/kernel" in (tmp_path / "parameters.txt").read_text()
    assert "conv_in/kernel" not in out
    assert "first step done" in out
    assert re.search(r"steps/s.*images/s.*left", out)
    assert "step_00000006.png" in out


def test_the_train_step_is_traced_once(tmp_path, tiny_config, monkeypatch):
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

    def poisoned(state, *args, **kwargs):
        new, metrics = original(state, *args, **kwargs)
        factor = jax.numpy.where(state.step == 4, jax.numpy.nan, 1.0)
        return new, metrics | {name: factor * metrics[name] for name in ("loss", "quartile_sum")}

    monkeypatch.setattr(build, "train_step", poisoned)
    match = r"loss is not finite at step 5; the last good checkpoint is of step 4"
    with pytest.raises(NumericalError, match=match) as caught:
        train.run(tiny_config({"train.num_steps": 20}), str(tmp_path))
    advice = "a --config.optimizer.learning_rate below 0.002"
    assert str(caught.value).endswith(f"To resume, give the command {advice}, or correct {NETWORK}")
    assert training_config.remedies(tiny_config({"model.name": "unet"})) == advice
    assert steps_saved(tmp_path)[-1] == 4
    monkeypatch.undo()  # follow the advice
    assert train.run(tiny_config({"train.num_steps": 6, "optimizer.learning_rate": 1e-3}), str(tmp_path)) == 0
    assert steps_saved(tmp_path)[-1] == 6


def test_training_continues_to_more_steps_and_a_finished_run_does_nothing(tmp_path, tiny_config, metrics):
    assert train.run(tiny_config(), str(tmp_path)) == 0
    assert train.run(tiny_config(), str(tmp_path)) == 0
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 6]
    assert train.run(tiny_config({"train.num_steps": 8}), str(tmp_path)) == 0
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 6, 8]
    with pytest.raises(ConflictError, match=r"model\.unet\.ch was 8, now 16"):
        train.run(tiny_config({"model.unet.ch": 16}), str(tmp_path))


def test_ctrl_c_saves(tmp_path, tiny_config, monkeypatch):
    original = train.DelayedMetricLogger.add

    def interrupting(self, step, metrics):
        original(self, step, metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.DelayedMetricLogger, "add", interrupting)
    assert train.run(tiny_config({"train.num_steps": 50}), str(tmp_path)) == 128 + signal.SIGINT
    assert steps_saved(tmp_path)[-1] == 3


def test_a_signal_before_the_first_step_gives_advice_that_works(tmp_path, tiny_config, monkeypatch, log_lines):
    """Nothing is saved, so that --workdir alone would be refused; the same command starts. A later start can resume."""
    started = train.TrainLogger.__enter__

    def stopped(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return started(self)

    for expected, step in (("not even the config; run the same command again with its --config, to start", 0), ("resume", 6)):
        with monkeypatch.context() as patch:
            patch.setattr(train.TrainLogger, "__enter__", stopped)
            config = tiny_config({"train.num_steps": step + 6})
            assert train.train(config, str(tmp_path)) == (tmp_path, step, False, signal.SIGTERM)
        assert expected in log_lines[-1]
        assert (tmp_path / "config.json").exists() == bool(step)
        assert train.train(config, str(tmp_path)) == (tmp_path, step + 6, True, 0)


def test_a_signal_in_the_last_step_skips_the_grid_and_is_not_lost(tmp_path, tiny_config, monkeypatch, log_lines):
    made, original = recorded_grids(monkeypatch), train.DelayedMetricLogger.add

    def interrupting(self, step, metrics):
        original(self, step, metrics)
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.DelayedMetricLogger, "add", interrupting)
    config = tiny_config({"train.sample_every": 6})
    assert train.train(config, str(tmp_path)) == (tmp_path, 6, True, signal.SIGINT)
    assert made == []
    assert log_lines[-1] == "stopped by SIGINT: step 6 is saved; run the same command again for its image grid and evaluation"
    save_last = train.training_config.SampleGrids.save_last

    def interrupted(self, state):
        os.kill(os.getpid(), signal.SIGTERM if tmp_path / "samples" in tmp_path.iterdir() else signal.SIGINT)
        return save_last(self, state)

    monkeypatch.setattr(train.training_config.SampleGrids, "save_last", interrupted)
    assert train.train(config, str(tmp_path)) == (tmp_path, 6, True, signal.SIGINT)  # in the grid, which is finished
    assert train.train(config, str(tmp_path)) == (tmp_path, 6, True, 0)  # SIGTERM, when there is nothing left to stop
    assert len(made) == 2


MANY = {
    "train.num_steps": 2,
    "train.sample_every": 1,
    "train.sample_num_steps": 20,
    "sampling.sampler": "ancestral",
    "sampling.num_steps": 100,
}


def recorded_grids(monkeypatch):
    """[(images, sampler steps)] of all image grids of the training, in order."""
    made, original = [], BatchedSampler.generate

    def recording(self, *args, num_images, **kwargs):
        made.append((num_images, self.sampler.num_steps))
        return original(self, *args, num_images=num_images, **kwargs)

    monkeypatch.setattr(BatchedSampler, "generate", recording)
    return made


def test_a_first_try_is_short(tmp_path, tiny_config, monkeypatch, capfd, command):
    """Two steps with 5 images of 100 evaluations: a quick grid of 20 solver steps during training, and at the end only a
    command that works."""
    made = recorded_grids(monkeypatch)
    config = tiny_config(MANY | {"sampling.num_images": 5})
    monkeypatch.setattr("sys.argv", ["main.py"])
    assert train.run(config, str(tmp_path / "run")) == 0
    assert made == [(5, 20)]
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "done: 2 steps; no image grid was saved, since it would take longer than the training; generate one with"
    )
    line = shlex.split(last.partition("generate one with: ")[2])
    assert line[1] == "main.py"
    flags = ["--config.sampling.num_images=3", f"--compilation_cache={command('x')[4].partition('=')[2]}"]
    result = subprocess.run([*line, *flags], cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "dpmpp_2m in 20 steps, spacing logsnr" in result.stdout
    assert len(list((tmp_path / "run" / "samples").glob("*-3_images/grid.png"))) == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"train.num_steps": 10}, [20, 20]),  # the last grid: 100 x 5 / (3 x 8) = 21 steps are more than 10, 4.2 are not
        ({"train.num_steps": 21}, [20, 100]),
        ({"train.num_steps": 21, "train.sample_num_steps": 0}, [100, 100]),
        ({"train.num_steps": 21, "train.sample_num_steps": 7}, [7, 100]),
        ({"train.num_steps": 10, "train.sample_num_steps": 7, "sampling.num_steps": 7}, [7, 7]),
    ],
)
def test_grids_are_quick_during_training_and_full_at_the_end(tiny_config, fields, expected):
    config = tiny_config(MANY | fields)
    quick, full = sampling_config.quick_config(config), sampling_config.few_images(config)
    last = full if sampling_config.cost_in_steps(full) <= config.train.num_steps else quick
    assert [quick.sampling.num_steps, last.sampling.num_steps] == expected
    assert sampling_config.cost_in_steps(last) <= config.train.num_steps


def test_quick_grids_work_with_every_schedule_and_sampler(tiny_config):
    for fields in (
        {"diffusion.zero_terminal_snr": True, "diffusion.prediction": "v", "sampling.spacing": "trailing"},
        {"sampling.sampler": "unipc", "sampling.unipc.order": 3},
        {"sampling.sampler": "heun", "sampling.heun.churn": 5.0},
        {"sampling.sampler": "ddim", "sampling.ddim.eta": 1.0},
        {
            "diffusion.num_timesteps": 12,
            "sampling.num_steps": 12,
            "sampling.num_intermediates": 12,
            "train.sample_num_steps": 11,
        },
        {"sampling.num_images": 50_000},
    ):
        quick = sampling_config.quick_config(tiny_config(MANY | fields))
        config_validation.check_config(quick)
        build.build_sampler(quick)
        assert quick.sampling.num_steps <= 20
        assert quick.sampling.num_images <= 100


def test_a_grid_with_nan_is_skipped_and_training_continues(tmp_path, tiny_config, monkeypatch, capfd, metrics):
    def poisoned(self, *args, **kwargs):
        raise NonFiniteSamples("3 of the 5 images 0..4 are NaN or infinite")

    monkeypatch.setattr(BatchedSampler, "generate", poisoned)
    assert train.run(tiny_config({"train.sample_every": 2}), str(tmp_path)) == 0
    out = capfd.readouterr().err
    assert "no image grid for step 2: 3 of the 5 images" in out
    assert "done: 6 steps; no image grid was saved" in out
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 6]
    assert steps_saved(tmp_path)[-1] == 6


def test_a_step_is_saved_before_its_grid_and_evaluation(tmp_path, tiny_config, monkeypatch, metrics):
    """A failure in either loses no step, and the next start makes what is missing, once."""
    evaluated, fields = [], {"train.sample_every": 2, "train.eval_every": 2, "train.keep_best": "eval/loss_ema"}

    def evaluate(state):
        evaluated.append(int(state.step))
        if len(evaluated) == 1:
            raise RuntimeError("no memory left")
        return {"eval/loss_ema": 1.0 / int(state.step)}

    monkeypatch.setattr(train.training_config, "build_evaluation", lambda *_: evaluate)
    save = train.training_config.SampleGrids.save
    monkeypatch.setattr(train.training_config.SampleGrids, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.run(tiny_config(fields), str(tmp_path))
    assert steps_saved(tmp_path) == [2]
    monkeypatch.setattr(train.training_config.SampleGrids, "save", save)
    with pytest.raises(RuntimeError, match="no memory left"):
        train.run(tiny_config(fields), str(tmp_path))
    assert steps_saved(tmp_path) == [2]
    made = recorded_grids(monkeypatch)
    assert train.run(tiny_config(fields), str(tmp_path)) == 0
    assert evaluated == [2, 2, 4, 6]
    assert len(made) == 2  # of steps 4 and 6
    names = {f"step_{step:08d}.png" for step in (2, 4, 6)}
    assert names == set(os.listdir(tmp_path / "samples"))
    assert [row["step"] for row in metrics(tmp_path) if "eval/loss_ema" in row] == [2, 4, 6]


def test_a_window_of_steps_can_be_profiled(tmp_path, tiny_config):
    assert train.run(tiny_config(), str(tmp_path), profile="2:4") == 0
    assert [name for _, _, files in os.walk(tmp_path / "profile") for name in files if name.endswith(".xplane.pb")]
    for wrong in ("2", "4:2", "a:b", "2:"):
        with pytest.raises(InvalidArgumentError, match="FIRST:LAST"):
            profiling.parse_steps(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diffusion.schedule": "quadric"}, "config.diffusion.schedule is 'quadric': choose one of linear, cosine, sigmoid"),
        ({"diffusion.prediction": "noise"}, "eps, x_start, v"),
        ({"diffusion.variance": "large"}, "fixed_small, fixed_large"),
        ({"diffusion.loss": "huber"}, "simple"),
        ({"diffusion.num_timesteps": 10, "diffusion.schedule": "linear"}, "schedule to cosine"),
        ({"sampling.sampler": "euler"}, "ancestral, ddim"),
        ({"sampling.spacing": "even"}, "leading, linspace, trailing, quadratic"),
        ({"sampling.params": "best"}, "ema, raw"),
        ({"sampling.num_steps": 101}, "set config.sampling.num_steps=100 or fewer"),
        ({"sampling.ddim.eta": 7.0}, "eta is 7.0, out of ddim's range"),
        ({"sampling.label": 3}, "class_conditional is False"),
        ({"sampling.label": 10, "model.class_conditional": True}, "0..9"),
        ({"sampling.num_intermediates": 5}, "only 4 steps"),
        ({"model.dtype": "float16"}, "float32, bfloat16"),
        ({"model.unet.ch": 10}, "multiple of 4"),
        ({"model.unet.ch_mult": (1, 1, 1, 1, 1)}, "cannot be halved 4 times"),
        ({"model.unet.attn_resolutions": (16,)}, "[16]"),
        ({"model.unet.ch_mult": (1, "2")}, "config.model.unet.ch_mult holds '2': it must be a list of integers, such as (1,2)"),
        ({"ema.extra_decays": ("slow",)}, "config.ema.extra_decays holds 'slow': it must be a list of numbers"),
        ({"evaluation.samplers": (1,)}, "config.evaluation.samplers holds 1: it must be a list of strings"),
        ({"ema.extra_decays": (2.0,)}, "config.ema.extra_decays: the decay 2"),
        ({"model.unet.dropout": 1.0}, "below 1"),
        ({"model.class_conditional": True, "data.num_classes": 0}, "digits has 10 classes: set --config.data.num_classes=10"),
        ({"model.class_conditional": True, "data.num_classes": 5}, "digits has 10 classes"),
        ({"data.name": "digitz", "data.data_dir": "/nowhere"}, "digitz"),
        ({"data.split": "validation"}, "choose one of train, test, all"),
        ({"data.channels": 2}, "config.data.channels=1"),
        ({"data.image_size": 16}, "config.data.image_size=8"),
        ({"train.batch_size": 12}, "use 8 or 16"),
        ({"train.num_steps": 0}, "above 0"),
        ({"optimizer.clip_norm": -1.0}, "it must be 0 (no clipping) or more"),
        ({"ema.decay": 1.5}, "below 1"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_config_errors_are_one_line(tmp_path, tiny_config, fields, message):
    with pytest.raises(ExpectedError) as caught:
        train.run(tiny_config({"model.name": "unet"} | fields), str(tmp_path / "run"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()  # found before anything was computed
