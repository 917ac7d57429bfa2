"""The weights that config.sampling.params names: of a state in training, of a checkpoint, or made of several.

`ema` and `raw` are in every checkpoint; the averages of config.ema.extra_decays and .power_sigma_rel are, each under its
own name. Any other length of power-function average (`power_0.07`) is a sum of those in the checkpoints that the run
kept: EDM2 (2312.02696), section 3.2, by `training/posthoc_ema.py`.
"""

import hashlib
import itertools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import rng, workdir
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.training import ema_tracker, posthoc_ema
from ddpm_jax.training.state import TrainState
from ddpm_jax.user_messages import UsageError, UserError

logger = logging.getLogger(__name__)

FAR = 0.02  # of profiles: from here on, an average made afterwards is not quite of the length that it is called


def check_kept(config: ConfigDict) -> None:
    """Raises a UsageError where training is to draw with weights that can only be made after it."""
    if build.params_field(config) is None:
        kept = ", ".join((*build.STATE_FIELDS, *build.build_ema_tracker(config).names))
        raise UsageError(f"config.sampling.params={config.sampling.params} is made after training: train with one of {kept}")


def from_state(config: ConfigDict, state: TrainState) -> Any:
    """The weights that config.sampling draws with, of those that training keeps."""
    return state.fields()[build.params_field(config)]


def restore(config: ConfigDict, run_folder: pathlib.Path, mesh: jax.sharding.Mesh) -> tuple[Any, int]:
    """The parameters that config.sampling names, replicated over the mesh, and the step they are from.

    Raises:
      UserError: no checkpoint, or none that the average can be made of.
    """
    field = build.params_field(config)
    state = jax.eval_shape(build.build_init(config), rng.purpose_key(config.seed, "init"))
    sharding = meshes.replicated(mesh)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state.params)
    step = config.sampling.checkpoint_step
    with CheckpointManager(workdir.checkpoint_folder(run_folder), max_to_keep=1, read_only=True) as checkpoints:
        if field is None:
            return _make(config, checkpoints, abstract, None if step == -1 else step)
        restored, step = checkpoints.restore_part({field: abstract}, None if step == -1 else step)
    return restored[field], step


def _make(config: ConfigDict, checkpoints: CheckpointManager, abstract: Any, target: int | None) -> tuple[Any, int]:
    """The power-function average of another length than those kept, at step `target`."""
    steps = [step for step in checkpoints.steps() if step and (target is None or step <= target)]
    if not steps or (target is not None and target not in steps):
        wanted = "" if target is None else f" of step {target}"
        raise UserError(f"no checkpoint{wanted} in {checkpoints.directory} that config.sampling.params could be made of")
    snapshots = list(itertools.product(steps, config.ema.power_sigma_rel))
    name = config.sampling.params
    recipe = posthoc_ema.solve_posthoc_weights(
        [step for step, _ in snapshots],
        [std for _, std in snapshots],
        target_step=steps[-1],
        target_std=ema_tracker.parse_power_std(name),
    )
    line = f"{name} at step {steps[-1]:,} out of {len(snapshots)} averages of {len(steps)} checkpoints"
    line += f", {100 * recipe.profile_error:.2g}% from its profile"
    if recipe.profile_error > FAR:
        line += ": too few lengths or checkpoints for this one; "
        line += "keep more (config.train.keep_period and checkpoint_every) or choose another"
    logger.info(line)

    def trees() -> Iterator[Any]:
        fields = {ema_tracker.power_name(std): abstract for std in config.ema.power_sigma_rel}
        for step in steps:  # those of one step in memory, and no more
            restored, _ = checkpoints.restore_part(fields, step)
            for name in fields:
                yield jax.tree.map(np.asarray, restored[name])

    params = posthoc_ema.combine_snapshots(recipe.weights, trees())
    return jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), params, abstract), steps[-1]


def check_available(config: ConfigDict, run_folder: pathlib.Path) -> None:
    """Look for every checkpoint that config.evaluation names, and the weights in it, before anything is computed.

    Raises:
      UserError: one is not there.
    """
    with CheckpointManager(workdir.checkpoint_folder(run_folder), max_to_keep=1, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"no checkpoint in {checkpoints.directory}: train the model first, without --mode")
        listed = ", ".join(map(str, steps))
        for step in config.evaluation.checkpoint_steps:
            if step != -1 and step not in steps:
                raise UserError(
                    f"config.evaluation.checkpoint_steps names {step}, but there is no such checkpoint in "
                    f"{checkpoints.directory}; there are {listed}"
                )
            folder = checkpoints.directory / str(steps[-1] if step == -1 else step)
            for name in config.evaluation.params or (config.sampling.params,):
                case = config.copy_and_resolve_references()
                case.sampling.params = name
                field = build.params_field(case)
                if field is not None and not (folder / field).is_dir():
                    raise UserError(f"the checkpoint {folder} holds no weights called {name!r}")


def check_names(config: ConfigDict) -> None:
    """Raises a UsageError where a name of config.evaluation.params is of no weights."""
    for name in config.evaluation.params:
        case = config.copy_and_resolve_references()
        case.sampling.params = name
        try:
            build.params_field(case)
        except UsageError as error:
            raise UsageError(str(error).replace("config.sampling.params is", "config.evaluation.params holds")) from error


def params_sha256(params: Any) -> str:
    """A fingerprint of the parameters: two runs of one config on other machines end with others at the same step."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf.addressable_data(0)))
    return found.hexdigest()
