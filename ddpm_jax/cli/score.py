"""--mode=score: scores of images that exist, made by any program, against a reference. Needs no run and no config.

The scores, their notes and their provenance are those of --mode=evaluate. Nothing is written unless --output names a folder.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import build, config_validation, data_config, evaluation_config
from ddpm_jax.cli import common
from ddpm_jax.configs import from_workdir
from ddpm_jax.data import decode
from ddpm_jax.data.source import ImageSource
from ddpm_jax.evaluation import image_resize, image_sets, reference, report, score_inputs, scoring
from ddpm_jax.evaluation.class_proportions import ClassProportions
from ddpm_jax.evaluation.feature_extraction import FeatureCollector
from ddpm_jax.evaluation.image_files import Reading
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.evaluation.results import Result, Results, join
from ddpm_jax.evaluation.sample_metrics import SampleScorer
from ddpm_jax.evaluation.score_inputs import IMAGES, RUN, STATISTICS
from ddpm_jax.evaluation.tables import markdown_table
from ddpm_jax.metrics import features, reference_stats
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime import distributed, paths, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.user_messages import UsageError, UserError

FEATURES = ("features", "features_options", "inception_path")  # fields of config.evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class Real:
    """The reference, before features are computed.

    Attributes:
      name: as given by the user, or as the run's data set is called.
      held: statistics from a file, or the real images.
      identity: first fields of the provenance: set, split, resolution, channels.
      size: (H, W) that the scored images must have; None if unknown.
      channels: 1 or 3; None if unknown.
    """

    name: str
    held: Reference | ImageSource
    identity: dict[str, Any]
    size: tuple[int, int] | None
    channels: int | None


@distributed.distributed_main()
def run(config: ConfigDict, images: str, real: str, *, resize: str = "", output: str = "", given: Collection[str] = ()) -> int:
    """Print the scores of images, and write them to a folder if one is named.

    Args:
      config: config.evaluation has the features and metrics, config.data how files are read; changed.
      images: what to score, a name as for `score_inputs.resolve`.
      real: the reference; "" for none.
      resize: FILTER or FILTER:SIZE for images of other sizes; "" to refuse them.
      output: folder for results/, scores.json and table.md; "" for none.
      given: names of the flags of the command line; features and metrics that it does not name are chosen.

    Raises:
      ExpectedError: a set cannot be read, or cannot be compared with the reference.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        target = paths.output_path(output, "") if output else None
        if target and distributed.is_primary_process():
            paths.make_output_folder(target)
        named = tuple(config.evaluation.metrics) if "config.evaluation.metrics" in given else ()
        if not config.evaluation.metrics:
            raise UsageError("config.evaluation.metrics is empty: leave it out for all metrics, or name some")
        if config.evaluation.reference:
            raise UsageError("config.evaluation.reference belongs to --mode=evaluate: name the reference as --reference")
        scoring.check_metrics(named)  # now: reading the images may take long
        features.check_name(config.evaluation.features)
        settings = image_resize.parse_resize(resize)
        reading = Reading(
            resize=settings,
            on_decode_error=config.data.on_decode_error,
            background=decode.parse_background(config.data.background),
            levels=tuple(config.data.value_range),
            data_dir=config.data.data_dir,
            num_threads=config.data.num_threads,
        )
        kind, path = score_inputs.resolve(images, is_reference=False)
        found = open_reference(config, real, reading, chooses_features="config.evaluation.features" not in given)
        held = reference_stats.load(path) if kind == STATISTICS else open_scored(path, found, reading)
    results = (of_statistics if kind == STATISTICS else of_images)(config, images, held, found, named)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            print_and_write(results, target)
    return 0


def open_reference(config: ConfigDict, name: str, reading: Reading, *, chooses_features: bool) -> Real | None:
    """Open the reference; None without a name.

    Args:
      config: gets the features of the reference, if it has any and `chooses_features`.
      name: as for `score_inputs.resolve`.
      reading: how files are read.
      chooses_features: whether the user has named no features.
    """
    if not name:
        return None
    kind, path = score_inputs.resolve(name, is_reference=True)
    if kind == RUN:
        own = from_workdir.get_config(path)
        data_config.complete(own, workdir.read_data_identity(path))
        if not build.pixel_format(own).is_picture(own.data.channels):
            raise UserError(
                f"{path} has images of {own.data.dtype} and {own.data.channels} channels: measure it by --mode=evaluate"
            )
        if chooses_features:
            for field in FEATURES:
                config.evaluation[field] = own.evaluation[field]
        source, (height, width, channels) = evaluation_config.load_compared(own), build.image_shape(own)
        identity = {"set": own.data.name, "split": evaluation_config.compared_split(own)}
        return Real(f"{source.name} {source.split}", source, identity, (height, width), channels)
    if kind == IMAGES:
        images = image_sets.open_set(path, reading)
        return Real(name, images, {"set": images.name, "split": images.split}, images.image_shape[:2], images.channels)
    held = reference_stats.load(path)
    known = held.provenance or {}
    made_with = known.get("extractor", {}).get("features")
    if chooses_features and made_with and "options" not in known["extractor"]:
        config.evaluation.features = made_with
    if held.images is not None:
        height, width, channels = held.images.shape[1:]
        return Real(path, held, {}, (height, width), channels)
    size = known.get("resolution")
    size = tuple(size) if isinstance(size, list) else (size, size) if size else None
    return Real(path, held, {}, size, known.get("channels"))


