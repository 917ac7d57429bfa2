"""The part of --mode=evaluate that compares images with real ones: scores, and what these do not compare with."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import compute_stats
from ddpm_jax.data import duplicates
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data.class_sequence import reduced
from ddpm_jax.data.source import ImageSource
from ddpm_jax.metrics import frechet
from ddpm_jax.metrics import reference_stats as reference_file
from ddpm_jax.metrics.feature_set import subsample_indices
from ddpm_jax.metrics.features import FeatureExtractor, feature_size
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.kid import kernel_distance
from ddpm_jax.metrics.moments import sample_warnings
from ddpm_jax.metrics.precision_recall import Manifold
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime import distributed, paths
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.user_messages import UsageError, UserError

SAMPLE_METRICS = ("frechet", "kid", "inception_score", "precision_recall")  # of drawn images against real ones
FEATURE_METRICS = {"kid", "precision_recall"}  # that need features, where the others need their moments or logits
SCORES = {  # metric -> its columns
    "frechet": ("frechet",),
    "kid": ("kid", "kid error"),
    "inception_score": ("inception score", "is deviation"),
    "precision_recall": ("precision", "recall"),
}
NUM_NEIGHBORS = 3  # of precision and recall
PROPORTIONS = ("reference", "uniform")
# More numbers than these are too many for a covariance: 8,192 x 8,192 of float64 take half a GiB, and the distance minutes.
MOST_PIXELS = 8192


class SampleScorer:
    """Of images with the real ones of config.evaluation.split, through features.

    Args:
      config: resolved.
      mesh: whose devices compute the features.
      source: the real images, where they are loaded already.
      trained_on: the set that the run was trained on, as its workdir says; None where it does not.

    Attributes:
      extractor: of the features.
      reference: statistics of the real images, and their features, at most config.evaluation.max_features.

    Raises:
      UserError: config.evaluation.reference holds statistics of something else, or too little.
      UsageError: features that cannot be compared.
    """

    def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh, source: ImageSource | None = None, trained_on=None):
        self._trained_on: data_identity.Identity | None = trained_on
        self._config, self._mesh, self._wanted = config, mesh, set(config.evaluation.metrics)
        file = config.evaluation.reference and paths.expand(config.evaluation.reference)
        loaded, source = source, None
        with distributed.raise_on_all_processes():
            self.extractor = compute_stats.make_extractor(config)
            check_features(config, self.extractor)
            if file:
                self.reference = self._load(file)
            else:
                source = loaded or compute_stats.real_source(config)
        if source:
            self.reference = compute_stats.measure(config, source, self.extractor, mesh)
        elif self.reference.images is not None:
            self.reference = self._with_features(self.reference)
        self._real = self.reference.features
        if self._real is not None:
            self._real = self._real[subsample_indices(len(self._real), config.evaluation.max_features)]
        self._manifold: Manifold | None = None

    @property
    def class_counts(self) -> np.ndarray | None:
        """int64 [K], the proportions of the classes to generate; None for as many of each."""
        config, counts = self._config, self.reference.class_counts
        if not config.model.class_conditional or config.evaluation.class_proportions == "uniform" or counts is None:
            return None
        if len(counts) < config.data.num_classes:
            counts = np.append(counts, np.zeros(config.data.num_classes - len(counts), np.int64))
        return reduced(counts) if len(counts) == config.data.num_classes and counts.any() else None

    def classes(self, labels: np.ndarray | None) -> dict[str, Any] | None:
        """In which proportions images of these classes are, for the report; None for an unconditional model."""
        if labels is None:
            return None
        rule = "one class" if self._config.sampling.label >= 0 else "uniform" if self.class_counts is None else "reference"
        known = self.reference.class_counts
        return {
            "proportions": rule,
            "generated": np.bincount(labels, minlength=self._config.data.num_classes).tolist(),
            "reference": None if known is None else known.tolist(),
        }

    def key(self, count: int) -> dict[str, Any]:
        """What scores of `count` images depend on beside the images: the reference, the features, how many are compared."""
        kept, real = self._config.evaluation.max_features, self.reference.count
        compared = [number and min(number, kept or number) for number in (count, real)]
        return {"reference": self.reference.identity(), "features": self.extractor.provenance, "compared": compared}

    def of_source(self, source: ImageSource) -> dict[str, Any]:
        """Scores of all images of a source."""
        return self.of_batches(compute_stats.batches_of(source, self._config.evaluation.batch_size), len(source))

    def of_images(self, images: np.ndarray) -> dict[str, Any]:
        """Scores of images, uint8 [N, H, W, C]."""
        size = self._config.evaluation.batch_size
        return self.of_batches((images[first : first + size] for first in range(0, len(images), size)), len(images))

    def of_batches(self, batches: Iterator[np.ndarray], count: int) -> dict[str, Any]:
        """Scores of `count` images that come in batches, uint8 [b, H, W, C].

        `compared` is there where kid, precision and recall are of fewer images than count says, `repeated` where some
        images are copies of others.
        """
        scores: dict[str, Any] = {"count": count}
        wanted, need_logits = self._wanted, "inception_score" in self._wanted
        hashes: list[bytes] = []

        def hashed() -> Iterator[np.ndarray]:
            for images in batches:
                hashes.extend(duplicates.hash_images(images))
                yield images

        try:
            found = compute_stats.collect(
                self._config, self.extractor, self._mesh, hashed(), count, gaussian="frechet" in wanted, logits=need_logits
            )
            if "frechet" in wanted:
                scores["frechet"] = frechet.frechet_distance(found.gaussian, self.reference.gaussian)
            if "kid" in wanted:
                distance = kernel_distance(found.features, self._real)  # in the order of torch-fidelity
                scores["kid"], scores["kid error"] = distance.mean, distance.standard_error
            if need_logits:
                scores["inception score"], scores["is deviation"], _ = inception_score(found.logits)
            if "precision_recall" in wanted:
                self._manifold = self._manifold or Manifold(self._real, k=NUM_NEIGHBORS)
                scores["precision"], scores["recall"] = self._manifold.compare(found.features)
            if wanted & FEATURE_METRICS and len(found.features) < count:
                scores["compared"] = len(found.features)
        except (ValueError, ExpectedError) as error:  # of the reference's dimension, too few, or without logits
            raise UserError(f"cannot compare {count:,} images: {error}") from error
        if repeated := duplicates.count_repeated(hashes):
            scores["repeated"] = repeated
        return scores

    def notes(self) -> list[str]:
        """What keeps the scores of config.evaluation.num_images from being compared with others'."""
        evaluation, extractor = self._config.evaluation, self.extractor
        counted = self.reference.count
        published = extractor.name == "inception" and bool(extractor.provenance["weights_published"])
        drawn = evaluation.num_images
        notes = self._class_notes()
        theirs, ours = (self.reference.provenance or {}).get("data"), self._trained_on
        if theirs and ours and theirs["split"] == ours["split"]:
            if changes := data_identity.content_changes(ours, theirs):
                notes.append(f"the reference images are not those that the model was trained on: {changes}")
        elif theirs and ours and theirs["name"] != ours["name"]:  # of another split, so the fingerprint has to differ
            notes.append(f"the reference images are of {theirs['name']}, the model was trained on images of {ours['name']}")
        repeated = (self.reference.provenance or {}).get("repeated_images", self._repeated_rows())
        if self._wanted & FEATURE_METRICS and repeated:
            notes.append(
                f"{repeated:,} of the {counted or len(self._real):,} reference images are copies of others: this lowers "
                "precision and recall and raises kid"
            )
        notes += sample_warnings(drawn, counted, self.reference.gaussian.mean.size, published=published)
        if not published:
            notes.append(
                f"a Fréchet distance falls as the number of images grows: compare it only with others of {drawn:,} images"
            )
        if extractor.name != "inception":
            notes.append(f"features are {extractor.name}: the Fréchet distance is not an FID")
        elif not published:
            notes.append("Inception's weights are not the published ones: the Fréchet distance is not an FID")
        kept = min(drawn, evaluation.max_features or drawn)
        if self._wanted & FEATURE_METRICS and (kept < drawn or len(self._real) < (counted or 0)):
            notes.append(
                f"kid, precision and recall use {kept:,} of the generated and {len(self._real):,} of the real images, chosen "
                "by a seed: compare precision and recall only with those of equal counts (config.evaluation.max_features)"
            )
        return notes

    def _class_notes(self) -> list[str]:
        """Where classes are not generated as the reference has them."""
        config, known = self._config, self.reference.class_counts
        if not config.model.class_conditional:
            return []
        if config.sampling.label >= 0:
            return [
                f"all generated images are of class {config.sampling.label} (config.sampling.label), the reference images of "
                "all classes"
            ]
        if config.evaluation.class_proportions == "uniform":
            even = known is not None and len(set(known.tolist())) == 1
            return [] if even else ["all classes get equally many images (config.evaluation.class_proportions=uniform)"]
        if self.class_counts is None:
            why = "holds no class counts" if known is None else f"counts {len(known)} classes, the model has others"
            return [
                f"config.evaluation.reference {why}: all classes get equally many images, whatever the reference has; "
                "a file made by --mode=compute_stats has the counts"
            ]
        return []

    def _repeated_rows(self) -> int:
        """How many of the reference's features are copies: of files that do not say how many images are."""
        return 0 if self._real is None else duplicates.count_repeated(row.tobytes() for row in self._real)

    def _load(self, file: str) -> Reference:
        """Statistics of a file that go with this config."""
        config, found = self._config, reference_file.load(file)
        reference_file.check_matches(file, found.provenance, compute_stats.identity(config, self.extractor))
        theirs = (found.provenance or {}).get("data")
        known = theirs and self._trained_on and config.model.class_conditional
        if known and (changes := data_identity.class_changes(self._trained_on, theirs)):
            raise UserError(
                f"{file} holds statistics of images of other classes than the model was trained on ({changes}): make it again "
                "with --mode=compute_stats"
            )
        check_value_range(file, theirs, config)
        if found.images is not None and found.images.shape[1:] != build.image_shape(config):
            theirs, ours = ("x".join(map(str, shape)) for shape in (found.images.shape[1:], build.image_shape(config)))
            raise UserError(f"{file} holds images of {theirs}, this run's are of {ours}: take a reference of that size")
        size = feature_size(self.extractor, build.image_shape(config))
        held = None if found.gaussian is None else found.gaussian.mean.size
        if held not in (None, size):
            advice = (
                "config.evaluation.features=inception has 2,048" if held == 2048 else "make it again with --mode=compute_stats"
            )
            raise UserError(
                f"{file} holds statistics of {held:,} features, but config.evaluation.features={self.extractor.name} gives "
                f"{size:,} for images of this run: {advice}"
            )
        if found.features is None and found.images is None and self._wanted & FEATURE_METRICS:
            raise UserError(
                f"{file} holds no features, which kid and precision_recall need: run --mode=compute_stats, or leave these "
                "two out of config.evaluation.metrics"
            )
        return found

    def _with_features(self, found: Reference) -> Reference:
        """The same with the features of its images, and their moments where it holds none."""
        if not (self._wanted & FEATURE_METRICS or found.gaussian is None):
            return found
        size = self._config.evaluation.batch_size
        batches = (found.images[first : first + size] for first in range(0, len(found.images), size))
        made = compute_stats.collect(
            self._config, self.extractor, self._mesh, batches, len(found.images), gaussian=found.gaussian is None
        )
        gaussian = made.gaussian if found.gaussian is None else found.gaussian
        return Reference(gaussian, made.features, found.provenance, found.images, found.labels, found.known_count)


