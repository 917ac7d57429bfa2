"""Scores of images against a reference set in feature space, and notes on the comparability of these scores."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import duplicates
from ddpm_jax.data import identity as data_identity
from ddpm_jax.data.source import ImageSource
from ddpm_jax.evaluation.class_proportions import ClassProportions
from ddpm_jax.evaluation.feature_extraction import FeatureCollector, gather_hashes
from ddpm_jax.evaluation.reference import FEATURE_METRICS
from ddpm_jax.evaluation.sample_cache import SampleCache
from ddpm_jax.metrics import frechet
from ddpm_jax.metrics.feature_set import subsample_indices
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.kid import kernel_distance
from ddpm_jax.metrics.precision_recall import Manifold
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime.errors import ExpectedError

SAMPLE_METRICS = ("frechet", "sfid", "kid", "inception_score", "precision_recall")
SCORES = {  # metric -> its columns
    "frechet": ("frechet",),
    "sfid": ("sfid",),
    "kid": ("kid", "kid_stderr"),
    "inception_score": ("inception score", "is_std"),
    "precision_recall": ("precision", "recall"),
}
NUM_NEIGHBORS = 3  # k of precision and recall
PUBLISHED_COUNT = 50_000  # images in nearly all published FIDs
MIN_PUBLISHED_COUNT = 10_000  # papers do not report FIDs of fewer images


class SampleScorer:
    """Computes the scores of images against a reference.

    Args:
      reference: statistics of the real images, with features if a metric needs them; None for the inception score only.
      collector: computes the features.
      metrics: any of `SAMPLE_METRICS`; others are ignored.
      classes: class proportions of the generated images.
      trained_on: identity of the training set as recorded in the workdir; None if not recorded.
    """

    def __init__(
        self,
        reference: Reference | None,
        collector: FeatureCollector,
        metrics: Sequence[str],
        classes: ClassProportions,
        trained_on: data_identity.Identity | None = None,
    ):
        self.reference, self.classes, self.extractor = reference, classes, collector.extractor
        self._collector, self._wanted, self._trained_on = collector, set(metrics), trained_on
        self._real = reference.features if reference else None
        if self._real is not None:
            self._real = self._real[subsample_indices(len(self._real), collector.max_features)]
        self._manifold: Manifold | None = None

    def key(self, count: int) -> dict[str, Any]:
        """What the scores of `count` images depend on besides the images: reference, features, numbers of compared images."""
        kept, reference = self._collector.max_features, self.reference
        num_compared = [number and min(number, kept or number) for number in (count, reference and reference.count)]
        identity = reference.identity() if reference else None
        return {"reference": identity, "features": self.extractor.provenance, "num_compared": num_compared}

    def of_source(self, source: ImageSource) -> dict[str, Any]:
        """Scores of all images of a source."""
        return self.of_batches((batch["image"] for batch in self._collector.read(source)), len(source))

    def of_images(self, images: np.ndarray) -> dict[str, Any]:
        """Scores of images, uint8 [N, H, W, C]."""
        return self.of_batches(self._collector.split(images), len(images))

    def of_generated(self, batches: Iterable[np.ndarray], count: int) -> dict[str, Any]:
        """Scores of `count` images, all of which every process gets in batches; each keeps those of its part."""
        own, first, kept = self._collector.part(count), 0, []
        for images in batches:
            part = images[max(own.start - first, 0) : max(own.stop - first, 0)]
            kept.append(part if len(part) == len(images) else part.copy())  # not a view, which would keep the whole batch
            first += len(images)
        return self.of_batches((images for images in kept if len(images)), count)

    def of_cache(self, cache: SampleCache, count: int) -> dict[str, Any]:
        """Scores of the first `count` generated images of a cache."""
        own = self._collector.part(count)
        return self.of_batches(cache.batches(own.stop, self._collector.local_batch_size, first=own.start), count)

    def of_batches(self, batches: Iterator[np.ndarray], count: int, title: str = "features") -> dict[str, Any]:
        """Scores of `count` images, this process's part of them in batches (`FeatureCollector.collect`), uint8 [b, H, W, C].

        `title` is that of the progress line.

        `num_compared` is included if kid, precision and recall use fewer than `count` images, `repeated` if some images are
        duplicates.

        Raises:
          ExpectedError: the images cannot be compared with the reference.
        """
        scores: dict[str, Any] = {"count": count}
        wanted, need_logits = self._wanted, "inception_score" in self._wanted
        hashes: list[bytes] = []

        def hashed() -> Iterator[np.ndarray]:
            for images in batches:
                hashes.extend(duplicates.hash_images(images))
                yield images

        try:
            options = {"gaussian": "frechet" in wanted, "logits": need_logits, "spatial": "sfid" in wanted}
            found = self._collector.collect(hashed(), count, title, **options)
            if "frechet" in wanted:
                scores["frechet"] = frechet.frechet_distance(found.gaussian, self.reference.gaussian)
            if "sfid" in wanted:
                scores["sfid"] = frechet.frechet_distance(found.spatial, self.reference.spatial)
            if "kid" in wanted:
                distance = kernel_distance(found.features, self._real)  # argument order of torch-fidelity
                scores["kid"], scores["kid_stderr"] = distance.mean, distance.standard_error
            if need_logits:
                scores["inception score"], scores["is_std"] = inception_score(found.logits)
            if "precision_recall" in wanted:
                self._manifold = self._manifold or Manifold(self._real, k=NUM_NEIGHBORS)
                scores["precision"], scores["recall"] = self._manifold.compare(found.features)
            if wanted & FEATURE_METRICS and len(found.features) < count:
                scores["num_compared"] = len(found.features)
        except (ValueError, ExpectedError) as error:  # different dimensions, too few images, or no logits
            raise ExpectedError(f"cannot compare {count:,} images: {error}") from error
        if repeated := duplicates.count_repeated(gather_hashes(hashes)):
            scores["repeated"] = repeated
        return scores

    def notes(self, num_images: int) -> list[str]:
        """Notes on the comparability of the scores of `num_images` generated images."""
        extractor = self.extractor
        published = extractor.name == "inception" and bool(extractor.provenance["weights_published"])
        if self.reference is None:
            return score_warnings(num_images, published=published)
        notes, counted = self.classes.notes(), self.reference.count
        theirs, ours = (self.reference.provenance or {}).get("data"), self._trained_on
        if theirs and ours and theirs["split"] == ours["split"]:
            if changes := data_identity.content_changes(ours, theirs):
                notes.append(f"the reference images differ from the training images: {changes}")
        elif theirs and ours and theirs["name"] != ours["name"]:  # for different splits the fingerprints always differ
            notes.append(f"the reference images are from {theirs['name']}, the training images from {ours['name']}")
        repeated = (self.reference.provenance or {}).get("repeated_images", self._repeated_rows())
        if self._wanted & FEATURE_METRICS and repeated:
            notes.append(
                f"{repeated:,} of the {counted or len(self._real):,} reference images are duplicates: this lowers "
                "precision and recall and raises kid"
            )
        notes += sample_warnings(num_images, counted, self.reference.gaussian.mean.size, published=published)
        if not published:
            notes.append(
                f"the Fréchet distance decreases with the number of images: compare it only with those of {num_images:,} images"
            )
        if extractor.name != "inception":
            notes.append(f"features are {extractor.name}: the Fréchet distance is not an FID")
        elif not published:
            notes.append("the Inception weights are not the published ones: the Fréchet distance is not an FID")
        kept = min(num_images, self._collector.max_features or num_images)
        if self._wanted & FEATURE_METRICS and (kept < num_images or len(self._real) < (counted or 0)):
            notes.append(
                f"kid, precision and recall use {kept:,} of the generated and {len(self._real):,} of the real images, a "
                "random subset: compare precision and recall only with those of equal counts (config.evaluation.max_features)"
            )
        return notes

    def _repeated_rows(self) -> int:
        """Number of duplicate feature vectors of the reference, for files that do not record duplicate images."""
        return 0 if self._real is None else duplicates.count_repeated(row.tobytes() for row in self._real)


def score_warnings(num_images: int, *, published: bool) -> list[str]:
    """Warnings about an inception score of `num_images` images, with the published weights of Inception or others."""
    if not published:
        return ["the classifier is not Inception with the published weights: compare the inception score only with such scores"]
    if num_images < PUBLISHED_COUNT:
        return [f"inception score of {num_images:,} images: published ones mostly use {PUBLISHED_COUNT:,} and are higher"]
    return []


def sample_warnings(num_images: int, num_reference: int | None, dimension: int, *, published: bool) -> list[str]:
    """Warnings about the effect of these counts on a Fréchet distance, one sentence each.

    Args:
      num_images: number of generated images.
      num_reference: number of images in the reference statistics, or None if unknown.
      dimension: D of the features.
      published: whether the result will be compared with published FIDs (Inception's 2,048 features).
    """
    found = []
    for count, whose in ((num_images, "generated"), (num_reference, "reference")):
        if count is not None and count <= dimension:
            found.append(
                f"{count:,} {whose} images for {dimension:,} features: their covariance is singular and the Fréchet distance "
                f"strongly overestimated; use more than {dimension:,}, better ten times as many"
            )
    if num_reference is None:
        found.append("the number of reference images is unknown, and a Fréchet distance depends on it")
    if published and num_images < MIN_PUBLISHED_COUNT:
        found.append(
            f"FID of {num_images:,} images: FID decreases with their number; compare it only with FIDs of {num_images:,}, "
            f"and compare published ones only with {PUBLISHED_COUNT:,} images"
        )
    elif published and num_images < PUBLISHED_COUNT:
        found.append(f"FID of {num_images:,} images: published ones mostly use {PUBLISHED_COUNT:,} and are lower")
    return found
