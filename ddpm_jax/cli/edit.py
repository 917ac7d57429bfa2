"""What the modes that begin with images share: whose images, of which class, drawn how, written where.

The modes are inpaint, image_to_image and interpolate. Each writes one picture, a row for each image, and images.npz.
"""

import dataclasses
import hashlib
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, config_validation
from ddpm_jax.cli import load_params, sample
from ddpm_jax.data import decode
from ddpm_jax.data.source import center_crop_and_resize
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import distributed, manifest, npz, paths, rng, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.metric_logger import Progress
from ddpm_jax.samplers.batched import BatchedSampler
from ddpm_jax.user_messages import UsageError, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class EditContext:
    """Images to begin with, and the network.

    Attributes:
      config: resolved.
      run_folder: of the run that trained the model.
      mesh: whose devices draw.
      originals: uint8 [N, H, W, C].
      labels: int32 [N] of a class-conditional model, else None.
      params: the parameters that config.sampling names.
      step: the step that they are from.
    """

    config: ConfigDict
    run_folder: pathlib.Path
    mesh: jax.sharding.Mesh
    originals: np.ndarray
    labels: np.ndarray | None
    params: Any
    step: int


def setup(config: ConfigDict, folder: str, output: str, defaults: ConfigDict | None) -> EditContext:
    """Check, read the images and restore the weights.

    Raises:
      UserError, UsageError: no run or checkpoint, another model, wrong fields, an image that cannot be read, an output
        folder that cannot be written.
    """
    with distributed.raise_on_all_processes():
        check_edit(config)
        workdir.read_config(folder)
        sample.check_output(output)
    run_folder = distributed.prepare_workdir(folder, config.to_dict(), write=False, defaults=build.as_dict(defaults))
    mesh = meshes.make_mesh()
    with distributed.raise_on_all_processes():
        originals, own_labels = read_originals(config)
        labels = choose_labels(config, len(originals), own_labels)
    params, step = load_params.restore(config, run_folder, mesh)
    return EditContext(config, run_folder, mesh, originals, labels, params, step)


def check_edit(config: ConfigDict) -> None:
    """Raise a UsageError that names the field."""
    config_validation.check_config(config)
    edit = config.edit
    for field in ("num_images", "samples_per_image", "resampling", "inversion_iters"):
        if edit[field] < 1:
            raise UsageError(f"config.edit.{field} is {edit[field]}: it must be above 0")
    for field in ("start_index", "jump_length"):
        if edit[field] < 0:
            raise UsageError(f"config.edit.{field} is {edit[field]}: it must be 0 or more")
    if edit.num_frames < 2:
        raise UsageError(f"config.edit.num_frames is {edit.num_frames}: both images are frames, so it must be 2 or more")
    if not 0 < edit.strength <= 1:
        raise UsageError(f"config.edit.strength is {edit.strength:g}: it must be above 0 and at most 1")