def open_scored(path: str, found: Real | None, reading: Reading) -> ImageSet:
    """Open the images to score, in the size of the reference.

    Raises:
      ExpectedError: as `image_sets.open_set`, or they are RGB and the reference is gray.
    """
    size = found.size if found else None
    images = image_sets.open_set(path, dataclasses.replace(reading, size=size))
    channels = found.channels if found else None
    if channels and channels != images.channels:
        if images.channels == 1:
            images.image_shape = (*images.image_shape[:2], 3)
        elif isinstance(found.held, ImageSet):
            found.held.image_shape = (*found.held.image_shape[:2], 3)
        else:
            raise UserError(f"{path} has RGB images, and {found.name} is of gray ones: convert the images to gray")
    return images


def of_images(config: ConfigDict, name: str, images: ImageSet, found: Real | None, named: Sequence[str]) -> list[Result]:
    """The scores of images, which the user calls `name`, against the reference."""
    evaluation = config.evaluation
    with distributed.raise_on_all_processes():
        collector = evaluation_config.build_collector(config, meshes.make_mesh())
        shapes = features.feature_shapes(collector.extractor, images.image_shape)
        metrics, notes = scoring.choose_metrics(named, len(images), shapes, found.held if found else None)
        evaluation.metrics = metrics
        reference.check_features(collector.extractor, images.image_shape, metrics)
    statistics = measured(found, collector, images, metrics) if found else None
    scorer = SampleScorer(statistics, collector, metrics, ClassProportions(0))
    scores, digest = scoring.score_images(images, scorer, collector)
    own = {"images_sha256": digest, "resize": images.resize}
    details = {
        "set": {"set": images.name, "images": len(images), "broken_files": images.broken, "shape": list(images.image_shape)}
        | own,
        "config": {"evaluation": evaluation.to_dict()},
        "notes": notes + broken_notes(images) + scorer.notes(len(images)),
        "reference": statistics and (statistics.provenance or statistics.identity()),
        "features": collector.extractor.provenance,
    }
    row = {"images": name} | ({"reference": found.name} if found else {}) | {"features": evaluation.features} | scores
    return scoring.make_results(row, own | {"count": len(images)} | scorer.key(len(images)), details, common.provenance())


def measured(found: Real, collector: FeatureCollector, images: ImageSet, metrics: Sequence[str]) -> Reference:
    """The statistics of the reference, computed if it is images."""
    extractor = collector.extractor
    if isinstance(found.held, Reference):
        identity = {"channels": images.channels, "extractor": extractor.provenance}
        with distributed.raise_on_all_processes():
            reference.check_reference(
                found.name, found.held, extractor, identity=identity, image_shape=images.image_shape, metrics=metrics
            )
        return reference.with_features(found.held, collector, metrics)
    return measure(found, collector, images.image_shape, spatial="sfid" in metrics)


def measure(found: Real, collector: FeatureCollector, shape: tuple[int, int, int], *, spatial: bool) -> Reference:
    """The statistics of real images of a shape (H, W, C)."""
    height, width, channels = shape
    size = height if height == width else [height, width]
    identity = found.identity | {"resolution": size, "channels": channels, "extractor": collector.extractor.provenance}
    resize = found.held.resize if isinstance(found.held, ImageSet) else reference.RESIZE
    return reference.measure_reference(found.held, collector, identity, spatial=spatial, resize=resize)


def of_statistics(config: ConfigDict, name: str, held: Reference, found: Real | None, named: Sequence[str]) -> list[Result]:
    """The Fréchet distances of statistics of images, which the user calls `name`, from the reference."""
    if found is None:
        raise UsageError(f"{name} holds statistics: name what to compare them with as --reference")
    extractor = (held.provenance or {}).get("extractor")
    if isinstance(found.held, Reference):
        other, known = found.held, (found.held.provenance or {}).get("extractor")
        reference_stats.check_matches(name, held.provenance and {"extractor": extractor}, {"extractor": known} if known else {})
    else:
        with distributed.raise_on_all_processes():
            collector = evaluation_config.build_collector(config, meshes.make_mesh())
            known = collector.extractor.provenance
            reference_stats.check_matches(name, held.provenance, {"extractor": known})
        shape = (*found.size, found.channels)
        metrics = ("frechet", "sfid") if held.spatial is not None else ("frechet",)
        reference.check_features(collector.extractor, shape, metrics)
        other = measure(found, collector, shape, spatial="sfid" in metrics)
    row, notes = scoring.score_statistics(held, other, named)
    made_with = known or extractor or {"features": "unknown"}
    row = {"images": name, "reference": found.name, "features": made_with["features"]} | row
    key = {"statistics": held.identity(), "reference": other.identity(), "features": made_with, "count": held.count}
    details = {"set": held.provenance or held.identity(), "notes": notes, "features": made_with}
    details["reference"] = other.provenance or other.identity()
    return scoring.make_results(row, key, details, common.provenance())


def broken_notes(images: ImageSet) -> list[str]:
    """Notes on what was done to the files of a set."""
    notes = [f"{images.broken:,} files cannot be read and are left out"] if images.broken else []
    return notes + ([f"images were resized: {images.resize}"] if images.resize != "none" else [])


def print_and_write(results: Sequence[Result], target: pathlib.Path | None) -> None:
    """Print the table and the notes; add the results to those in the folder, if there is one."""
    rows, notes = report.rows_and_notes(join(results))
    print(markdown_table(rows) + "".join(f"note: {note}\n" for note in notes), end="")
    if target is None:
        print("nothing was written: --output=FOLDER keeps the scores and their provenance")
        return
    with paths.write_errors(target):
        held = Results(target / "results")
        for result in results:
            held.add(result, "images")
        report.write(target, join(held.read()))
    print(f"wrote scores.json, table.md and results/ to {target}")
