"""The functions of `import ddpm_jax`: load a run, train, evaluate, and get a shipped config."""

import json
import logging
import os
import pathlib
import signal
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import choices, compiler_config, config_file, data_config
from ddpm_jax.api.arguments import configure
from ddpm_jax.api.run import Run
from ddpm_jax.cli import common
from ddpm_jax.configs import defaults, from_workdir  # type: ignore[attr-defined]  # its folder is configs/
from ddpm_jax.runtime import run_record
from ddpm_jax.runtime import workdir as workdirs
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.samplers.watch import Stage as Stage
from ddpm_jax.samplers.watch import watch as watch
from ddpm_jax.user_messages import argument_errors, show_progress_and_log

logger = logging.getLogger(__name__)

Folder = str | os.PathLike


def get_config(name: str) -> ConfigDict:
    """The config called `name`, to be changed and trained.

        config = ddpm_jax.get_config("digits")
        config.train.num_steps = 5000

    Args:
      name: a file of configs/ without its ending, such as digits, or the path of a config file of your own.

    Returns:
      A ConfigDict; a field that does not exist cannot be set.

    Raises:
      ValueError: there is no such config, or the file is not a config.
    """
    with argument_errors({}):
        return config_file.ConfigFileParser(defaults.get_config()).parse(_path("name", name, "the name or file of a config"))


def load(workdir: Folder, *, step: int | None = None, params: str = "ema") -> Run:
    """Load a trained model.

        run = ddpm_jax.load("runs/digits")
        images = run.sample(16).images

    If JAX has not initialized its devices yet, this sets the number of CPU devices for the network, as the command line does.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; None for the latest.
      params: ema, raw, decay_0.999 (one of config.ema.extra_decays) or power_0.07 (from config.ema.power_sigma_rel).

    Raises:
      ValueError: `params` or `step` is invalid; the message names it.
      OSError: there is no run in `workdir`, or it cannot be read.
      RuntimeError: there is no checkpoint, or the run is of another version.
    """
    if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__") or step < 0):
        raise InvalidArgumentError(f"step is {step!r}: it must be an integer of 0 or more, or None for the latest checkpoint")
    with argument_errors({"sampling.params": "params", "sampling.checkpoint_step": "step"}):
        folder = _path("workdir", workdir)
        config = from_workdir.get_config(folder)
        config.sampling.update(params=str(params), checkpoint_step=-1 if step is None else int(step))
        identity = workdirs.read_data_identity(folder)
        data_config.complete(config, identity)
        compiler_config.configure_cpu(config)
        run_folder, mesh = common.open_run(config, folder, "")
        _check_step(run_folder, step)
        restored, found = common.restore_params(config, run_folder, mesh)
    config.lock()
    return Run(config, run_folder, restored, found, mesh, identity)


def train(config: ConfigDict | str, workdir: Folder, *, profile: str = "", progress: bool = False) -> dict[str, Any]:
    """Train a model, or resume the run in the workdir; the same as the command line without --mode.

        config = ddpm_jax.get_config("digits")
        ddpm_jax.train(config, "runs/digits", progress=True)

    Args:
      config: from `get_config`, or a name for it; not changed.
      workdir: folder of the run; created if missing.
      profile: "FIRST:LAST", steps to profile into the folder profile of the workdir; "" for none.
      progress: show progress and log lines on stderr.

    Returns:
      "workdir" (str, absolute), "step" (steps done and saved), "complete" (whether these are all; SIGTERM saves first) and
      "metrics": the last line of metrics.jsonl, such as {"step": 2500, "train/loss": 0.05, ...}.

    Raises:
      ValueError: the config or `profile` is invalid.
      OSError: a file cannot be read or written.
      RuntimeError: the workdir holds another run or is in use, or the loss is not finite.
      KeyboardInterrupt: Ctrl-C, or Interrupt in Jupyter; the current step is saved first, so that the same call resumes.
    """
    from ddpm_jax.cli import train as mode  # imported lazily: it takes a second

    case, folder = _copy(config), _path("workdir", workdir)
    with argument_errors({}), show_progress_and_log(progress, {}):
        for line in choices.unused_options(case, defaults.get_config()):
            logger.info(line)
        compiler_config.configure_cpu(case)
        if run_record.latest_saved_step(workdirs.absolute(folder)) is not None:
            data_config.complete(case, workdirs.read_data_identity(folder))
        done = mode.train(case, folder, profile=profile)
    if done.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt(f"step {done.step:,} is saved")
    metrics = _last_line(done.run_folder / "metrics.jsonl")
    return {"workdir": str(done.run_folder), "step": done.step, "complete": done.complete, "metrics": metrics}


