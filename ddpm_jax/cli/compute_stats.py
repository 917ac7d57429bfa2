"""--mode=compute_stats: statistics of a data set's real images, in a file that evaluations and other runs compare with.

The whole split, each image once, not flipped, as uint8 at the model's resolution.
"""

import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import build, config_validation, cpu
from ddpm_jax.data import duplicates
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data.source import RESIZE_FILTER, ImageSource, NoSuchSplit
from ddpm_jax.metrics import feature_set, features, reference_stats
from ddpm_jax.metrics.feature_set import FeatureSet
from ddpm_jax.metrics.features import FeatureExtractor
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime import distributed, paths, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError
from ddpm_jax.runtime.metric_logger import Progress
from ddpm_jax.user_messages import UserError


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Write the statistics of the images to compare with, through config.evaluation.features; the exit code.

    A file that holds statistics of another set or other features is not replaced.

    Args:
      config: resolved.
      folder: workdir; its eval/reference.npz is written where no output is named.
      output: the file to write.
      defaults: unused: statistics are of data, not of a run.

    Raises:
      UserError, UsageError: wrong fields, no data set, a file that cannot be written or holds something else.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        target = paths.output_path(output, default_file(folder))
        if distributed.is_primary_process():
            paths.make_output_parent(target)
        extractor = make_extractor(config)
        check_replaceable(target, identity(config, extractor))
        source = real_source(config)
    made = measure(config, source, extractor, meshes.make_mesh())
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            reference_stats.save(target, made)
            kept = f", with the features of {len(made.features):,}" if len(made.features) < len(source) else ""
            print(f"statistics of {len(source):,} images of {source.name} {source.split}{kept} in {target}")
    return 0


def make_extractor(config: ConfigDict) -> FeatureExtractor:
    """The extractor that config.evaluation names.

    Raises:
      UsageError, UserError: as `features.make_extractor`.
    """
    evaluation = config.evaluation
    try:
        return features.make_extractor(
            evaluation.features,
            inception_path=evaluation.inception_path,
            group_size=cpu.inception_group_size(),
            progress=Progress,
        )
    except InvalidArgumentError:
        raise
    except ExpectedError as error:
        if evaluation.features != "inception":
            raise
        raise UserError(f"{error}; or compare without a network: --config.evaluation.features=pixels_16") from error


def split_of(config: ConfigDict) -> str:
    """The split that drawn images are compared with."""
    return config.evaluation.split or config.data.split


def real_source(config: ConfigDict, split: str = "") -> ImageSource:
    """The images of a split of config.data, by default those to compare with.

    Raises:
      UsageError: the set has no such split; names the field that asked for it.
      UserError: the set cannot be read.
    """
    other = config.copy_and_resolve_references()
    other.data.split = split or split_of(config)
    try:
        return build.build_source(other)
    except NoSuchSplit as error:
        if split or not config.evaluation.split:
            raise
        raise NoSuchSplit(f"config.evaluation.split is {config.evaluation.split!r}: {error}") from error


def check_replaceable(target: pathlib.Path, wanted: dict[str, Any]) -> None:
    """Raises a UserError where `target` is a file, unless it holds statistics of what is `wanted`."""
    if target.is_dir():
        raise UserError(f"--output={target} is a folder: name a file, such as --output={target / 'reference.npz'}")
    if not target.exists():
        return
    advice = "choose another --output, or remove the file first"
    try:
        held = reference_stats.load(target).provenance
        if held is None:
            raise UserError(f"{target} holds statistics of unknown origin")
        reference_stats.check_matches(target, held, wanted)
    except ExpectedError as error:
        raise UserError(f"{error}; it is not replaced: {advice}") from error


def default_file(folder: str) -> pathlib.Path:
    """Where a workdir keeps the statistics that its evaluations compare with."""
    return workdir.evaluation_folder(folder) / "reference.npz"


def measure(config: ConfigDict, source: ImageSource, extractor: FeatureExtractor, mesh: jax.sharding.Mesh) -> Reference:
    """The statistics of all images of a source, with their hash, the number of copies and the size of each class."""
    digest, hashes, classes = hashlib.sha256(), [], np.zeros(source.num_classes, np.int64)

    def seen(size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(source), size):
            batch = source.batch(np.arange(first, min(first + size, len(source))))
            digest.update(batch["image"])
            hashes.extend(duplicates.hash_images(batch["image"]))
            if "label" in batch:
                np.add.at(classes, batch["label"], 1)
            yield batch["image"]

    made = collect(config, extractor, mesh, seen(config.evaluation.batch_size), len(source))
    provenance = identity(config, extractor) | {
        "images": len(source),
        "images_sha256": digest.hexdigest(),
        "data": data_identity.identity_of(source),
        "repeated_images": duplicates.count_repeated(hashes),
        "random_flip": False,
        "resize": f"Pillow {RESIZE_FILTER.name.lower()}, where images had another size",
        "ddpm_jax": ddpm_jax.__version__,
    }
    if classes.size:
        provenance["class_counts"] = classes.tolist()
    if len(made.features) < len(source):
        provenance |= {"features_kept": len(made.features), "features_seed": feature_set.CHOICE_SEED}
    return Reference(made.gaussian, made.features, provenance)


def identity(config: ConfigDict, extractor: FeatureExtractor) -> dict[str, Any]:
    """The fields of the provenance in which statistics and a run must agree."""
    data = config.data
    named = {"set": data.name, "split": split_of(config), "resolution": data.image_size, "channels": data.channels}
    return named | {"extractor": extractor.provenance}


def collect(
    config: ConfigDict,
    extractor: FeatureExtractor,
    mesh: jax.sharding.Mesh,
    batches: Iterator[np.ndarray],
    count: int,
    **options: bool,
) -> FeatureSet:
    """What `collection.collect` keeps of `count` images that come in batches, uint8 [b, H, W, C]; with progress."""
    evaluation = config.evaluation
    with Progress(count, unit="images", out=sys.stderr) as progress:
        tell: Callable[[int], None] = progress.update if distributed.is_primary_process() else lambda images: None
        parts = features.extract(extractor, mesh, batches, batch_size=evaluation.batch_size, report=tell)
        return feature_set.accumulate_features(parts, count, evaluation.max_features, **options)


def batches_of(source: ImageSource, size: int) -> Iterator[np.ndarray]:
    """All images of a source, in order."""
    for first in range(0, len(source), size):
        yield source.batch(np.arange(first, min(first + size, len(source))))["image"]
