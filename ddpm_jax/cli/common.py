"""Shared by the modes: opening a run, restoring parameters, output folders, progress and writing."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import build, choices, config_validation, data_config, network_check, sampling_config
from ddpm_jax.data import array_folder, decode
from ddpm_jax.data.source import center_crop_and_resize
from ddpm_jax.diffusion import pixels
from ddpm_jax.evaluation import manifest
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import distributed, npz, paths, rng, run_record, shared_workdir, versions, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import CheckpointError, CheckpointMismatch
from ddpm_jax.runtime.trackers import jsonl
from ddpm_jax.samplers.batched import BatchedSampler
from ddpm_jax.training import best_step, load_params
from ddpm_jax.user_messages import UsageError, UserError


def open_run(
    config: ConfigDict,
    folder: str,
    output: str,
    *,
    check: Callable[[ConfigDict], None] = lambda config: None,
    exists: bool = True,
) -> tuple[pathlib.Path, jax.sharding.Mesh]:
    """Validate the config and open the workdir of an existing run: its absolute path, and a mesh of all devices.

    Args:
      check: validates the fields that only this mode reads.
      exists: whether the workdir must contain a run.

    Raises:
      UsageError: a field of the config is invalid.
      UserError, ConflictError: the workdir has no run, or one with a different config.
      FileAccessError: the output folder cannot be written.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        network_check.check_network(config)
        check(config)
        if exists:
            workdir.read_config(folder)
        if output and distributed.is_primary_process():
            paths.make_output_folder(paths.output_path(output, ""))
    return shared_workdir.prepare_workdir(folder, config.to_dict(), write=False), meshes.make_mesh()


def restore_params(config: ConfigDict, run_folder: pathlib.Path, mesh: jax.sharding.Mesh) -> tuple[Any, int]:
    """Restore the parameters of config.sampling.params, replicated over the mesh, and their step.

    Raises:
      ExpectedError: there is no checkpoint, or the EMA cannot be computed from the checkpoints.
    """
    state = jax.eval_shape(build.build_init(config), rng.purpose_key(config.seed, "init"))
    sharding = meshes.replicated(mesh)
    (step,) = checkpoint_steps(config, run_folder, [config.sampling.checkpoint_step])
    with name_changed_files(config, run_folder, None if step == -1 else step):
        return load_params.restore(
            workdir.checkpoint_folder(run_folder),
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state.params),
            config.sampling.params,
            field=build.params_field(config),
            power_sigma_rel=config.ema.power_sigma_rel,
            step=None if step == -1 else step,
        )


@contextlib.contextmanager
def name_changed_files(config: ConfigDict, run_folder: pathlib.Path, step: int | None) -> Iterator[None]:
    """Context manager that names the files of the user's own parts that have changed, if a checkpoint does not match.

    Args:
      config: names the parts.
      run_folder: the workdir.
      step: of the checkpoint; None for the latest.

    Raises:
      CheckpointMismatch: raised inside.
    """
    try:
        yield
    except CheckpointMismatch as error:
        step = run_record.latest_saved_step(run_folder) if step is None else step
        changed = run_record.version_changes(run_folder, choices.custom_modules(config), step or 0)
        if not changed:
            raise
        files, have = " and ".join(changed), "has" if len(changed) == 1 else "have"
        found = f"{error.differences}; {files} {have} changed since it was trained"
        raise CheckpointMismatch(f"{found}. Restore {files}, or choose another `workdir`", found) from error


def checkpoint_steps(config: ConfigDict, run_folder: pathlib.Path, named: Sequence[int | str]) -> list[int]:
    """The steps that config.sampling.checkpoint_step or config.evaluation.checkpoint_steps name, without repetitions.

    Args:
      config: config.train.keep_best is the score of "best".
      run_folder: the workdir.
      named: steps, -1 for the latest (unchanged), "best" or "all".

    Raises:
      CheckpointError: no checkpoint has that score.
    """
    found: list[int] = []
    for step in named:
        if step not in ("best", "all"):
            found.append(int(step))
            continue
        with CheckpointManager(workdir.checkpoint_folder(run_folder), max_to_keep=1, read_only=True) as checkpoints:
            steps = checkpoints.steps()
        if step == "all":
            found += steps or [-1]  # the latest: the error states that there is none
            continue
        tag = best_step.AUTO_TAG if config.train.keep_best == best_step.AUTO else config.train.keep_best
        best = best_step.best_of(jsonl.read_metrics(run_folder), tag, steps).step if tag else None
        if best is None:
            why = f"metrics.jsonl has no {tag} of a checkpoint" if tag else "config.train.keep_best is empty"
            raise CheckpointError(f"there is no best checkpoint: {why}; train with config.train.eval_every, or give a step")
        found.append(best)
    return list(dict.fromkeys(found))


