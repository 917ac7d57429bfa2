"""A table of bad inputs: what users can get wrong in each mode, and whether the advice of the error works.

    python tests/cli/bad_inputs.py                 # all cases and their advice, as a table
    python tests/cli/bad_inputs.py --commands      # each as a separate command: slow
    python tests/cli/bad_inputs.py --no-advice NAME NAME...

A case is a command line with one error. It must end with exit code 2 (usage) or 1 (anything else), one line on stderr that
starts with "error:" and names the field or flag, and no traceback. Then the command is repeated with the advice of that line
and must succeed.

By default a process that has imported the program forks for each case, which saves the time of the imports.
`test_bad_inputs.py` runs the table in this mode.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT_S = 280

MODEL = ("--config.model.unet.ch=8", "--config.model.unet.ch_mult=(1,)", "--config.model.unet.attn_resolutions=()")
SHORT = (
    "--config.diffusion.num_timesteps=100",
    "--config.train.num_steps=2",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=1",
    "--config.train.sample_every=0",
    "--config.train.trackers=()",
    "--config.sampling.num_steps=4",
    "--config.sampling.num_images=4",
    "--config.sampling.batch_size=4",
)
TRAIN = ("--config=configs/digits.py", "--workdir={here}/run", *MODEL, *SHORT)
FOLDER = (
    "--config=configs/image_folder.py",
    "--workdir={here}/run",
    *MODEL,
    *SHORT,
    "--config.data.image_size=8",
    "--config.data.data_dir={here}/images",
)
SAMPLE = ("--workdir={run}", "--mode=sample", "--output={here}/out")
EVALUATE = (
    "--workdir={run}",
    "--mode=evaluate",
    "--output={here}/out",
    "--config.evaluation.metrics=('frechet',)",
    "--config.evaluation.num_images=8",
    "--config.evaluation.num_heldout_images=8",
)
EXPORT = ("--workdir={run}", "--mode=export", "--output={here}/out")
COMPUTE_STATS = ("--workdir={run}", "--mode=compute_stats", "--output={here}/statistics.npz")
VISUALIZE = ("--workdir={run}", "--mode=visualize", "--output={here}/out", "--config.visualize.num_images=1")
EDIT = ("--workdir={run}", "--output={here}/out", "--config.edit.num_images=2", "--config.edit.samples_per_image=1")
INPAINT = (*EDIT, "--mode=inpaint", "--config.edit.jump_length=2", "--config.edit.resampling=2")
IMAGE_TO_IMAGE = (*EDIT, "--mode=image_to_image")
INTERPOLATE = (*EDIT, "--mode=interpolate", "--config.edit.num_frames=2", "--config.edit.inversion_iters=1")


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
      name: name of the case.
      flags: command line after `main.py`; {here} is a folder for the case, {run} a finished run.
      match: pattern that the error line must match: the field or flag and the problem.
      code: expected exit code.
      setup: creates files; called with {here} and {run}.
      advice: flags that the line suggests, added to the command; the line must name each field.
      repair: what the line suggests if it is not a flag; called as `setup`.
      slow: takes a second or more; not part of the test suite.
      outside: the advice needs a network.
    """

    name: str
    flags: tuple[str, ...]
    match: str
    code: int = 2
    setup: Callable[[pathlib.Path, pathlib.Path], None] | None = None
    advice: tuple[str, ...] | None = None
    repair: Callable[[pathlib.Path, pathlib.Path], None] | None = None
    slow: bool = False
    outside: bool = False

    @property
    def mode(self) -> str:
        """The value of --mode."""
        given = [flag.removeprefix("--mode=") for flag in self.flags if flag.startswith("--mode=")]
        return given[0] if given else "train"


def images(here: pathlib.Path, run: pathlib.Path, *, number: int = 12, size: int = 8) -> None:
    """{here}/images: two classes of small images."""
    rng = np.random.default_rng(0)
    for index in range(number):
        file = here / "images" / f"class{index % 2}" / f"{index:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)


def text(name: str, content: str) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Create the file {here}/`name`."""

    def make(here: pathlib.Path, run: pathlib.Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(content)

    return make


def config_file(body: str) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Create {here}/own.py, a config file."""
    return text("own.py", body)


