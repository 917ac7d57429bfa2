"""The parameters that a checkpoint holds under a name, or that are made of several checkpoints.

`ema` and `raw` are in every checkpoint; the averages of config.ema.extra_decays and .power_sigma_rel are, each under its
own name. Any other length of power-function average (`power_0.07`) is a sum of those in the checkpoints that the run
kept: EDM2 (2312.02696), section 3.2, by `training/posthoc_ema.py`.
"""

import hashlib
import itertools
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import CheckpointError
from ddpm_jax.training import ema_tracker, fsdp, posthoc_ema

logger = logging.getLogger(__name__)

MAX_PROFILE_ERROR = 0.02  # of an average that is computed after training; above it there is a log line


def restore(
    folder: str | os.PathLike,
    abstract: Any,
    name: str,
    *,
    field: str | None,
    power_sigma_rel: Sequence[float] = (),
    step: int | None = None,
) -> tuple[Any, int]:
    """The parameters called `name`, such as "ema", in the checkpoints of `folder`, and the step they are from.

    Args:
      abstract: pytree of jax.ShapeDtypeStruct, with the shardings that the parameters are to have.
      field: of the checkpoint that holds them; None where they must be made of others.
      power_sigma_rel: lengths of the power-function averages that the checkpoints hold.
      step: of the checkpoint; None for the latest.

    Raises:
      CheckpointError: no checkpoint, or none that the average can be made of.
    """
    with CheckpointManager(folder, max_to_keep=1, read_only=True) as checkpoints:
        if field is None:
            return _make(checkpoints, abstract, name, power_sigma_rel, step)
        restored, step = checkpoints.restore_part({field: abstract}, step)
    return restored[field], step


def _make(
    checkpoints: CheckpointManager, abstract: Any, name: str, power_sigma_rel: Sequence[float], target: int | None
) -> tuple[Any, int]:
    """The power-function average of another length than those kept, at step `target`."""
    steps = [step for step in checkpoints.steps() if step and (target is None or step <= target)]
    if not steps or (target is not None and target not in steps):
        wanted = "" if target is None else f" of step {target}"
        raise CheckpointError(f"no checkpoint{wanted} in {checkpoints.directory} that config.sampling.params could be made of")
    snapshots = list(itertools.product(steps, power_sigma_rel))
    recipe = posthoc_ema.solve_posthoc_weights(
        [step for step, _ in snapshots],
        [std for _, std in snapshots],
        target_step=steps[-1],
        target_std=ema_tracker.parse_power_std(name),
    )
    line = f"{name} at step {steps[-1]:,} out of {len(snapshots)} averages of {len(steps)} checkpoints"
    line += f", {100 * recipe.profile_error:.2g}% from its profile"
    if recipe.profile_error > MAX_PROFILE_ERROR:
        line += ": too few lengths or checkpoints for this one; "
        line += "keep more (config.train.keep_period and checkpoint_every) or choose another"
    logger.info(line)

    def trees() -> Iterator[Any]:
        fields = {ema_tracker.power_name(std): abstract for std in power_sigma_rel}
        for step in steps:  # those of one step in memory, and no more
            restored, _ = checkpoints.restore_part(fields, step)
            for name in fields:
                yield jax.tree.map(np.asarray, restored[name])

    params = posthoc_ema.combine_snapshots(recipe.weights, trees())
    return jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), params, abstract), steps[-1]


def check_available(folder: str | os.PathLike, steps: Collection[int], fields: dict[str, str | None]) -> None:
    """Look for checkpoints, and the parameters in them, before anything is computed.

    Args:
      folder: of the checkpoints.
      steps: of each checkpoint; -1 for the latest.
      fields: name of parameters -> field of the checkpoint that holds them; None where they are made of others.

    Raises:
      CheckpointError: one is not there.
    """
    with CheckpointManager(folder, max_to_keep=1, read_only=True) as checkpoints:
        there = checkpoints.steps()
        if not there:
            raise CheckpointError(f"no checkpoint in {checkpoints.directory}: train the model first, without --mode")
        for step in steps:
            if step != -1 and step not in there:
                raise CheckpointError(
                    f"config.evaluation.checkpoint_steps names {step}, but there is no such checkpoint in "
                    f"{checkpoints.directory}; there are {', '.join(map(str, there))}"
                )
            checkpoint = checkpoints.directory / str(there[-1] if step == -1 else step)
            for name, field in fields.items():
                if field is not None and not (checkpoint / field).is_dir():
                    raise CheckpointError(f"the checkpoint {checkpoint} holds no weights called {name!r}")


def params_sha256(params: Any) -> str:
    """A fingerprint of the parameters: two runs of one config on other machines end with others at the same step.

    It does not depend on their shardings: sharded ones are gathered one by one on the host. Every process must call it.
    """
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(fsdp.to_host(leaf)))
    return found.hexdigest()