def evaluate(
    run: Run | ConfigDict | str,
    workdir: Folder | None = None,
    *,
    output: Folder = "",
    progress: bool = False,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Measure a trained model, as --mode=evaluate, which also writes the results to a folder.

        rows = ddpm_jax.evaluate(run, metrics=("frechet",), features="pixels", num_images=1000)
        rows[0]["frechet"]

    Args:
      run: from `load`: this checkpoint and these parameters are evaluated. Or a config, or a name for `get_config`, and a
        workdir: the checkpoints and parameters of config.evaluation.
      workdir: folder of the run if `run` is a config.
      output: folder of the results; "": eval/ in the workdir.
      progress: show progress and log lines on stderr.
      arguments: fields of config.evaluation, such as metrics, features, num_images, samplers, num_steps, heldout_split and
        batch_size; other fields of config.sampling, such as seed and guidance_scale; options of the sampler.

    Returns:
      A dictionary for each row of the table: images, count, and the metrics by name ("frechet", "precision", "bits/dim",
      ...), with their provenance: step, weights, reference, features, config, notes.

    Raises:
      ValueError: an argument is invalid; the message names it.
      OSError: a file cannot be read or written.
      RuntimeError: there is no checkpoint, or features or a data set are missing.
    """
    from ddpm_jax.cli import evaluate as mode  # imported lazily: it takes a second

    if isinstance(run, Run):
        if workdir is not None:
            raise InvalidArgumentError("workdir is given, but run has its own: leave it out")
        config, folder = run._config, os.fspath(run.workdir)
    elif workdir is None:
        raise InvalidArgumentError("workdir is missing: give the folder of the run, or a run from ddpm_jax.load")
    else:
        config, folder = _copy(run), _path("workdir", workdir)
    target = _path("output", output, "a folder, or '' for eval/ in the workdir")
    case, names = configure(config, arguments, ("evaluation", "sampling"))
    if isinstance(run, Run):
        case.evaluation.update(checkpoint_steps=(run.step,), params=(case.sampling.params,))
    with argument_errors(names), show_progress_and_log(progress, names):
        compiler_config.configure_cpu(case)
        data_config.complete(case, workdirs.read_data_identity(folder))
        measurement = mode.evaluate(case, folder, target)
    return [result.row | result.details for result in measurement.results()]


def _path(argument: str, value: Any, wanted: str = "the folder of the run") -> str:
    """An argument that is a path, as a string; raises InvalidArgumentError for anything else, such as None."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidArgumentError(f"{argument} is {value!r}: give {wanted}")
    return os.fspath(value)


def _check_step(run_folder: pathlib.Path, step: int | None) -> None:
    """Raise InvalidArgumentError if there are checkpoints, but none of this step."""
    with CheckpointManager(workdirs.checkpoint_folder(run_folder), max_to_keep=1, read_only=True) as checkpoints:
        steps = checkpoints.steps()
    if step is not None and steps and step not in steps:
        raise InvalidArgumentError(f"step is {step}: the checkpoints in {run_folder} are of step {', '.join(map(str, steps))}")


def _copy(config: ConfigDict | str) -> ConfigDict:
    """A locked copy of a config, or the shipped config of this name."""
    if isinstance(config, str):
        return get_config(config)
    if not isinstance(config, ConfigDict):
        raise InvalidArgumentError(f"config is a {type(config).__name__}: give a ConfigDict, from ddpm_jax.get_config")
    return ConfigDict(config).copy_and_resolve_references().lock()


def _last_line(file: pathlib.Path) -> dict[str, Any]:
    """The last line of a JSON Lines file; {} without one."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return json.loads(lines[-1]) if lines else {}