def check_value_range(file: str, measured: data_identity.Identity | None, config: ConfigDict) -> None:
    """Raises a UserError where statistics are of gray images with other levels as black and white than the run's have."""
    theirs, ours = (
        [float(level) for level in levels] for levels in ((measured or {}).get("value_range", ()), config.data.value_range)
    )
    if theirs and ours and theirs != ours:
        raise UserError(
            f"{file} holds statistics of images whose levels {theirs[0]:g} and {theirs[1]:g} are black and white, this run has "
            f"{ours[0]:g} and {ours[1]:g} (config.data.value_range): run --mode=compute_stats with this --workdir"
        )


def check_features(config: ConfigDict, extractor: FeatureExtractor) -> None:
    """Raises a UsageError where images have so many pixels that these cannot be the features."""
    shape, metrics = build.image_shape(config), set(config.evaluation.metrics)
    size = feature_size(extractor, shape)
    if extractor.name.startswith("pixels") and size > MOST_PIXELS and "frechet" in metrics:
        words = "x".join(map(str, shape))
        raise UsageError(
            f"config.evaluation.features={extractor.name} compares {size:,} numbers of each image of {words}: too many for a "
            f"Fréchet distance (at most {MOST_PIXELS:,}); take inception, or pixels_16, which averages images down to 16x16"
        )


def loggable_scalars(row: dict[str, Any]) -> dict[str, float]:
    """The scores of a row of the table as curves have them: {"evaluation/frechet": ...}."""
    left_out = ("step", "evaluations")  # the one is their axis, the other never changes
    return {
        f"evaluation/{name}": float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in left_out
    }