def provenance() -> dict[str, Any]:
    """Versions of the program, platform and date, for a report of measurements."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return _program() | {"platform": jax.default_backend(), "date": date}


@functools.cache
def _program() -> dict[str, Any]:
    return {"ddpm_jax": ddpm_jax.__version__, "commit": versions.program_commit(), "jax": jax.__version__}


def class_names_of(run_folder: pathlib.Path) -> tuple[str, ...]:
    """Names of label 0, 1, ... in the training set of the run; () if unknown."""
    return tuple((workdir.read_data_identity(run_folder) or {}).get("class_names", ()))


def generate_from(
    sampler: BatchedSampler, params: Any, key: jax.Array, given: Any, labels: np.ndarray | None, *, unit: str = "images"
) -> np.ndarray:
    """Run a sampler that starts from `given`, a pytree of arrays [N, ...], with a progress line: [N, ...]."""
    count = len(jax.tree.leaves(given)[0])
    with distributed.show_progress(count, unit) as report:
        return sampler.generate_all(params, key, num_images=count, cond=labels, given=given, report=report).images


# Modes that start from images: inpaint, image_to_image, interpolate.


@dataclasses.dataclass(frozen=True, eq=False)
class EditContext:
    """The input images, [N, H, W, C] in the data's type, their labels, int32 [N] or None, and the restored parameters."""

    config: ConfigDict
    run_folder: pathlib.Path
    mesh: jax.sharding.Mesh
    originals: np.ndarray
    labels: np.ndarray | None
    params: Any
    step: int

    @property
    def pixel_format(self) -> pixels.PixelFormat:
        """Type and range of the images, and the channels that pictures show."""
        return build.pixel_format(self.config)

    @property
    def key(self) -> jax.Array:
        """The root key of config.sampling.seed."""
        return rng.purpose_key(self.config.sampling.seed, "sample")

    def claim_folder(self, output: str, *, mode: str, name: str, more: Any = None) -> pathlib.Path | None:
        """Create or reuse the output folder, before generation starts. Returns it on process 0, None on the others.

        Args:
          output: folder; "": a folder in samples/ of the workdir, whose name begins with `mode` and contains `name`.
          more: arrays other than the images and config.edit that determine the results, such as a mask.

        Raises:
          FileAccessError: the folder cannot be written.
          ConflictError: the folder holds other results.
        """
        with distributed.raise_on_all_processes():
            if not distributed.is_primary_process():
                return None
            config, edit, digest = self.config, self.config.edit, hashlib.sha256()
            for array in jax.tree.leaves((self.originals, self.labels, more)):
                digest.update(repr((array.shape, str(array.dtype))).encode() + np.ascontiguousarray(array).tobytes())
            inputs = digest.hexdigest()
            files = f"files_{inputs[:8]}" if edit.images else f"{edit.split or config.data.split}_{edit.start_index}"
            files = re.sub(r"[^\w.-]+", "_", files).strip("_")
            stem = f"{mode}-{sampling_config.run_name(config, self.step)}{name}-{files}-{len(self.originals)}_images"
            fields = {field: value for field, value in edit.to_dict().items() if field not in ("images", "mask")}
            identity = sampling_config.identity_of(config, mode, self.step, load_params.params_sha256(self.params))
            identity |= {"edit": fields, "inputs_sha256": inputs}
            default = workdir.sample_folder(self.run_folder) / stem
            return manifest.claim(identity, names=("images.npz", f"{mode}.png"), default=default, output=output)

    def write_outputs(
        self,
        target: pathlib.Path | None,
        *,
        mode: str,
        description: str,
        rows: Sequence[np.ndarray],
        arrays: dict[str, np.ndarray],
    ) -> None:
        """Write images.npz and `mode`.png, for display, a grid whose columns are `rows`, [N, H, W, C] each; print a summary."""
        sampling = self.config.sampling
        with distributed.raise_on_all_processes():
            if distributed.is_primary_process():
                with paths.write_errors(target):
                    npz.write(target / "images.npz", arrays)
                    image_grid.save_png(
                        target / f"{mode}.png", image_grid.strip(self.pixel_format.shown(np.stack(rows, axis=1)))
                    )
                print(f"step {self.step:,}, {sampling.params} weights, {description}, seed {sampling.seed}")
                print(f"wrote images.npz and {mode}.png to {target}")


