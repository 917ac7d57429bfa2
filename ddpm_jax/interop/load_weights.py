"""`load_weights`: parameters of a run, or of an exported file, to start another run from."""

import os
import pathlib

import jax
import numpy as np

from ddpm_jax.interop import array_table, weights_file
from ddpm_jax.interop.weights_file import Weights
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import paths, run_record, workdir
from ddpm_jax.runtime.checkpoint import CheckpointManager, read_shapes
from ddpm_jax.runtime.distributed import raise_on_all_processes
from ddpm_jax.runtime.errors import CheckpointError, FileAccessError, InvalidArgumentError, error_line

FIELD, NAME = "ema_params", "ema"  # of a workdir


def load_weights(path: str | os.PathLike) -> Weights:
    """Read the weights at `path`. All processes of a job must call this together.

    Args:
      path: a workdir, whose EMA is read at the newest step, or at step N with "@N" after it; or a file of --mode=export with
        the format safetensors, or its folder.

    Raises:
      InvalidArgumentError: "@N" after a file.
      FileAccessError: there is nothing at `path`, or it cannot be read.
      InvalidDataError: the file is damaged, or of another kind.
      CheckpointError: the workdir has no checkpoint, none of this step, or a damaged one.
    """
    with raise_on_all_processes():
        place, step = _find(os.fspath(path))
        weights = None if place.is_dir() else weights_file.read(place)
    return _of_workdir(place, step) if weights is None else weights


def _find(text: str) -> tuple[pathlib.Path, int | None]:
    """The file or workdir that a path names, and the step after @."""
    place, step = paths.expand(text), None
    before, at, number = text.rpartition("@")
    if not place.exists() and at and number.isdecimal():  # else the name itself contains @
        place, step = paths.expand(before), int(number)
    if not place.exists():
        raise FileAccessError(f"{text}: there is no such file or folder")
    if place.is_dir() and (place / weights_file.NAME).exists():
        place = place / weights_file.NAME
    if place.is_dir() and not workdir.checkpoint_folder(place).is_dir() and not (place / "config.json").exists():
        raise FileAccessError(
            f"{place} contains neither a run nor {weights_file.NAME}: import weights of other programs, such as a pipeline of "
            "diffusers, into a workdir first (docs/weights.md)"
        )
    if not place.is_dir() and step is not None:
        raise InvalidArgumentError(f"{text}: {place} is a file, which holds one step: leave @{step} out")
    return place, step


def _of_workdir(folder: pathlib.Path, step: int | None) -> Weights:
    checkpoints = workdir.checkpoint_folder(folder)
    sharding = meshes.replicated(meshes.make_mesh())
    with CheckpointManager(checkpoints, max_to_keep=1, read_only=True) as manager:
        steps = manager.steps()
        if not steps or (step is not None and step not in steps):
            there = f"there are {', '.join(map(str, steps))}" if steps else "train the model first"
            raise CheckpointError(f"no checkpoint{'' if step is None else f' of step {step}'} in {checkpoints}: {there}")
        step = steps[-1] if step is None else step
        # The shapes are those of the checkpoint, not of a config: the run may be of another version of this program.
        with raise_on_all_processes():
            try:
                shapes = read_shapes(checkpoints / str(step) / FIELD)
            except Exception as error:
                raise CheckpointError(f"the checkpoint {checkpoints / str(step)} is damaged ({error_line(error)})") from error
        abstract = {path: jax.ShapeDtypeStruct(*shape, sharding=sharding) for path, shape in shapes.items()}
        restored, _ = manager.restore_part({FIELD: array_table.unflatten(abstract)}, step)
    params = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), restored[FIELD])
    with raise_on_all_processes():
        identity = workdir.read_data_identity(folder) or {}
        config = run_record.config_at(folder, step) or {}
    return Weights(
        params=params,
        step=step,
        name=NAME,
        sha256=weights_file.sha256_of(params),
        config=config,
        class_names=tuple(identity.get("class_names", ())),
        source=str(folder),
    )
