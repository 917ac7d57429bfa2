"""The weights that config.sampling.weights names: of a state in training, of a checkpoint, or made of several.

`ema` and `raw` are in every checkpoint; the averages of config.ema.decays and config.ema.power_stds are, each under its
own name. Any other length of power-function average (`power_0.07`) is a sum of those in the checkpoints that the run
kept: EDM2 (2312.02696), section 3.2, by `training/post_hoc.py`.
"""

import hashlib
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import processes, randomness, workdir
from ddpm_jax.runtime.checkpoint import Checkpoints
from ddpm_jax.runtime.errors import PersonError, UsageError
from ddpm_jax.training import averages, post_hoc
from ddpm_jax.training.state import TrainState

FAR = 0.02  # of profiles: from here on, an average made afterwards is not quite of the length that it is called


def check_kept(config: ConfigDict) -> None:
    """Raises a UsageError where training is to draw with weights that can only be made after it."""
    if build.weights_field(config) is None:
        kept = ", ".join((*build.WEIGHTS, *build.build_averaging(config).names))
        raise UsageError(f"config.sampling.weights={config.sampling.weights} is made after training: train with one of {kept}")


def of_state(config: ConfigDict, state: TrainState) -> Any:
    """The weights that config.sampling draws with, of those that training keeps."""
    return state.fields()[build.weights_field(config)]


def restore(config: ConfigDict, run_folder: pathlib.Path, mesh: jax.sharding.Mesh) -> tuple[Any, int]:
    """The parameters that config.sampling names, replicated over the mesh, and the step they are from.

    Raises:
      PersonError: no checkpoint, or none that the average can be made of.
    """
    field = build.weights_field(config)
    state = jax.eval_shape(build.build_init(config), randomness.purpose_key(config.seed, "init"))
    sharding = meshes.replicated(mesh)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state.params)
    step = config.sampling.checkpoint_step
    with Checkpoints(workdir.checkpoint_folder(run_folder), keep_latest=1, read_only=True) as checkpoints:
        if field is None:
            return _make(config, checkpoints, abstract, None if step == -1 else step)
        restored, step = checkpoints.restore_part({field: abstract}, None if step == -1 else step)
    return restored[field], step


def _make(config: ConfigDict, checkpoints: Checkpoints, abstract: Any, target: int | None) -> tuple[Any, int]:
    """The power-function average of another length than those kept, at step `target`."""
    steps = [step for step in checkpoints.steps() if step and (target is None or step <= target)]
    if not steps or (target is not None and target not in steps):
        wanted = "" if target is None else f" of step {target}"
        raise PersonError(f"no checkpoint{wanted} in {checkpoints.directory} that config.sampling.weights could be made of")
    snapshots = list(itertools.product(steps, config.ema.power_stds))
    name = config.sampling.weights
    recipe = post_hoc.recipe(
        [step for step, _ in snapshots],
        [std for _, std in snapshots],
        target_step=steps[-1],
        target_std=averages.std_of(name),
    )
    if processes.is_writer():
        line = f"{name} at step {steps[-1]:,} out of {len(snapshots)} averages of {len(steps)} checkpoints"
        line += f", {100 * recipe.profile_error:.2g}% from its profile"
        if recipe.profile_error > FAR:
            line += ": too few lengths or checkpoints for this one; "
            line += "keep more (config.train.keep_every and checkpoint_every) or choose another"
        print(line, file=sys.stderr, flush=True)

    def trees() -> Iterator[Any]:
        fields = {averages.power_name(std): abstract for std in config.ema.power_stds}
        for step in steps:  # those of one step in memory, and no more
            restored, _ = checkpoints.restore_part(fields, step)
            for name in fields:
                yield jax.tree.map(np.asarray, restored[name])

    params = post_hoc.combine(recipe.weights, trees())
    return jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), params, abstract), steps[-1]


def check_available(config: ConfigDict, run_folder: pathlib.Path) -> None:
    """Look for every checkpoint that config.evaluation names, and the weights in it, before anything is computed.

    Raises:
      PersonError: one is not there.
    """
    with Checkpoints(workdir.checkpoint_folder(run_folder), keep_latest=1, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise PersonError(f"no checkpoint in {checkpoints.directory}: train the model first, without --mode")
        listed = ", ".join(map(str, steps))
        for step in config.evaluation.checkpoint_steps:
            if step != -1 and step not in steps:
                raise PersonError(
                    f"config.evaluation.checkpoint_steps names {step}, but there is no such checkpoint in "
                    f"{checkpoints.directory}; there are {listed}"
                )
            folder = checkpoints.directory / str(steps[-1] if step == -1 else step)
            for name in config.evaluation.averages or (config.sampling.weights,):
                case = config.copy_and_resolve_references()
                case.sampling.weights = name
                field = build.weights_field(case)
                if field is not None and not (folder / field).is_dir():
                    raise PersonError(f"the checkpoint {folder} holds no weights called {name!r}")


def check_names(config: ConfigDict) -> None:
    """Raises a UsageError where a name of config.evaluation.averages is of no weights."""
    for name in config.evaluation.averages:
        case = config.copy_and_resolve_references()
        case.sampling.weights = name
        try:
            build.weights_field(case)
        except UsageError as error:
            raise UsageError(str(error).replace("config.sampling.weights is", "config.evaluation.averages holds")) from error


def digest(params: Any) -> str:
    """A fingerprint of the parameters: two runs of one config on other machines end with others at the same step."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf.addressable_data(0)))
    return found.hexdigest()