def damaged(change: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Create {here}/run, a modified copy of the run."""

    def make(here: pathlib.Path, run: pathlib.Path) -> None:
        shutil.copytree(run, here / "run")
        change(here / "run")

    return make


def in_config(change: Callable[[dict], None]) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Create {here}/run with a modified config.json."""

    def edit(folder: pathlib.Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damaged(edit)


def cut_off_checkpoints(folder: pathlib.Path) -> None:
    """Truncate all array files of all checkpoints to half their size."""
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 200 and "/d/" in file.as_posix():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def picture(name: str, level: int, size: tuple[int, int] = (8, 8)) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Create the gray image {here}/`name`."""
    return lambda here, run: Image.new("L", size, level).save(here / name)


def statistics(**arrays: np.ndarray) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Create {here}/statistics.npz."""
    return lambda here, run: np.savez(here / "statistics.npz", **arrays)


def put_back_config(here: pathlib.Path, run: pathlib.Path) -> None:
    """Restore config.json, as the errors advise."""
    shutil.copy(run / "config.json", here / "run" / "config.json")


def removed(name: str) -> Callable[[pathlib.Path, pathlib.Path], None]:
    """Remove {here}/`name`."""
    return lambda here, run: (here / name).unlink()


CASES = (
    # The command line.
    Case("no flags", (), "--workdir is missing", advice=TRAIN),
    Case("no config", ("--workdir={here}/run",), "--config is missing", advice=TRAIN),
    Case(
        "no workdir", ("--config=configs/digits.py", *MODEL, *SHORT), "--workdir is missing", advice=("--workdir={here}/run",)
    ),
    Case(
        "fields without a config", ("--workdir={here}/run", *MODEL), "--config is missing.*config.model.unet.ch", advice=TRAIN
    ),
    Case("unknown flag", (*TRAIN, "--worksdir=x"), "worksdir.*workdir"),
    Case("unknown mode", (*TRAIN, "--mode=sampel"), "--mode=sampel.*sample"),
    Case("word without dashes", (*TRAIN, "sample"), "'sample'.*--mode=sample"),
    Case("flag without value", ("--workdir",), "--workdir"),
    Case("output of training", (*TRAIN, "--output={here}/out"), "--mode=train has no --output"),
    Case("profile of sampling", (*SAMPLE, "--profile=1:2"), "--profile.*--mode=train"),
    Case("profile without colon", (*TRAIN, "--profile=5"), "--profile=5", advice=("--profile=0:1",)),
    Case("profile backwards", (*TRAIN, "--profile=9:3"), "--profile=9:3", advice=("--profile=0:1",)),
    Case("coordinator alone", (*TRAIN, "--coordinator=127.0.0.1:8476"), "--num_processes and --process_id missing"),
    Case("process alone", (*TRAIN, "--process_id=0"), "--coordinator and --num_processes missing"),
    Case(
        "coordinator without port",
        (*TRAIN, "--coordinator=localhost", "--num_processes=1", "--process_id=0"),
        "--coordinator=localhost must be HOST:PORT",
        advice=("--coordinator=localhost:18476",),
    ),
    Case(
        "process out of range",
        (*TRAIN, "--coordinator=127.0.0.1:18477", "--num_processes=1", "--process_id=3"),
        "--process_id=3 must be between 0 and 0",
        advice=("--process_id=0",),
    ),
    Case("number of processes in words", (*TRAIN, "--num_processes=two"), "num_processes.*'two'"),
    Case("export in an unknown format", (*EXPORT, "--config.export.format=tflite"), "config.export.format.*stablehlo"),
    Case("export for no platform", (*EXPORT, "--config.export.platforms=()"), "config.export.platforms is empty: .* cpu, cuda"),
    Case(
        "export of few steps to diffusers",
        (*EXPORT, "--config.export.format=diffusers"),
        "config.diffusion.num_timesteps is 100: .*it must be 1000",
    ),
    Case(
        "source weights that are not there",
        (*TRAIN, "--config.train.init_from={here}/nothing"),
        "config.train.init_from: {here}/nothing: there is no such file",
        code=1,
        advice=("--config.train.init_from={run}",),
    ),
    Case(
        "weights of another network",
        (*TRAIN, "--config.train.init_from={run}", "--config.model.unet.ch=16"),
        "config.train.init_from={run} does not fit.*config.model.unet.ch was 8 there, is 16 here",
        advice=("--config.model.unet.ch=8",),
        slow=True,
    ),
    Case(
        "frozen parameters that are not there",
        (*TRAIN, "--config.train.frozen=('dwon*',)"),
        "config.train.frozen contains 'dwon\\*', which matches no parameter",
        advice=("--config.train.frozen=('down*',)",),
        slow=True,
    ),
    # The config.
    Case("config that is not there", ("--config={here}/own.py", "--workdir={here}/run"), "own.py"),
    Case("config is a folder", ("--config=configs", "--workdir={here}/run"), "configs"),
    Case(
        "config with a syntax error",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py.*line 2",
        setup=config_file("def get_config():\n    return config(\n"),
    ),
    Case(
        "config that raises",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py.*line 2.*division by zero",
        setup=config_file("def get_config():\n    return 1 / 0\n"),
    ),
    Case(
        "config that imports what is not there",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py.*No module named 'no_such_module'",
        setup=config_file("import no_such_module\n"),
    ),
    Case(
        "config that sets an unknown field",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py.*'chanels'.*'channels'",
        setup=config_file(
            "from ddpm_jax.configs import defaults\ndef get_config():\n    c = defaults.get_config()\n    c.lock()\n"
            "    c.data.chanels = 1\n    return c\n"
        ),
    ),
    Case(
        "config without get_config",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py.*get_config",
        setup=config_file("config = {}\n"),
    ),
    Case(
        "config that returns nothing",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py.*get_config.*ConfigDict",
        setup=config_file("def get_config():\n    pass\n"),
    ),
    Case(
        "config without sections",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py lacks config.data",
        setup=config_file("import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 0})\n"),
    ),
    Case(
        "config with a new field",
        ("--config={here}/own.py", "--workdir={here}/run"),
        "own.py sets config.data.chanels.*'channels'",
        setup=config_file(
            "from ddpm_jax.configs import defaults\n\ndef get_config():\n    config = defaults.get_config()\n"
            "    config.data.chanels = 1\n    return config\n"
        ),
    ),
    Case("config with an argument", ("--config=configs/digits.py:small", "--workdir={here}/run"), "configs/digits.py:small"),
    Case("unknown field", (*TRAIN, "--config.train.num_stepz=3"), "'num_stepz': did you mean 'num_steps'"),
    Case("unknown section", (*TRAIN, "--config.trian.num_steps=3"), "'trian': did you mean 'train'"),
    Case("a section as a field", (*TRAIN, "--config.train=3"), "config.train"),
    Case("field of a field", (*TRAIN, "--config.seed.value=3"), "config.seed"),
    Case("words for an integer", (*TRAIN, "--config.train.num_steps=many"), "num_steps=many.*integer"),
    Case("fraction for an integer", (*TRAIN, "--config.train.num_steps=2.5"), "num_steps=2.5.*integer"),
    Case("nothing for a number", (*TRAIN, "--config.train.num_steps="), "num_steps=.*integer"),
    Case("words for a number", (*TRAIN, "--config.optimizer.learning_rate=fast"), "learning_rate=fast.*number"),
    Case("words for yes or no", (*TRAIN, "--config.model.unet.remat=maybe"), "remat=maybe.*true nor false"),
    Case("list without brackets", (*TRAIN, "--config.model.unet.ch_mult=1;2"), "ch_mult holds '1;2'.*\\(1,2\\)"),
    Case("list without an end", (*TRAIN, "--config.model.unet.ch_mult=(1,2"), "ch_mult=\\(1,2.*'\\(1,2\\)'"),
    Case("list of strings", (*TRAIN, "--config.model.unet.ch_mult=('a',)"), "config.model.unet.ch_mult holds 'a'.*\\(1,2\\)"),
    Case("list of fractions", (*TRAIN, "--config.model.unet.ch_mult=(1.5,)"), "config.model.unet.ch_mult holds 1.5"),
    Case(
        "string in a list of numbers", (*TRAIN, "--config.ema.extra_decays=('long',)"), "config.ema.extra_decays holds 'long'"
    ),
    Case("numbers in a list of strings", (*EVALUATE, "--config.evaluation.metrics=(1,)"), "config.evaluation.metrics holds 1"),
    # Ranges and contradictions.
    Case(
        "empty ch_mult",
        (*TRAIN, "--config.model.unet.ch_mult=()"),
        "config.model.unet.ch_mult",
        advice=("--config.model.unet.ch_mult=(1,)",),
    ),
    Case(
        "zero in ch_mult",
        (*TRAIN, "--config.model.unet.ch_mult=(0,)"),
        "config.model.unet.ch_mult",
        advice=("--config.model.unet.ch_mult=(1,)",),
    ),
    Case("width", (*TRAIN, "--config.model.unet.ch=10"), "config.model.unet.ch is 10", advice=("--config.model.unet.ch=12",)),
    Case(
        "image too small for the levels",
        (*TRAIN, "--config.model.unet.ch_mult=(1,1,1,1,1)"),
        "config.data.image_size is 8.*config.model.unet.ch_mult",
        advice=("--config.model.unet.ch_mult=(1,1)",),
    ),
    Case(
        "attention at no level",
        (*TRAIN, "--config.model.unet.attn_resolutions=(5,)"),
        "config.model.unet.attn_resolutions.*\\[5\\]",
        advice=("--config.model.unet.attn_resolutions=(8,)",),
    ),
    Case(
        "heads",
        (*TRAIN, "--config.model.unet.num_heads=3"),
        "config.model.unet.num_heads is 3",
        advice=("--config.model.unet.num_heads=2",),
    ),
    Case(
        "dropout",
        (*TRAIN, "--config.model.unet.dropout=1.5"),
        "config.model.unet.dropout is 1.5",
        advice=("--config.model.unet.dropout=0.5",),
    ),
    Case("dtype", (*TRAIN, "--config.model.dtype=float16"), "config.model.dtype", advice=("--config.model.dtype=bfloat16",)),
    Case("batch of none", (*TRAIN, "--config.train.batch_size=0"), "config.train.batch_size is 0: it must be above 0"),
    Case(
        "batch and micro-batches",
        (*TRAIN, "--config.optimizer.accumulation_steps=3"),
        "config.train.batch_size is 8.*use 6 or 9",
        advice=("--config.train.batch_size=6",),
    ),
    Case(
        "mesh",
        (*TRAIN, "--config.mesh.fsdp=3"),
        "config.mesh.fsdp is 3, which does not divide the number of devices, 1: use 1",
        advice=("--config.mesh.fsdp=1",),
    ),
    Case(
        "learning rate",
        (*TRAIN, "--config.optimizer.learning_rate=-1"),
        "config.optimizer.learning_rate is -1",
        advice=("--config.optimizer.learning_rate=0.001",),
    ),
    Case("infinite learning rate", (*TRAIN, "--config.optimizer.learning_rate=inf"), "config.optimizer.learning_rate"),
    Case(
        "learning rate that is not a number", (*TRAIN, "--config.optimizer.learning_rate=nan"), "config.optimizer.learning_rate"
    ),
    Case(
        "checkpoints kept",
        (*TRAIN, "--config.train.max_to_keep=0"),
        "config.train.max_to_keep is 0",
        advice=("--config.train.max_to_keep=1",),
    ),
    Case("negative seed", (*TRAIN, "--config.seed=-1"), "config.seed"),
    Case(
        "schedule",
        (*TRAIN, "--config.diffusion.schedule=quadratic"),
        "config.diffusion.schedule.*cosine",
        advice=("--config.diffusion.schedule=cosine",),
    ),
    Case("no timesteps", (*TRAIN, "--config.diffusion.num_timesteps=0"), "config.diffusion.num_timesteps is 0"),
    Case(
        "few timesteps of a linear schedule",
        (*TRAIN, "--config.diffusion.schedule=linear", "--config.diffusion.num_timesteps=10"),
        "config.diffusion.*beta",
    ),
    Case(
        "fewer timesteps than sampling steps",
        (*TRAIN, "--config.diffusion.num_timesteps=3"),
        "config.(sampling.num_steps|diffusion.num_timesteps)",
        advice=("--config.sampling.num_steps=3",),
    ),
    Case(
        "learned variance without a bound",
        (*TRAIN, "--config.diffusion.variance=learned_range"),
        "config.diffusion.*hybrid",
        advice=("--config.diffusion.loss=hybrid",),
    ),
    Case(
        "bound without a learned variance",
        (*TRAIN, "--config.diffusion.loss=hybrid"),
        "config.diffusion.*learned_range",
        advice=("--config.diffusion.variance=learned_range",),
    ),
    Case(
        "zero terminal SNR under eps",
        (*TRAIN, "--config.diffusion.zero_terminal_snr=True", "--config.sampling.spacing=trailing"),
        "config.diffusion.*zero.terminal.*prediction",
        advice=("--config.diffusion.prediction=v",),
    ),
    Case(
        "weighting",
        (*TRAIN, "--config.diffusion.weighting=snrr"),
        "config.diffusion.weighting.*snr",
        advice=("--config.diffusion.weighting=snr",),
    ),
    Case(
        "option of a weighting",
        (*TRAIN, "--config.diffusion.weighting=min_snr_gamma", "--config.diffusion.min_snr_gamma.gamma=-1"),
        "config.diffusion.*min_snr_gamma",
        advice=("--config.diffusion.min_snr_gamma.gamma=5",),
    ),
    Case(
        "length of an average",
        (*TRAIN, "--config.ema.power_sigma_rel=(0.5,)"),
        "config.ema.*0.5",
        advice=("--config.ema.power_sigma_rel=(0.1,)",),
    ),
    Case(
        "decay of an average",
        (*TRAIN, "--config.ema.extra_decays=(1.5,)"),
        "config.ema.*1.5",
        advice=("--config.ema.extra_decays=(0.9,)",),
    ),
    Case(
        "weights that training does not keep",
        (*TRAIN, "--config.sampling.params=decay_0.9"),
        "config.sampling.params.*ema, raw",
        advice=("--config.sampling.params=raw",),
    ),
    Case(
        "weights that are made after training",
        (*TRAIN, "--config.ema.power_sigma_rel=(0.05,0.1)", "--config.sampling.params=power_0.07"),
        "config.sampling.params=power_0.07",
        advice=("--config.sampling.params=ema",),
    ),
    Case(
        "no class for a conditional model",
        (*TRAIN, "--config.data.num_classes=0"),
        "config.data.num_classes",
        advice=("--config.data.num_classes=10",),
    ),
    Case(
        "dropping classes without classes",
        (*TRAIN, "--config.model.class_conditional=False"),
        "config.model.label_dropout.*config.model.class_conditional",
        advice=("--config.model.label_dropout=0",),
    ),
    Case(
        "scores during training without a metric of images",
        (
            *TRAIN,
            "--config.train.eval_every=1",
            "--config.train.eval_num_samples=8",
            "--config.evaluation.metrics=('bits_per_dim',)",
        ),
        "config.train.eval_every.*config.evaluation.metrics",
        advice=("--config.evaluation.metrics=('frechet',)",),
        slow=True,
    ),
    # Data.
    Case("set with a typo", (*TRAIN, "--config.data.name=cifra10"), "cifra10.*cifar10|config.data.name", slow=True),
    Case(
        "set that needs a download",
        (*TRAIN, "--config.data.name=mnist", "--config.data.data_dir={here}/sets"),
        "data_dir",
        code=1,
        outside=True,
        slow=True,
    ),
    Case(
        "version of a set",
        (*TRAIN, "--config.data.name=cifar10:9.9.9", "--config.data.data_dir={here}/sets"),
        "cifar10.*9.9.9",
        outside=True,
    ),
    Case(
        "split with a typo", (*TRAIN, "--config.data.split=tset"), "digits.*'tset'.*test", advice=("--config.data.split=test",)
    ),
    Case(
        "image size of the digits",
        (*TRAIN, "--config.data.image_size=16"),
        "config.data.image_size=8",
        advice=("--config.data.image_size=8",),
    ),
    Case("two channels", (*TRAIN, "--config.data.channels=2"), "config.data.channels=1", advice=("--config.data.channels=1",)),
    Case(
        "number of classes",
        (*TRAIN, "--config.data.num_classes=7"),
        "config.data.num_classes",
        advice=("--config.data.num_classes=10",),
    ),
    Case(
        "when to decode",
        (*TRAIN, "--config.data.in_memory=yes"),
        "config.data.in_memory",
        advice=("--config.data.in_memory=always",),
    ),
    Case(
        "folder not named",
        (*FOLDER, "--config.data.data_dir="),
        "config.data.data_dir",
        setup=images,
        advice=("--config.data.data_dir={here}/images",),
    ),
    Case("folder that is not there", FOLDER, "{here}/images.*config.data.data_dir", code=1, repair=images),
    Case(
        "folder is a file",
        FOLDER,
        "{here}/images.*config.data.data_dir",
        code=1,
        setup=text("images", ""),
        repair=lambda here, run: (removed("images")(here, run), images(here, run)),
    ),
    Case(
        "folder without images",
        FOLDER,
        "no images in {here}/images",
        code=1,
        setup=text("images/notes.txt", "x"),
        repair=images,
    ),
    Case(
        "broken image",
        FOLDER,
        "class0/bad.png.*config.data.on_decode_error=skip",
        code=1,
        setup=lambda here, run: (images(here, run), text("images/class0/bad.png", "x")(here, run)),
        advice=("--config.data.on_decode_error=skip",),
    ),
    Case(
        "broken images only",
        FOLDER,
        "none of the.*{here}/images",
        code=1,
        setup=text("images/class0/bad.png", "x"),
        repair=lambda here, run: (shutil.rmtree(here / "images"), images(here, run)),
    ),
    Case(
        "background",
        (*FOLDER, "--config.data.background=snow white"),
        "config.data.background",
        setup=images,
        advice=("--config.data.background=white",),
    ),
    Case(
        "policy for broken files",
        (*FOLDER, "--config.data.on_decode_error=ignore"),
        "config.data.on_decode_error",
        setup=images,
        advice=("--config.data.on_decode_error=skip",),
    ),
    # Workdirs.
    Case(
        "workdir is a file", TRAIN, "{here}/run.*--workdir", code=1, setup=text("run", ""), advice=("--workdir={here}/other",)
    ),
    Case(
        "workdir under a file",
        (*TRAIN, "--workdir={here}/file/run"),
        "{here}/file/run.*--workdir",
        code=1,
        setup=text("file", ""),
        advice=("--workdir={here}/other",),
    ),
    Case("workdir in a bucket", (*TRAIN, "--workdir=s3://bucket/run"), "s3://bucket/run", code=1),
    Case(
        "empty workdir to sample from",
        ("--config=configs/digits.py", "--workdir={here}/none", "--mode=sample", "--output={here}/out", *MODEL, *SHORT),
        "{here}/none.*--workdir",
        code=1,
        advice=("--workdir={run}",),
    ),
    Case(
        "file to sample from",
        ("--workdir={here}/file", "--mode=sample"),
        "{here}/file|--config is missing",
        setup=text("file", ""),
    ),
    Case(
        "run without a checkpoint",
        ("--workdir={here}/run", "--mode=sample"),
        "no checkpoint.*{here}/run",
        code=1,
        setup=damaged(lambda run: shutil.rmtree(run / "checkpoints")),
        repair=lambda here, run: shutil.copytree(run / "checkpoints", here / "run" / "checkpoints"),
        slow=True,
    ),
    Case(
        "run whose checkpoints are a file",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/checkpoints",
        code=1,
        setup=damaged(lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").touch())),
        slow=True,
    ),
    Case(
        "damaged checkpoints, sampling",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/checkpoints",
        code=1,
        setup=damaged(cut_off_checkpoints),
        slow=True,
    ),
    Case(
        "damaged checkpoints, training",
        ("--workdir={here}/run", "--config.train.num_steps=9"),
        "{here}/run/checkpoints",
        code=1,
        setup=damaged(cut_off_checkpoints),
        slow=True,
    ),
    Case(
        "damaged config.json",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/config.json",
        code=1,
        setup=damaged(lambda run: (run / "config.json").write_text("{")),
        repair=put_back_config,
    ),
    Case(
        "config.json that is a list",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/config.json",
        code=1,
        setup=damaged(lambda run: (run / "config.json").write_text("[]")),
        repair=put_back_config,
    ),
    Case(
        "config.json that is not text",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/config.json",
        code=1,
        setup=damaged(lambda run: (run / "config.json").write_bytes(b"\xff\xfe\x00")),
    ),
    Case(
        "config.json with a number for a section",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/config.json.*data",
        code=1,
        setup=in_config(lambda c: c.update(data=5)),
        repair=put_back_config,
    ),
    Case(
        "config.json with a word for a number",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/config.json.*num_steps",
        code=1,
        setup=in_config(lambda c: c["sampling"].update(num_steps="many")),
        repair=put_back_config,
    ),
    Case(
        "config.json with an unknown section",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run/config.json.*extra",
        code=1,
        setup=in_config(lambda c: c.update(extra={"x": 1})),
        repair=put_back_config,
    ),
    Case(
        "config.json of another model",
        ("--workdir={here}/run", "--mode=sample"),
        "{here}/run.*model.unet.ch was 8, now 12",
        code=1,
        setup=in_config(lambda c: c["model"]["unet"].update(ch=12)),
        repair=put_back_config,
    ),
    Case(
        "another model than the run's",
        (*SAMPLE, "--config.model.unet.ch=12"),
        "model.unet.ch was 8, now 12",
        code=1,
        advice=("--config.model.unet.ch=8",),
    ),
    Case(
        "resume with another model",
        (*TRAIN, "--workdir={run}", "--config.model.unet.ch=12"),
        "model.unet.ch was 8, now 12",
        code=1,
        advice=("--workdir={here}/other",),
    ),
    Case(
        "checkpoint that is not there",
        (*SAMPLE, "--config.sampling.checkpoint_step=5"),
        "no checkpoint of step 5.*there are.*2",
        code=1,
        advice=("--config.sampling.checkpoint_step=2",),
    ),
    # Sampling.
    Case(
        "sampler",
        (*SAMPLE, "--config.sampling.sampler=dimm"),
        "config.sampling.sampler.*ddim",
        advice=("--config.sampling.sampler=ddim",),
    ),
    Case(
        "more steps than the chain has",
        (*SAMPLE, "--config.sampling.num_steps=101"),
        "config.sampling.*101",
        advice=("--config.sampling.num_steps=100",),
    ),
    Case(
        "no steps",
        (*SAMPLE, "--config.sampling.num_steps=0"),
        "config.sampling.num_steps is 0",
        advice=("--config.sampling.num_steps=1",),
    ),
    Case(
        "no images",
        (*SAMPLE, "--config.sampling.num_images=0"),
        "config.sampling.num_images is 0",
        advice=("--config.sampling.num_images=1",),
    ),
    Case(
        "spacing",
        (*SAMPLE, "--config.sampling.spacing=even"),
        "config.sampling.spacing",
        advice=("--config.sampling.spacing=linspace",),
    ),
    Case(
        "order of another sampler",
        (*SAMPLE, "--config.sampling.unipc.order=3"),
        "config.sampling.unipc.order.*unipc",
        advice=("--config.sampling.sampler=unipc",),
    ),
    Case(
        "order",
        (*SAMPLE, "--config.sampling.sampler=unipc", "--config.sampling.unipc.order=5"),
        "config.sampling.*order.*5",
        advice=("--config.sampling.unipc.order=3",),
    ),
    Case(
        "churn of another sampler",
        (*SAMPLE, "--config.sampling.heun.churn=3"),
        "config.sampling.heun.churn.*heun",
        advice=("--config.sampling.sampler=heun",),
    ),
    Case(
        "empty interval of churn",
        (*SAMPLE, "--config.sampling.sampler=heun", "--config.sampling.heun.churn_min=2", "--config.sampling.heun.churn_max=1"),
        "config.sampling.heun.churn_min <= config.sampling.heun.churn_max",
        advice=("--config.sampling.heun.churn_max=3",),
    ),
    Case(
        "network", (*TRAIN, "--config.model.name=unett"), "config.model.name is 'unett': choose one of unet, or module:function"
    ),
    Case(
        "option of a network that is not chosen",
        (*TRAIN, "--config.model.options.width=8"),
        "config.model.options.width has no effect",
    ),
    Case(
        "module that does not exist",
        (*TRAIN, "--config.diffusion.schedule=no_such_module:betas"),
        "config.diffusion.schedule: the schedule no_such_module:betas cannot be imported: ModuleNotFoundError",
    ),
    Case(
        "option that a function does not have",
        (*TRAIN, "--config.optimizer.name=optax:sgd", "--config.optimizer.options.momentun=0.9"),
        "config.optimizer.name: the optimizer optax:sgd has no option 'momentun': it has .*momentum",
    ),
    Case(
        "option that the program provides",
        (*TRAIN, "--config.optimizer.name=optax:sgd", "--config.optimizer.options.clip_norm=1"),
        "config.optimizer.options.clip_norm is not an option",
    ),
    Case(
        "label of no class",
        (*SAMPLE, "--config.sampling.label=10"),
        "config.sampling.label",
        advice=("--config.sampling.label=9",),
    ),
    Case(
        "label below all",
        (*SAMPLE, "--config.sampling.label=-2"),
        "config.sampling.label",
        advice=("--config.sampling.label=-1",),
    ),
    Case(
        "guidance interval backwards",
        (*SAMPLE, "--config.sampling.guidance_scale=2", "--config.sampling.guidance_interval=(1,0)"),
        "config.sampling.*guidance_interval",
        advice=("--config.sampling.guidance_interval=(0,1)",),
    ),
    Case(
        "guidance interval of a number",
        (*SAMPLE, "--config.sampling.guidance_scale=2", "--config.sampling.guidance_interval=(1,)"),
        "config.sampling.guidance_interval",
        advice=("--config.sampling.guidance_interval=(0,1)",),
    ),
    Case("infinite guidance", (*SAMPLE, "--config.sampling.guidance_scale=inf"), "config.sampling.guidance_scale"),
    Case(
        "guidance_rescale",
        (*SAMPLE, "--config.sampling.guidance_scale=2", "--config.sampling.guidance_rescale=3"),
        "config.sampling.*rescale",
        advice=("--config.sampling.guidance_rescale=1",),
    ),
    Case(
        "stages kept",
        (*SAMPLE, "--config.sampling.num_intermediates=9"),
        "config.sampling.num_intermediates is 9",
        advice=("--config.sampling.num_intermediates=4",),
    ),
    Case(
        "negative eta",
        (*SAMPLE, "--config.sampling.ddim.eta=-1"),
        "config.sampling.ddim.eta is -1",
        advice=("--config.sampling.ddim.eta=0",),
    ),
    Case(
        "weights by an unknown name",
        (*SAMPLE, "--config.sampling.params=emma"),
        "config.sampling.params.*ema",
        advice=("--config.sampling.params=ema",),
    ),
    Case(
        "negative seed of sampling",
        (*SAMPLE, "--config.sampling.seed=-1"),
        "config.sampling.seed",
        advice=("--config.sampling.seed=1",),
    ),
    Case("output is a file", SAMPLE, "{here}/out.*--output", code=1, setup=text("out", ""), advice=("--output={here}/other",)),
    Case(
        "output under a file",
        (*SAMPLE, "--output={here}/file/out"),
        "{here}/file/out.*--output",
        code=1,
        setup=text("file", ""),
        advice=("--output={here}/other",),
    ),
    Case("output in a bucket", (*SAMPLE, "--output=s3://bucket/out"), "--output", code=1, advice=("--output={here}/other",)),
    # Input images.
    Case(
        "image that is not there",
        (*IMAGE_TO_IMAGE, "--config.edit.images=('{here}/a.png',)", "--config.sampling.label=1"),
        "{here}/a.png",
        code=1,
        repair=picture("a.png", 99),
    ),
    Case(
        "image that is none",
        (*IMAGE_TO_IMAGE, "--config.edit.images=('{here}/a.png',)", "--config.sampling.label=1"),
        "{here}/a.png",
        code=1,
        setup=text("a.png", "x"),
        repair=picture("a.png", 99),
    ),
    Case(
        "strength of nothing",
        (*IMAGE_TO_IMAGE, "--config.edit.strength=0"),
        "config.edit.strength is 0",
        advice=("--config.edit.strength=1",),
    ),
    Case(
        "strength above all",
        (*IMAGE_TO_IMAGE, "--config.edit.strength=1.5"),
        "config.edit.strength is 1.5",
        advice=("--config.edit.strength=1",),
    ),
    Case(
        "no variants",
        (*IMAGE_TO_IMAGE, "--config.edit.samples_per_image=0"),
        "config.edit.samples_per_image is 0",
        advice=("--config.edit.samples_per_image=1",),
    ),
    Case(
        "images beyond the set",
        (*IMAGE_TO_IMAGE, "--config.edit.start_index=1499"),
        "config.edit.*1499",
        advice=("--config.edit.start_index=1498",),
        slow=True,
    ),
    Case("split of the images", (*IMAGE_TO_IMAGE, "--config.edit.split=tset"), "'tset'", advice=("--config.edit.split=test",)),
    Case(
        "mask with a typo",
        (*INPAINT, "--config.edit.mask=middle"),
        "config.edit.mask.*center",
        advice=("--config.edit.mask=center",),
    ),
    Case(
        "mask that is not an image",
        (*INPAINT, "--config.edit.mask={here}/mask.png"),
        "{here}/mask.png",
        code=1,
        setup=text("mask.png", "x"),
        advice=("--config.edit.mask=left",),
    ),
    Case(
        "black mask",
        (*INPAINT, "--config.edit.mask={here}/mask.png"),
        "config.edit.mask.*black",
        setup=picture("mask.png", 0),
        advice=("--config.edit.mask=left",),
    ),
    Case(
        "white mask",
        (*INPAINT, "--config.edit.mask={here}/mask.png"),
        "config.edit.mask.*white",
        setup=picture("mask.png", 255),
        advice=("--config.edit.mask=left",),
    ),
    Case(
        "sampler that cannot fill in",
        (*INPAINT, "--config.sampling.sampler=dpmpp_2m"),
        "config.sampling.sampler.*ddim",
        advice=("--config.sampling.sampler=ddim",),
    ),
    Case(
        "jump of none",
        (*INPAINT, "--config.edit.jump_length=-1"),
        "config.edit.jump_length is -1",
        advice=("--config.edit.jump_length=1",),
    ),
    Case(
        "one image to interpolate",
        (*INTERPOLATE, "--config.edit.num_images=1"),
        "config.edit",
        advice=("--config.edit.num_images=2",),
        slow=True,
    ),
    Case(
        "one file to interpolate",
        (*INTERPOLATE, "--config.edit.images=('{here}/a.png',)", "--config.sampling.label=1"),
        "config.edit.images",
        setup=picture("a.png", 99),
        advice=("--config.edit.images=('{here}/a.png','{here}/a.png')",),
        slow=True,
    ),
    Case(
        "one frame",
        (*INTERPOLATE, "--config.edit.num_frames=1"),
        "config.edit.num_frames is 1",
        advice=("--config.edit.num_frames=2",),
    ),
    Case(
        "interpolation by another sampler",
        (*INTERPOLATE, "--config.sampling.sampler=ancestral"),
        "config.sampling.sampler=ddim",
        advice=("--config.sampling.sampler=ddim",),
    ),
    Case(
        "interpolation with noise",
        (*INTERPOLATE, "--config.sampling.ddim.eta=1"),
        "config.sampling.ddim.eta=0",
        advice=("--config.sampling.ddim.eta=0",),
    ),
    Case(
        "interpolation with guidance",
        (*INTERPOLATE, "--config.sampling.guidance_scale=2"),
        "config.sampling.guidance_scale=1",
        advice=("--config.sampling.guidance_scale=1",),
    ),
    # Figures.
    Case(
        "no rows",
        (*VISUALIZE, "--config.visualize.num_images=0"),
        "config.visualize.num_images is 0",
        advice=("--config.visualize.num_images=1",),
    ),
    Case(
        "too many rows",
        (*VISUALIZE, "--config.visualize.num_images=99"),
        "config.visualize.num_images is 99",
        advice=("--config.visualize.num_images=2",),
    ),
    Case(
        "few columns",
        (*VISUALIZE, "--config.visualize.num_stages=2"),
        "config.visualize.num_stages is 2",
        advice=("--config.visualize.num_stages=5",),
    ),
    Case(
        "rows beyond the set",
        (*VISUALIZE, "--config.visualize.start_index=1500"),
        "config.visualize.start_index=1500",
        advice=("--config.visualize.start_index=1499",),
        slow=True,
    ),
    # Evaluation.
    Case(
        "metric",
        (*EVALUATE, "--config.evaluation.metrics=('fid',)"),
        "config.evaluation.metrics.*frechet",
        advice=("--config.evaluation.metrics=('frechet',)",),
    ),
    Case(
        "no metric",
        (*EVALUATE, "--config.evaluation.metrics=()"),
        "config.evaluation.metrics is empty",
        advice=("--config.evaluation.metrics=('frechet',)",),
    ),
    Case(
        "features",
        (*EVALUATE, "--config.evaluation.features=vgg"),
        "config.evaluation.features.*pixels",
        advice=("--config.evaluation.features=pixels",),
    ),
    Case(
        "features of a module that is not there",
        (*EVALUATE, "--config.evaluation.features=no_such_module:f"),
        "config.evaluation.features.*no_such_module",
    ),
    Case(
        "features of a function that is not there",
        (*EVALUATE, "--config.evaluation.features=math:no_such"),
        "config.evaluation.features.*no_such",
    ),
    Case(
        "features that fail",
        (*EVALUATE, "--config.evaluation.features=math:sqrt"),
        "config.evaluation.features.*math:sqrt",
        slow=True,
    ),
    Case(
        "score without classes of features",
        (*EVALUATE, "--config.evaluation.metrics=('inception_score',)"),
        "inception_score.*config.evaluation.metrics",
        code=1,
        slow=True,
    ),
    Case(
        "Inception weights with other features",
        (*EVALUATE, "--config.evaluation.inception_path={here}/w.pth"),
        "config.evaluation.inception_path",
        advice=("--config.evaluation.inception_path=",),
    ),
    Case(
        "weights that are not there",
        (*EVALUATE, "--config.evaluation.features=inception", "--config.evaluation.inception_path={here}/w.pth"),
        "{here}/w.pth",
        outside=True,
    ),
    Case(
        "weights that are none",
        (*EVALUATE, "--config.evaluation.features=inception", "--config.evaluation.inception_path={here}/w.pth"),
        "{here}/w.pth",
        code=1,
        setup=text("w.pth", "x" * 999),
        outside=True,
    ),
    Case(
        "statistics that are not there",
        (*EVALUATE, "--config.evaluation.reference={here}/statistics.npz"),
        "{here}/statistics.npz.*--mode=compute_stats",
        code=1,
    ),
    Case(
        "statistics that are none",
        (*EVALUATE, "--config.evaluation.reference={here}/statistics.npz"),
        "{here}/statistics.npz",
        code=1,
        setup=text("statistics.npz", "x"),
    ),
    Case(
        "statistics without a mean",
        (*EVALUATE, "--config.evaluation.reference={here}/statistics.npz"),
        "{here}/statistics.npz.*mu",
        code=1,
        setup=statistics(sigma=np.eye(64)),
    ),
    Case(
        "statistics of other features",
        (*EVALUATE, "--config.evaluation.reference={here}/statistics.npz"),
        "{here}/statistics.npz.*9 features.*config.evaluation.features",
        code=1,
        setup=statistics(mu=np.zeros(9), sigma=np.eye(9)),
    ),
    Case(
        "statistics without features",
        (*EVALUATE, "--config.evaluation.reference={here}/statistics.npz", "--config.evaluation.metrics=('kid',)"),
        "{here}/statistics.npz.*kid.*--mode=compute_stats",
        code=1,
        setup=statistics(mu=np.zeros(64), sigma=np.eye(64)),
    ),
    Case(
        "held-out split with a typo",
        (*EVALUATE, "--config.evaluation.heldout_split=tset"),
        "config.evaluation.heldout_split.*'tset'",
        advice=("--config.evaluation.heldout_split=test",),
    ),
    Case(
        "reference split with a typo",
        (*EVALUATE, "--config.evaluation.split=trian"),
        "config.evaluation.split.*'trian'",
        advice=("--config.evaluation.split=train",),
    ),
    Case(
        "bits without images",
        (*EVALUATE, "--config.evaluation.heldout_split=", "--config.evaluation.metrics=('bits_per_dim',)"),
        "config.evaluation.heldout_split is empty",
        advice=("--config.evaluation.heldout_split=test",),
    ),
    Case(
        "two images to compare",
        (*EVALUATE, "--config.evaluation.num_images=2"),
        "config.evaluation.num_images is 2",
        advice=("--config.evaluation.num_images=4",),
    ),
    Case(
        "odd number of terms",
        (*EVALUATE, "--config.evaluation.vlb_num_timesteps=3", "--config.evaluation.metrics=('bits_per_dim',)"),
        "config.evaluation.vlb_num_timesteps",
        advice=("--config.evaluation.vlb_num_timesteps=4",),
    ),
    Case(
        "checkpoint to evaluate that is not there",
        (*EVALUATE, "--config.evaluation.checkpoint_steps=(5,)"),
        "config.evaluation.checkpoint_steps names 5.*there are.*2",
        code=1,
        advice=("--config.evaluation.checkpoint_steps=(2,)",),
    ),
    Case(
        "no checkpoint to evaluate",
        (*EVALUATE, "--config.evaluation.checkpoint_steps=()"),
        "config.evaluation.checkpoint_steps is empty",
        advice=("--config.evaluation.checkpoint_steps=(-1,)",),
    ),
    Case(
        "sampler to evaluate",
        (*EVALUATE, "--config.evaluation.samplers=('dimm',)"),
        "config.(sampling.sampler|evaluation.samplers).*dimm",
        advice=("--config.evaluation.samplers=('ddim',)",),
    ),
    Case(
        "steps to evaluate",
        (*EVALUATE, "--config.evaluation.num_steps=(101,)"),
        "config.evaluation.num_steps.*101",
        advice=("--config.evaluation.num_steps=(4,)",),
    ),
    Case(
        "average to evaluate",
        (*EVALUATE, "--config.evaluation.params=('emma',)"),
        "config.(sampling.params|evaluation.params).*emma",
        advice=("--config.evaluation.params=('ema',)",),
    ),
    Case(
        "evaluation in a file",
        EVALUATE,
        "{here}/out.*--output",
        code=1,
        setup=text("out", ""),
        advice=("--output={here}/other",),
    ),
    Case(
        "statistics of no split",
        (*COMPUTE_STATS, "--config.evaluation.split=trian"),
        "'trian'",
        advice=("--config.evaluation.split=train",),
    ),
    Case(
        "statistics under a file",
        (*COMPUTE_STATS, "--output={here}/file/statistics.npz"),
        "{here}/file.*--output",
        code=1,
        setup=text("file", ""),
        advice=("--output={here}/statistics.npz",),
    ),
    Case(
        "statistics of unknown features",
        (*COMPUTE_STATS, "--config.evaluation.features=vgg"),
        "config.evaluation.features",
        advice=("--config.evaluation.features=pixels",),
    ),
)


# Run the cases.


def run_forked(argv: list[str], out: pathlib.Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of main.py in a fork of this process, which must not have used a device yet."""
    from ddpm_jax.cli import main  # imported before

    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(TIMEOUT_S)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(out / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            sys.argv = ["main.py", *argv]
            main.app.run(main.main, flags_parser=main.parse_flags)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, (out / "stdout").read_text(), (out / "stderr").read_text()


def run_command(argv: list[str], out: pathlib.Path) -> tuple[int, str, str]:
    """Run main.py as a separate command."""
    line = [sys.executable, "main.py", *argv]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.returncode, done.stdout, done.stderr


def prepare() -> None:
    """Import the program without initializing devices, so that it can be forked."""
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(REPOSITORY))
    importlib.import_module("ddpm_jax.cli.main")
    importlib.import_module("jax")
    importlib.import_module("sklearn.datasets")  # which has the digits: half a second
    for mode in importlib.import_module("ddpm_jax.cli.modes").MODES:
        importlib.import_module(f"ddpm_jax.cli.{mode}")


@dataclasses.dataclass
class Outcome:
    """The outcome of a case; `faults` is empty if it passed."""

    case: str
    mode: str
    code: int
    line: str
    faults: list[str]
    advice: str  # "taken", or "" if it was not tried
    seconds: float


class Campaign:
    """Runs cases against one finished run.

    Args:
      folder: for all output.
      run: a function like `run_forked`.
    """

    def __init__(self, folder: pathlib.Path, run: Callable[..., tuple[int, str, str]] = run_forked):
        self._folder, self._execute = folder, run
        self.run_folder = folder / "run"
        self._environment = {"run": str(self.run_folder)}
        code, _, err = self._call(TRAIN, folder, {**self._environment, "here": str(folder)})
        if code:
            raise RuntimeError(f"the run that the cases start from failed:\n{err}")

    def check(self, case: Case, *, advice: bool = True) -> Outcome:
        """Run a case, and again with the advice of its error."""
        began = time.monotonic()
        here = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
        names = {**self._environment, "here": str(here)}
        if case.setup:
            case.setup(here, self.run_folder)
        code, _, err = self._call(case.flags, here, names)
        lines = err.strip().splitlines()
        line = next((row for row in lines if row.startswith("error: ")), lines[-1] if lines else "")
        line = line.replace(str(here), "{here}").replace(str(self.run_folder), "{run}")
        faults = [
            words
            for words, wrong in (
                (f"exit code {code}, not {case.code}", code != case.code),
                ("a traceback", "Traceback" in err),
                ("no line that starts with error:", not any(row.startswith("error: ") for row in lines)),
                (
                    "more than one line of error",
                    sum(row.startswith("error: ") for row in lines) > 1 or err.rstrip().count("\n", err.find("error: ")) > 0,
                ),
                (f"does not match {case.match}", not re.search(case.match.replace("{here}", re.escape("{here}")), line)),
            )
            if wrong
        ]
        for field in re.findall(r"--([a-z_.]+)=", " ".join(case.advice or ())):
            if case.advice is not TRAIN and field.rpartition(".")[2] not in line:
                faults.append(f"the advice does not name {field}")
        taken = ""
        if advice and not case.outside and (case.advice or case.repair):
            taken = "taken"
            if case.repair:
                case.repair(here, self.run_folder)
            code, _, err = self._call((*case.flags, *(case.advice or ())), here, names)
            if code:
                faults.append(f"the advice fails: {err.strip().splitlines()[-1] if err.strip() else code}")
        shutil.rmtree(here, ignore_errors=True)
        return Outcome(case.name, case.mode, code, line, faults, taken, time.monotonic() - began)

    def _call(self, flags: tuple[str, ...], out: pathlib.Path, names: dict[str, str]) -> tuple[int, str, str]:
        filled = [flag.replace("{here}", names["here"]).replace("{run}", names["run"]) for flag in flags]
        last = {flag.partition("=")[0]: flag for flag in filled}  # later flags replace earlier ones
        filled = list(last.values())
        return self._execute([f"--compilation_cache={REPOSITORY / '.cache' / 'xla'}", *filled], out)


@contextlib.contextmanager
def campaign(run: Callable[..., tuple[int, str, str]] = run_forked) -> Iterator[Campaign]:
    """A campaign in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
        yield Campaign(pathlib.Path(folder), run)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases; all by default")
    parser.add_argument("--commands", action="store_true", help="run each as a separate command")
    parser.add_argument("--no-advice", action="store_true", help="do not follow the advice of the errors")
    parser.add_argument("--json", action="store_true", help="print a JSON object per case")
    options = parser.parse_args()
    unknown = set(options.names) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no case is called {', '.join(sorted(unknown))}")
    cases = [case for case in CASES if not options.names or case.name in options.names]
    if not options.commands:
        prepare()
    failed = taken = 0
    with campaign(run_command if options.commands else run_forked) as running:
        for case in cases:
            outcome = running.check(case, advice=not options.no_advice)
            failed, taken = failed + bool(outcome.faults), taken + bool(outcome.advice)
            if options.json:
                print(json.dumps(dataclasses.asdict(outcome)), flush=True)
            else:
                print(
                    f"{'FAIL' if outcome.faults else 'ok':4} {outcome.mode:14} {outcome.case}: {outcome.line[:300]}", flush=True
                )
                for fault in outcome.faults:
                    print(f"     {fault}", flush=True)
    if not options.json:
        modes = len({case.mode for case in cases})
        print(f"{len(cases)} bad inputs in {modes} modes, {failed} with a fault; the advice of {taken} was followed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
