"""Fixtures for runs so small that the whole program takes seconds."""

import json
import pathlib
import sys

import pytest

from ddpm_jax import build
from ddpm_jax.cli import evaluate
from ddpm_jax.configs import digits
from tests import preloaded

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

TINY = {
    "model.unet.ch": 8,
    "model.unet.ch_mult": (1,),
    "model.unet.attn_resolutions": (),
    "model.class_conditional": False,
    "model.label_dropout": 0.0,
    "diffusion.num_timesteps": 100,
    "train.num_steps": 6,
    "train.batch_size": 8,
    "train.log_every": 2,
    "train.checkpoint_every": 2,
    "train.sample_every": 0,
    "train.trackers": (),
    "sampling.num_steps": 4,
    "sampling.num_images": 5,
    "sampling.batch_size": 3,
}


def set_fields(config, fields):
    config.update_from_flattened_dict(fields)
    return config


COMPILED_FROM = ("data", "model", "diffusion")  # sections of the config; and those of each function below
# Fields that the functions do not read, or get as arguments: a run with another value compiles nothing.
NOT_COMPILED = {
    "sampling": ("seed", "label", "params", "checkpoint_step"),
    "data": ("data_dir", "split", "in_memory", "cache_dir", "num_threads", "num_workers", "prefetch", "on_decode_error"),
    "optimizer": ("learning_rate", "warmup_steps", "schedule"),
}
MADE = {}  # (name of a function of build.py, config and arguments) -> its result


def _shared(build_fn, *sections):
    """`build_fn`, but equal sections of the config give the same object."""
    train_step = build.train_step

    def build_once(config, *args, **options):
        fields = {section: config[section].to_dict() for section in sections}
        for section in fields:
            for name in NOT_COMPILED.get(section, ()):
                fields[section].pop(name)
        fields["frozen"] = config.train.frozen
        key = (build_fn.__qualname__, repr(fields), args, tuple(options.items()))
        try:
            hash(key)
        except TypeError:  # arrays of steps to save
            return build_fn(config, *args, **options)
        if build.train_step is not train_step:  # replaced by a test, such as that which counts traces
            return build_fn(config, *args, **options)
        if key not in MADE:
            MADE[key] = build_fn(config, *args, **options)
        return MADE[key]

    return build_once


@pytest.fixture(scope="module", autouse=True)
def functions_of_equal_configs_are_shared():
    """JAX traces and compiles them once for all files of this folder, not once for each run of a mode in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, sections in (
            ("build_init", ("optimizer", "ema")),
            ("build_train_step", ("optimizer", "ema")),
            ("build_batched_sampler", ("sampling",)),
        ):
            patch.setattr(build, name, _shared(getattr(build, name), *COMPILED_FROM, *sections))
        for name, (build_fn, measure) in evaluate.LIKELIHOODS.items():
            patch.setitem(evaluate.LIKELIHOODS, name, (_shared(build_fn, *COMPILED_FROM, "evaluation"), measure))
        yield


@pytest.fixture(autouse=True)
def logging_as_main_does(printed_log):
    """For all tests of this folder."""


@pytest.fixture
def tiny_config(request):
    """(fields by dotted name) -> a tiny digits config with these fields set, and the network NETWORK of the module."""
    network = {"model.name": getattr(request.module, "NETWORK", "unet")}

    def make(fields=None):
        return set_fields(digits.get_config(), TINY | network | (fields or {}))

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
        if wanted.get("model.name", "unet") != "unet":  # options of another network would be an error
            wanted = {field: value for field, value in wanted.items() if not field.startswith("model.unet.")}
        fields = [f"--config.{field}={value}" for field, value in wanted.items()]
        given = [f"--config={config}"] if config else []
        cache = REPOSITORY / ".cache" / "xla"
        return [sys.executable, "main.py", *given, f"--workdir={workdir}", f"--compilation_cache={cache}", *fields, *flags]

    return make


@pytest.fixture(scope="session")
def main(command, tmp_path_factory):
    """Run the program in another process: (as `command`) -> CompletedProcess."""

    def run(workdir, *flags, **options):
        return preloaded.run(command(workdir, *flags, **options), tmp_path_factory.mktemp("output"))

    return run


@pytest.fixture
def metrics():
    """workdir -> the lines of metrics.jsonl."""
    return lambda workdir: [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
