"""Fixtures for runs so small that the whole program takes seconds."""

import json
import pathlib
import subprocess
import sys

import pytest

from ddpm_jax.configs import digits

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

TINY = {
    "model.ch": 8,
    "model.ch_mult": (1,),
    "model.attn_resolutions": (),
    "model.class_conditional": False,
    "model.label_dropout": 0.0,
    "diffusion.num_timesteps": 100,
    "train.num_steps": 6,
    "train.batch_size": 8,
    "train.log_every": 2,
    "train.checkpoint_every": 2,
    "train.sample_every": 0,
    "train.tensorboard": False,
    "sampling.num_steps": 4,
    "sampling.num_images": 5,
    "sampling.batch_size": 3,
}


def set_fields(config, fields):
    for field, value in fields.items():
        section, _, name = field.partition(".")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    return config


@pytest.fixture(autouse=True)
def logging_as_main_does(printed_log):
    """For all tests of this folder."""


@pytest.fixture
def tiny_config():
    """(fields by dotted name) -> a tiny digits config with these fields set."""

    def make(fields=None):
        return set_fields(digits.get_config(), TINY | (fields or {}))

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Workdir for one run of the module."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def trained(folder, tiny_config, request):
    """Workdir of the only run of the module, with the fields of its TRAINED."""
    if not folder.exists():
        from ddpm_jax.cli import train

        assert train.run(tiny_config(request.module.TRAINED), str(folder)) == 0
    return folder


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """(workdir, *flags, fields=..., config=...) -> the command line of a tiny run."""

    def make(workdir, *flags, fields=None, config="configs/digits.py", tiny=True):
        wanted = (TINY if tiny else {}) | (fields or {})
        fields = [f"--config.{field}={value}" for field, value in wanted.items()]
        given = [f"--config={config}"] if config else []
        cache = REPOSITORY / ".cache" / "xla"
        return [sys.executable, "main.py", *given, f"--workdir={workdir}", f"--compilation_cache={cache}", *fields, *flags]

    return make


@pytest.fixture(scope="session")
def main(command):
    """Run the program in a subprocess: (as `command`) -> CompletedProcess."""

    def run(workdir, *flags, **options):
        line = command(workdir, *flags, **options)
        return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)

    return run


@pytest.fixture
def metrics():
    """workdir -> the lines of metrics.jsonl."""
    return lambda workdir: [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