def read_originals(config: ConfigDict) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 [N, H, W, C], the images of config.edit, and their labels int32 [N] where the data set has any."""
    edit, data = config.edit, config.data
    if edit.images:
        return np.stack([read_file(path, config) for path in edit.images]), None
    of_split = ConfigDict(config.to_dict())
    of_split.data.split = edit.split or data.split
    source = build.build_source(of_split)
    last = edit.start_index + edit.num_images
    if last > len(source):
        raise UsageError(
            f"config.edit.start_index={edit.start_index} and config.edit.num_images={edit.num_images} ask for images up to "
            f"{last - 1}, but the last one of {data.name} {source.split} is {len(source) - 1}"
        )
    batch = source.batch(np.arange(edit.start_index, last))
    return batch["image"], batch.get("label")


def read_file(path: str, config: ConfigDict) -> np.ndarray:
    """uint8 [H, W, C] of the model's size: cut to the square in its middle and resized.

    Raises:
      UserError: it is not there, or no image.
    """
    path = str(paths.expand(path))
    try:
        image = decode.read_image(path, decode.parse_background(config.data.background), tuple(config.data.value_range))
    except decode.ImageDecodeError as error:
        raise UserError(f"cannot read the image {path}: {error}") from error
    return center_crop_and_resize(image, config.data.image_size, config.data.channels)


def choose_labels(config: ConfigDict, count: int, own: np.ndarray | None) -> np.ndarray | None:
    """int32 [count]: config.sampling.label, or the images' own, or no class; None for an unconditional model.

    Raises:
      UsageError: nobody knows the class, and the model has not learned to do without.
    """
    if not config.model.class_conditional:
        return None
    if config.sampling.label >= 0:
        return np.full(count, config.sampling.label, np.int32)
    if own is not None:
        return np.asarray(own, np.int32)
    if config.model.label_dropout:
        return np.full(count, config.data.num_classes, np.int32)
    raise UsageError(
        "config.sampling.label is missing: this model draws a class, and image files do not say theirs; "
        f"choose one of 0..{config.data.num_classes - 1}"
    )


def draw(
    job: EditContext, generator: BatchedSampler, labels: np.ndarray | None, given: Any, count: int, *, what: str
) -> np.ndarray:
    """What the generator makes of `given`, a pytree of arrays [count, ...]: [count, ...], with progress."""
    with Progress(count, unit=what, out=sys.stderr) as progress:
        report = progress.update if distributed.is_primary_process() else lambda images: None
        key = rng.purpose_key(job.config.sampling.seed, "sample")
        batches = generator.generate(job.params, key, num_images=count, labels=labels, given=given, report=report)
        return np.concatenate([batch.images for batch in batches])


def repeat_rows(array: np.ndarray | None, times: int) -> np.ndarray | None:
    """Each row so many times, one after the other."""
    return None if array is None else np.repeat(array, times, axis=0)


def claim(job: EditContext, output: str, *, mode: str, name: str, more: Any = None) -> pathlib.Path | None:
    """The folder for the results, made before they are: in the first process; None in the others.

    Args:
      job: what the results are made from.
      output: folder; by default one of the workdir's samples/.
      mode: of the program, the beginning of the default folder's name.
      name: the end of that name: the options of this mode.
      more: arrays that decide on the results beside the images and config.edit, such as a mask.

    Raises:
      UserError: the folder cannot be written, or holds other results.
    """
    with distributed.raise_on_all_processes():
        if not distributed.is_primary_process():
            return None
        edit = job.config.edit
        digest = hashlib.sha256()
        for array in jax.tree.leaves((job.originals, job.labels, more)):
            digest.update(repr((array.shape, str(array.dtype))).encode() + np.ascontiguousarray(array).tobytes())
        inputs = digest.hexdigest()
        files = f"files_{inputs[:8]}" if edit.images else f"{edit.split or job.config.data.split}_{edit.start_index}"
        files = re.sub(r"[^\w.-]+", "_", files).strip("_")
        stem = f"{mode}-{sample.run_name(job.config, job.step)}{name}-{files}-{len(job.originals)}_images"
        fields = {field: value for field, value in edit.to_dict().items() if field not in ("images", "mask")}
        identity = sample.identity_of(job.config, mode, job.step, job.params) | {"edit": fields, "inputs_sha256": inputs}
        default = workdir.sample_folder(job.run_folder) / stem
        return manifest.claim(identity, names=("images.npz", f"{mode}.png"), default=default, output=output)


def write_outputs(
    job: EditContext,
    target: pathlib.Path | None,
    *,
    mode: str,
    words: str,
    rows: Sequence[np.ndarray],
    arrays: dict[str, np.ndarray],
) -> None:
    """Write <mode>.png and images.npz.

    Args:
      job: what the results were made from.
      target: from `claim`.
      mode: for the picture's name.
      words: for the user, what was done.
      rows: uint8 [N, H, W, C] each, the columns of the picture.
      arrays: of images.npz.
    """
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            with sample.translate_write_errors(target):
                npz.write(target / "images.npz", arrays)
                image_grid.save_png(target / f"{mode}.png", image_grid.strip(np.stack(rows, axis=1)))
            print(f"step {job.step:,}, {job.config.sampling.params} weights, {words}, seed {job.config.sampling.seed}")
            print(f"pictures in {target}: images.npz, {mode}.png")
