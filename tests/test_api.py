"""`import ddpm_jax`: load, train, evaluate and get_config do what the command line does; errors name arguments."""

import json
import os
import signal
import subprocess
import sys

import pytest

import ddpm_jax
from ddpm_jax.cli import evaluate, train
from ddpm_jax.configs import defaults, digits
from ddpm_jax.runtime import run_record

TINY = {
    "model.name": "tests.small_network:Small",
    "model.unet.ch": 8,
    "model.unet.ch_mult": (1,),
    "model.unet.attn_resolutions": (),
    "diffusion.num_timesteps": 20,
    "train.num_steps": 4,
    "train.batch_size": 8,
    "train.log_every": 2,
    "train.checkpoint_every": 2,
    "train.sample_every": 0,
    "train.trackers": (),
    "sampling.num_steps": 4,
    "evaluation.num_images": 12,
    "evaluation.num_heldout_images": 6,
}


@pytest.fixture
def config():
    config = ddpm_jax.get_config("digits")
    config.update_from_flattened_dict(TINY)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = digits.get_config()
    config.update_from_flattened_dict(TINY)
    folder = tmp_path_factory.mktemp("trained") / "run"
    ddpm_jax.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return ddpm_jax.load(folder)


def test_every_public_name_is_importable_and_documented():
    for name in ddpm_jax.__all__:
        assert getattr(ddpm_jax, name).__doc__
        assert name in dir(ddpm_jax)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        ddpm_jax.lode  # noqa: B018
    assert defaults.get_config().keys() == ddpm_jax.get_config("digits").keys()


