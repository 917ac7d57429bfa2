"""The real images that generated ones are compared with: their statistics, computed from a source or read from a file."""

import hashlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

import ddpm_jax
from ddpm_jax.data import duplicates
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data.source import RESIZE_FILTER, ImageSource
from ddpm_jax.evaluation.feature_extraction import FeatureCollector
from ddpm_jax.metrics import feature_set, reference_stats
from ddpm_jax.metrics.features import FeatureExtractor, feature_size
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

FEATURE_METRICS = {"kid", "precision_recall"}  # that need features, where the others need their moments or logits
# More numbers than these are too many for a covariance: 8,192 x 8,192 of float64 take half a GiB, and the distance minutes.
MOST_PIXELS = 8192


def measure_reference(source: ImageSource, collector: FeatureCollector, identity: dict[str, Any]) -> Reference:
    """The statistics of all images of a source, with their hash, the number of copies and the size of each class.

    Args:
      source: the images.
      collector: of the features.
      identity: the first fields of the provenance: those in which statistics and a run must agree.
    """
    digest, hashes, classes = hashlib.sha256(), [], np.zeros(source.num_classes, np.int64)

    def seen() -> Iterator[np.ndarray]:
        for batch in collector.read(source):
            digest.update(batch["image"])
            hashes.extend(duplicates.hash_images(batch["image"]))
            if "label" in batch:
                np.add.at(classes, batch["label"], 1)
            yield batch["image"]

    made = collector.collect(seen(), len(source))
    provenance = identity | {
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
    """The statistics in a file, which must be of what a run is compared with.

    Args:
      file: of this program or another one.
      extractor: of the run's features.
      identity: the fields of the provenance that must agree.
      image_shape: (H, W, C) of the run's images.
      metrics: that are wanted.
      value_range: gray levels that are black and white in the run; empty where it has none.
      trained_on: the set that a class-conditional run was trained on; None for any other.

    Raises:
      InvalidDataError: the file holds statistics of something else, or too little.
    """
    found = reference_stats.load(file)
    reference_stats.check_matches(file, found.provenance, identity)
    theirs = (found.provenance or {}).get("data")
    if theirs and trained_on and (changes := data_identity.class_changes(trained_on, theirs)):
        raise InvalidDataError(
            f"{file} holds statistics of images of other classes than the model was trained on ({changes}): make it again "
            "with --mode=compute_stats"
        )
    check_value_range(file, theirs, value_range)
    if found.images is not None and found.images.shape[1:] != image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (found.images.shape[1:], image_shape))
        raise InvalidDataError(f"{file} holds images of {theirs}, this run's are of {ours}: take a reference of that size")
    size = feature_size(extractor, image_shape)
    held = None if found.gaussian is None else found.gaussian.mean.size
    if held not in (None, size):
        advice = "config.evaluation.features=inception has 2,048" if held == 2048 else "make it again with --mode=compute_stats"
        raise InvalidDataError(
            f"{file} holds statistics of {held:,} features, but config.evaluation.features={extractor.name} gives "
            f"{size:,} for images of this run: {advice}"
        )
    if found.features is None and found.images is None and FEATURE_METRICS & set(metrics):
        raise InvalidDataError(
            f"{file} holds no features, which kid and precision_recall need: run --mode=compute_stats, or leave these "
            "two out of config.evaluation.metrics"
        )
    return found


def with_features(found: Reference, collector: FeatureCollector, metrics: Collection[str]) -> Reference:
    """The same with the features of its images, where metrics need them, and their moments where it holds none."""
    if found.images is None or not (FEATURE_METRICS & set(metrics) or found.gaussian is None):
        return found
    made = collector.collect(collector.split(found.images), len(found.images), gaussian=found.gaussian is None)
    gaussian = made.gaussian if found.gaussian is None else found.gaussian
    return Reference(gaussian, made.features, found.provenance, found.images, found.labels, found.known_count)


def check_value_range(file: str | os.PathLike, measured: data_identity.Identity | None, value_range: Collection[float]) -> None:
    """Raises an InvalidDataError where the levels of black and white of gray images differ from the run's."""
    theirs, ours = ([float(level) for level in levels] for levels in ((measured or {}).get("value_range", ()), value_range))
    if theirs and ours and theirs != ours:
        raise InvalidDataError(
            f"{file} holds statistics of images whose levels {theirs[0]:g} and {theirs[1]:g} are black and white, this run has "
            f"{ours[0]:g} and {ours[1]:g} (config.data.value_range): run --mode=compute_stats with this --workdir"
        )


def check_features(extractor: FeatureExtractor, image_shape: tuple[int, int, int], metrics: Collection[str]) -> None:
    """Raises an InvalidArgumentError where images have so many pixels that these cannot be the features."""
    size = feature_size(extractor, image_shape)
    if extractor.name.startswith("pixels") and size > MOST_PIXELS and "frechet" in metrics:
        words = "x".join(map(str, image_shape))
        raise InvalidArgumentError(
            f"config.evaluation.features={extractor.name} compares {size:,} numbers of each image of {words}: too many for a "
            f"Fréchet distance (at most {MOST_PIXELS:,}); take inception, or pixels_16, which averages images down to 16x16"
        )
