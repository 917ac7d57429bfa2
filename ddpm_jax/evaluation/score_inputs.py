"""What a name given to --mode=score is: images, statistics of images, or the workdir of a run."""

import pathlib
import zipfile

import numpy as np

from ddpm_jax.evaluation import manifest
from ddpm_jax.evaluation.array_images import NAMES
from ddpm_jax.evaluation.image_sets import TFDS
from ddpm_jax.runtime import paths, workdir
from ddpm_jax.runtime.errors import InvalidDataError, os_errors

IMAGES, STATISTICS, RUN = "images", "statistics", "run"


def resolve(name: str, *, is_reference: bool) -> tuple[str, str]:
    """The kind of an input, one of the three above, and its absolute path (or tfds:NAME).

    A folder that --mode=sample has written is replaced by its images. So is the workdir of a run, unless it is the reference:
    then it is its data set. A file with images and statistics is images, unless it is the reference.

    Raises:
      FileAccessError: the file cannot be read.
      InvalidDataError: the run has no generated images.
    """
    if name.startswith(TFDS):
        return IMAGES, name
    path = paths.expand(name)
    if path.is_dir():
        if (path / "config.json").is_file():
            return (RUN, str(path)) if is_reference else (IMAGES, str(latest_samples(path)))
        return IMAGES, str(_sampled_images(path) or path)
    if not path.is_file():
        return IMAGES, str(path)  # opening it raises the error
    with os_errors(f"cannot read {path}"):
        return (STATISTICS if _holds_statistics(path, is_reference) else IMAGES), str(path)


def latest_samples(run_folder: pathlib.Path) -> pathlib.Path:
    """The images that --mode=sample has last finished in a workdir: images.npz or a folder of PNG files.

    Raises:
      InvalidDataError: there are none.
    """
    finished = []
    for folder in workdir.sample_folder(run_folder).glob("*/"):
        images, grid = _sampled_images(folder), folder / "grid.png"
        if images and grid.exists() and manifest.read(folder).get("mode") == "sample":  # grid.png is written last
            finished.append((grid.stat().st_mtime, images))
    if not finished:
        raise InvalidDataError(
            f"{run_folder} is a run without generated images: generate some with --mode=sample, or measure the run with "
            "--mode=evaluate"
        )
    return max(finished)[1]


def _sampled_images(folder: pathlib.Path) -> pathlib.Path | None:
    """The images in a folder that --mode=sample has written; None for other folders."""
    if not (folder / manifest.MANIFEST).is_file():
        return None
    return next((path for path in (folder / "images.npz", folder / "png") if path.exists()), None)


def _holds_statistics(file: pathlib.Path, is_reference: bool) -> bool:
    with file.open("rb") as data:
        start = data.read(6)
        data.seek(0)
        if start == np.lib.format.MAGIC_PREFIX:
            try:
                np.lib.format.read_magic(data)
                return len(np.lib.format.read_array_header_1_0(data)[0]) == 2  # features
            except ValueError:
                return False
        if start[:2] != b"PK":
            return start[:1] == b"\x80"  # a pickle
        try:
            with zipfile.ZipFile(data) as archive:
                arrays = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        except (ValueError, zipfile.BadZipFile, NotImplementedError):
            return False
    has_images = bool(arrays & set(NAMES))
    return bool(arrays & {"mu", "sigma", "features"}) and (is_reference or not has_images)