def test_training_is_that_of_the_command_line(folder, config, tmp_path, capfd):
    before = config.to_json()
    done = ddpm_jax.train(config, str(tmp_path / "run"))
    assert (done["step"], done["complete"], done["workdir"]) == (4, True, str(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert done["metrics"] == json.loads(lines[-1])
    assert done["metrics"]["step"] == 4
    assert config.to_json() == before
    assert capfd.readouterr() == ("", "")  # prints nothing
    train.run(config, str(tmp_path / "cli"))
    losses = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["train/loss"] for name in ("run", "cli")
    ]
    assert losses[0] == losses[1]
    assert ddpm_jax.train(config, tmp_path / "run")["step"] == 4  # nothing is left to do


def test_progress_is_shown_on_request_and_names_no_flags(config, tmp_path, capfd, caplog):
    import logging

    logging.getLogger("ddpm_jax").handlers.clear()
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    root.handlers.clear()  # as without pytest: nothing handles the log
    try:
        ddpm_jax.train(config, tmp_path / "run", progress=True)
    finally:
        root.handlers[:] = handlers
    out, err = capfd.readouterr()
    assert out == ""
    assert "step 4 / 4" in err
    assert "parameters, listed in" in err
    assert "--config." not in err
    assert not logging.getLogger("ddpm_jax").handlers


def test_ctrl_c_saves_and_raises(config, tmp_path, monkeypatch):
    take_step = train.build.build_train_step

    def interrupted(*args):
        step = take_step(*args)

        def run(*values):
            os.kill(os.getpid(), signal.SIGINT)
            return step(*values)

        return run

    monkeypatch.setattr(train.build, "build_train_step", interrupted)  # the signal arrives while the first step is traced
    with pytest.raises(KeyboardInterrupt, match="step 1 is saved"):
        ddpm_jax.train(config, tmp_path / "run")
    assert run_record.latest_saved_step(tmp_path / "run") == 1


def test_evaluation_is_that_of_the_command_line(folder, run, tmp_path, capfd):
    rows = ddpm_jax.evaluate(run, output=tmp_path / "python")
    assert capfd.readouterr() == ("", "")
    config = digits.get_config()
    config.update_from_flattened_dict(TINY)
    assert evaluate.run(config, str(folder), output=str(tmp_path / "cli")) == 0
    reports = [json.loads((tmp_path / name / "step_4.json").read_text()) for name in ("python", "cli")]
    for kind in ("generated", "bits_per_dim", "real"):
        for report in reports:
            for row in report[kind]:
                for name in ("provenance", "config"):  # the date, and the steps to evaluate
                    row.pop(name)
        assert reports[0][kind] == reports[1][kind]
        assert reports[0][kind]
    generated, bound = (next(row for row in rows if name in row and "step" in row) for name in ("frechet", "bits/dim"))
    assert generated["frechet"] == reports[1]["generated"][0]["frechet"]
    assert bound["bits/dim"] == reports[1]["bits_per_dim"][0]["bits/dim"]
    assert generated["provenance"]["frechet"]["ddpm_jax"] == ddpm_jax.__version__


def test_evaluation_takes_a_config_and_arguments(folder, config, tmp_path):
    rows = ddpm_jax.evaluate(
        config, folder, output=tmp_path, metrics="frechet", num_images=5, samplers=("ddim",), num_steps=3, heldout_split=""
    )
    assert [(row["count"], row["evaluations"]) for row in rows] == [(5, 3)]


def test_steps_and_parameters_of_a_run(folder):
    older = ddpm_jax.load(str(folder), step=2, params="raw")
    latest = ddpm_jax.load(folder)
    assert (older.step, latest.step) == (2, 4)
    assert older.class_names == tuple("0123456789")
    assert older.schedule.num_timesteps == 20
    assert older.parameterization.prediction == "eps"
    assert older.config.model.unet.ch == 8
    assert repr(older) == f"<Run {folder}: step 2, raw, digits 8x8x1>"
    with pytest.raises(AttributeError, match="immutable"):
        older.config.seed = 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda folder: ddpm_jax.load(folder, step=3), ValueError, "step is 3: the checkpoints in .* are of step 2, 4"),
        (lambda folder: ddpm_jax.load(folder, step=-1), ValueError, "step is -1: it must be an integer of 0 or more"),
        (lambda folder: ddpm_jax.load(folder, params="em"), ValueError, "params is 'em': choose one of ema, raw"),
        (lambda folder: ddpm_jax.load(folder / "none"), OSError, "contains no run: there is no config.json in it"),
        (lambda folder: ddpm_jax.get_config("digit"), ValueError, "config=digit: no such config; did you mean config=digits"),
        (lambda folder: ddpm_jax.get_config(None), ValueError, "name is None: give the name or file of a config"),
        (lambda folder: ddpm_jax.load(None), ValueError, "workdir is None: give the folder of the run"),
        (lambda folder: ddpm_jax.train(3, folder), ValueError, "config is a int: give a ConfigDict"),
        (lambda folder: ddpm_jax.train(None, folder), ValueError, "config is a NoneType: give a ConfigDict"),
        (lambda folder: ddpm_jax.train("digits", None), ValueError, "workdir is None: give the folder of the run"),
        (lambda folder: ddpm_jax.evaluate("digits", folder, output=None), ValueError, "output is None: give a folder, or ''"),
        (
            lambda folder: ddpm_jax.train("digits", folder),
            RuntimeError,
            r"model\.name was .*Small\", now .*unet.*or choose another `workdir`",
        ),
        (lambda folder: ddpm_jax.train("digits", folder, profile="3"), ValueError, "`profile=3` must be FIRST:LAST"),
        (lambda folder: ddpm_jax.evaluate("digits"), ValueError, "workdir is missing: give the folder of the run"),
        (lambda folder: ddpm_jax.evaluate(ddpm_jax.load(folder), folder), ValueError, "workdir is given, but run has its own"),
        (lambda folder: ddpm_jax.evaluate(ddpm_jax.load(folder), metrics="fid"), ValueError, "metrics is 'fid': choose one of"),
        (lambda folder: ddpm_jax.evaluate(ddpm_jax.load(folder), num_images=2), ValueError, "num_images is 2: it must be 4 or"),
        (lambda folder: ddpm_jax.evaluate(ddpm_jax.load(folder), metric="fid"), ValueError, "did you mean 'metrics'"),
    ],
)
def test_errors_name_the_argument(folder, call, error, message):
    with pytest.raises(error, match=message) as found:
        call(folder)
    assert "--" not in str(found.value)
    assert "\n" not in str(found.value)


def test_a_run_can_be_loaded_after_jax_has_started(folder, repository):
    """As in a notebook: the number of devices cannot change anymore, and a second run can be loaded."""
    code = (
        "import jax; jax.devices(); import ddpm_jax\n"
        f"runs = [ddpm_jax.load({str(folder)!r}) for _ in range(2)]\n"
        "print(all((a == b).all() for a, b in zip(*(jax.tree.leaves(run.params) for run in runs))), jax.device_count())"
    )
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True 1\n", "")


def test_a_progress_line_is_rewritten_in_place_in_a_notebook():
    from ddpm_jax.runtime import progress

    class OutStream:
        """Has the module of Jupyter's stream."""

        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return False

    OutStream.__module__ = "ipykernel.iostream"
    out = OutStream()
    line = progress.StatusLine(out, lambda: 0.0)
    line.show("a longer line")
    line.show("short")
    line.print_above("note")
    line.show("next")
    line.end()
    assert out.text == "\ra longer line\rshort        \rnote \n\rnext\n"


def test_public_functions_have_pages(repository):
    text = (repository / "docs" / "api.md").read_text()
    public = [f"{getattr(ddpm_jax, name).__module__}.{name}" for name in ddpm_jax.__all__]
    assert [name for name in public if f"   {name}\n" not in text] == []
