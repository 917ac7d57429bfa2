"""Statistics of the real images that generated images are compared with, computed from a source or read from a file."""

import dataclasses
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

import ddpm_jax
from ddpm_jax.data import duplicates
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data.source import RESIZE_FILTER, ImageSource
from ddpm_jax.evaluation.feature_extraction import FeatureCollector, gather_hashes
from ddpm_jax.metrics import feature_set, reference_stats
from ddpm_jax.metrics.features import FeatureExtractor, feature_size
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime import exchange
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

FEATURE_METRICS = {"kid", "precision_recall"}  # these need features; the others need moments or logits
# A covariance of 8,192 x 8,192 float64 takes half a GiB, and the distance takes minutes.
MAX_PIXELS = 8192
RESIZE = f"Pillow {RESIZE_FILTER.name.lower()}, for images of other sizes"  # of every data set


def measure_reference(
    source: ImageSource, collector: FeatureCollector, identity: dict[str, Any], *, spatial: bool = False, resize: str = RESIZE
) -> Reference:
    """Compute the statistics of all images of a source, with their hash, the number of duplicates and the class counts.

    Args:
      source: the real images.
      collector: computes the features.
      identity: the first fields of the provenance, in which the statistics and a run must agree.
      spatial: whether to compute those of the spatial features, which only Inception has.
      resize: how the source resizes its images, for the provenance.
    """
    hashes, classes = [], np.zeros(source.num_classes, np.int64)

    def seen() -> Iterator[np.ndarray]:
        for batch in collector.read(source):
            hashes.extend(duplicates.hash_images(batch["image"]))
            if "label" in batch:
                np.add.at(classes, batch["label"], 1)
            yield batch["image"]

    made = collector.collect(seen(), len(source), f"features of {source.name} {source.split}".rstrip(), spatial=spatial)
    hashes = gather_hashes(hashes)
    provenance = identity | {
        "images": len(source),
        "images_sha256": duplicates.digest(hashes),
        "data": data_identity.identity_of(source),
        "repeated_images": duplicates.count_repeated(hashes),
        "random_flip": False,
        "resize": resize,
        "ddpm_jax": ddpm_jax.__version__,
    }
    if classes.size:
        provenance["class_counts"] = exchange.total(classes).tolist()
    if len(made.features) < len(source):
        provenance |= {"features_kept": len(made.features), "features_seed": feature_set.CHOICE_SEED}
    return Reference(made.gaussian, made.features, provenance, spatial=made.spatial)


def load_reference(
    file: str | os.PathLike,
    extractor: FeatureExtractor,
    *,
    identity: dict[str, Any],
    image_shape: tuple[int, int, int],
    metrics: Collection[str],
    value_range: Collection[float] = (),
    trained_on: data_identity.Identity | None = None,
) -> Reference:
    """Read statistics from a file and check that they fit a run.

    Args:
      file: path of the file, written by this program or another one.
      extractor: feature extractor of the run.
      identity: fields of the provenance that must agree.
      image_shape: (H, W, C) of the run.
      metrics: metrics to compute.
      value_range: gray levels of black and white in the run; empty if it has none.
      trained_on: identity of the training set of a class-conditional run; else None.

    Raises:
      InvalidDataError: the statistics do not fit the run, or lack features that the metrics need.
    """
    found = reference_stats.load(file)
    check_reference(file, found, extractor, identity=identity, image_shape=image_shape, metrics=metrics)
    theirs = (found.provenance or {}).get("data")
    if theirs and trained_on and (changes := data_identity.class_changes(trained_on, theirs)):
        raise InvalidDataError(
            f"{file} holds statistics of images of other classes than the model was trained on ({changes}): run "
            "--mode=compute_stats again"
        )
    check_value_range(file, theirs, value_range)
    return found


def check_reference(
    file: str | os.PathLike,
    found: Reference,
    extractor: FeatureExtractor,
    *,
    identity: dict[str, Any],
    image_shape: tuple[int, int, int],
    metrics: Collection[str],
) -> None:
    """Raise an InvalidDataError if statistics do not fit the images, the features or the metrics; see `load_reference`."""
    reference_stats.check_matches(file, found.provenance, identity)
    if found.images is not None and found.images.shape[1:] != image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (found.images.shape[1:], image_shape))
        raise InvalidDataError(f"{file} holds images of {theirs}, but the run has {ours}: use a reference of that size")
    size = feature_size(extractor, image_shape)
    held = None if found.gaussian is None else found.gaussian.mean.size
    if held not in (None, size):
        advice = "config.evaluation.features=inception has 2,048" if held == 2048 else "run --mode=compute_stats again"
        raise InvalidDataError(
            f"{file} holds statistics of {held:,} features, but config.evaluation.features={extractor.name} gives "
            f"{size:,} for the images of this run: {advice}"
        )
    if found.features is None and found.images is None and FEATURE_METRICS & set(metrics):
        raise InvalidDataError(
            f"{file} holds no features, which kid and precision_recall need: run --mode=compute_stats, or leave these "
            "two out of config.evaluation.metrics"
        )
    if "sfid" in metrics and found.spatial is None and found.images is None:
        raise InvalidDataError(
            f"{file} holds no mu_s and no sigma_s, which sfid needs: run --mode=compute_stats, or leave it out of "
            "config.evaluation.metrics"
        )


def with_features(found: Reference, collector: FeatureCollector, metrics: Collection[str]) -> Reference:
    """Add the features and moments that the metrics need and `found` lacks, computed from its images."""
    lacks = {"gaussian": found.gaussian is None, "spatial": "sfid" in metrics and found.spatial is None}
    if found.images is None or not (FEATURE_METRICS & set(metrics) or any(lacks.values())):
        return found
    made = collector.collect(collector.split(found.images), len(found.images), "features of the reference", **lacks)
    new = {name: getattr(made, name) for name, is_missing in lacks.items() if is_missing}
    return dataclasses.replace(found, features=made.features, **new)


def check_value_range(file: str | os.PathLike, measured: data_identity.Identity | None, value_range: Collection[float]) -> None:
    """Raise an InvalidDataError if the black and white levels of the gray images differ from those of the run."""
    theirs, ours = ([float(level) for level in levels] for levels in ((measured or {}).get("value_range", ()), value_range))
    if theirs and ours and theirs != ours:
        raise InvalidDataError(
            f"{file} holds statistics of images whose levels {theirs[0]:g} and {theirs[1]:g} are black and white, this run has "
            f"{ours[0]:g} and {ours[1]:g} (config.data.value_range): run --mode=compute_stats with this `workdir`"
        )


def check_features(extractor: FeatureExtractor, image_shape: tuple[int, int, int], metrics: Collection[str]) -> None:
    """Raise an InvalidArgumentError if the images have too many pixels to use pixels as features."""
    size = feature_size(extractor, image_shape)
    if extractor.name.startswith("pixels") and size > MAX_PIXELS and "frechet" in metrics:
        words = "x".join(map(str, image_shape))
        raise InvalidArgumentError(
            f"config.evaluation.features={extractor.name} has {size:,} features for an image of {words}: too many for a "
            f"Fréchet distance (at most {MAX_PIXELS:,}); use inception, or pixels_16, which averages images down to 16x16"
        )