def open_edit(
    config: ConfigDict, folder: str, output: str, *, check: Callable[[ConfigDict], None] = lambda config: None
) -> EditContext:
    """Validate the config, also by `check`, read the input images and restore the parameters.

    Raises:
      ExpectedError: as `open_run` and `restore_params`, or an image cannot be read.
    """

    def check_all(config: ConfigDict) -> None:
        check_edit(config)
        check(config)

    run_folder, mesh = open_run(config, folder, output, check=check_all)
    with distributed.raise_on_all_processes():
        originals, own_labels = _read_originals(config)
        labels = data_config.edit_labels(config, len(originals), own_labels)
    params, step = restore_params(config, run_folder, mesh)
    return EditContext(config, run_folder, mesh, originals, labels, params, step)


def check_edit(config: ConfigDict) -> None:
    """Raise a UsageError that names the invalid field of config.edit."""
    if config.data.condition:
        raise UsageError(
            f"config.data.condition is {config.data.condition!r}: only sample, visualize and evaluate support models with "
            "condition images; inpaint, image_to_image, interpolate and invert do not"
        )
    edit = config.edit
    for field in ("num_images", "samples_per_image", "resampling", "inversion_iters"):
        if edit[field] < 1:
            raise UsageError(f"config.edit.{field} is {edit[field]}: it must be above 0")
    for field in ("start_index", "jump_length"):
        if edit[field] < 0:
            raise UsageError(f"config.edit.{field} is {edit[field]}: it must be 0 or more")
    if edit.num_frames < 2:
        raise UsageError(f"config.edit.num_frames is {edit.num_frames}: it includes both ends, so it must be 2 or more")
    if not 0 < edit.strength <= 1:
        raise UsageError(f"config.edit.strength is {edit.strength:g}: it must be above 0 and at most 1")


def read_image(
    path: str, *, size: Sequence[int], channels: int, background: str = "black", levels: Sequence[float] = ()
) -> np.ndarray:
    """Read an image file, center-cropped and resized: uint8 [H, W, channels], with (H, W) = `size`.

    Raises:
      UserError: there is no such file, or it is not a valid image.
    """
    path = str(paths.expand(path))
    try:
        image = decode.read_image(path, decode.parse_background(background), tuple(levels))
    except decode.ImageDecodeError as error:
        raise UserError(f"cannot read the image {path}: {error}") from error
    return center_crop_and_resize(image, tuple(size), channels)


def read_original(config: ConfigDict, path: str) -> np.ndarray:
    """The image in a file of config.edit.images: [H, W, C] in the data's type.

    A file that is an array of the data's type and shape has such values. Other files are pictures: center-cropped, resized,
    and, if the data is not uint8, their levels 0..255 become the range of the data.

    Raises:
      UserError: there is no such file, or it is neither.
    """
    shape, pixel_format, data = build.image_shape(config), build.pixel_format(config), config.data
    is_numpy = path.endswith((".npy", ".npz"))
    if is_numpy or not pixel_format.is_picture(shape[2]):
        try:
            return array_folder.read_array(str(paths.expand(path)), shape, data.dtype)
        except array_folder.ArrayFileError as error:
            if is_numpy or shape[2] not in (1, 3):
                raise UserError(f"cannot read the image {path}: {error}") from error
    is_uint8 = data.dtype == "uint8"
    levels = data.value_range if is_uint8 else ()
    picture = read_image(path, size=shape[:2], channels=shape[2], background=data.background, levels=levels)
    return picture if is_uint8 else np.asarray(pixel_format.to_data(pixels.from_uint8(picture)))


def repeat_rows(array: np.ndarray | None, times: int) -> np.ndarray | None:
    """Repeat each row `times` times: a, a, b, b, ..."""
    return None if array is None else np.repeat(array, times, axis=0)


def _read_originals(config: ConfigDict) -> tuple[np.ndarray, np.ndarray | None]:
    """The images of config.edit, [N, H, W, C] in the data's type, and their labels int32 [N] if the data set has any."""
    edit, data = config.edit, config.data
    if edit.images:
        return np.stack([read_original(config, path) for path in edit.images]), None
    other = config.copy_and_resolve_references()
    other.data.split = edit.split or data.split
    source = data_config.load_source(other)
    last = edit.start_index + edit.num_images
    if last > len(source):
        raise UsageError(
            f"config.edit.start_index={edit.start_index} and config.edit.num_images={edit.num_images} ask for images up to "
            f"{last - 1}, but the last one of {data.name} {source.split} is {len(source) - 1}"
        )
    batch = source.batch(np.arange(edit.start_index, last))
    return batch["image"], batch.get("label")
