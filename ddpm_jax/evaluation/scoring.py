"""Scores of images that exist: which metrics can be computed, and the results in the form of an evaluation."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import duplicates
from ddpm_jax.evaluation.feature_extraction import FeatureCollector, gather_hashes
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.evaluation.reference import FEATURE_METRICS
from ddpm_jax.evaluation.results import Result
from ddpm_jax.evaluation.sample_metrics import NUM_NEIGHBORS, SAMPLE_METRICS, SCORES, SampleScorer, sample_warnings
from ddpm_jax.metrics import frechet, inception_score, kid
from ddpm_jax.metrics.features import Features
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError

logger = logging.getLogger(__name__)

# Images that a metric needs in each set. The inception score has one part of at least one image for each split.
LEAST = {
    "frechet": 2,
    "sfid": 2,
    "kid": kid.MIN_SAMPLES,
    "precision_recall": NUM_NEIGHBORS + 1,
    "inception_score": inception_score.NUM_SPLITS,
}
OF_STATISTICS = ("frechet", "sfid")


def check_metrics(named: Sequence[str]) -> None:
    """Raise an InvalidArgumentError unless the named metrics are of images."""
    for metric in named:
        if metric not in SAMPLE_METRICS:
            raise InvalidArgumentError(f"`metrics` contains {metric!r}: images have {', '.join(SAMPLE_METRICS)}")


def choose_metrics(
    named: Sequence[str], count: int, shapes: Features, reference: Reference | ImageSet | None
) -> tuple[tuple[str, ...], list[str]]:
    """The metrics to compute, and notes on those that are left out.

    Args:
      named: metrics that the user named; () for all that can be computed.
      count: number of images.
      shapes: what the features of an image have, from `features.feature_shapes`.
      reference: statistics from a file, or the real images; None for none.

    Raises:
      InvalidArgumentError: a named metric cannot be computed, or none can.
    """
    unavailable = {"inception_score": shapes.logits is None, "sfid": shapes.spatial is None}
    missing = {metric: _obstacle(metric, count, shapes, reference) for metric in SAMPLE_METRICS}
    check_metrics(named)
    for metric in named:
        if missing[metric]:
            raise InvalidArgumentError(f"`metrics` contains {metric}, which {missing[metric]}")
    chosen = tuple(metric for metric in SAMPLE_METRICS if (metric in named if named else not missing[metric]))
    if not chosen:
        why = "; ".join(f"{metric} {reason}" for metric, reason in missing.items())
        raise InvalidArgumentError(f"no score can be computed: {why}")
    if named:
        return chosen, []
    if reference is None:
        return chosen, ["without a reference there is only the inception score"]
    others = {metric: reason for metric, reason in missing.items() if reason and not unavailable.get(metric)}
    return chosen, [f"without {metric}, which {reason}" for metric, reason in others.items()]


def _obstacle(metric: str, count: int, shapes: Features, reference: Reference | ImageSet | None) -> str:
    """Why a metric cannot be computed; "" if it can."""
    if metric == "inception_score" and shapes.logits is None:
        return "needs logits of a classifier: use features=inception"
    if metric == "sfid" and shapes.spatial is None:
        return "needs spatial features: use features=inception"
    if count < LEAST[metric]:
        return f"needs {LEAST[metric]} or more images, not {count}"
    if metric == "inception_score":
        return ""
    if reference is None:
        return "needs a reference"
    if isinstance(reference, Reference):
        if metric in FEATURE_METRICS and reference.features is None and reference.images is None:
            return "needs features of the reference, and its file has statistics only"
        if metric == "sfid" and reference.spatial is None and reference.images is None:
            return "needs mu_s and sigma_s of the reference, and its file has none"
    known = reference.count if isinstance(reference, Reference) else len(reference)
    return f"needs {LEAST[metric]} or more reference images, not {known}" if known and known < LEAST[metric] else ""


def score_images(images: ImageSet, scorer: SampleScorer, collector: FeatureCollector) -> tuple[dict[str, Any], str]:
    """The scores of a set, as columns of a table, and the digest of its images (`duplicates.digest`).

    Raises:
      ExpectedError: as `SampleScorer.of_batches`.
    """
    hashes: list[bytes] = []

    def batches() -> Iterator[np.ndarray]:
        for batch in collector.read(images):
            hashes.extend(duplicates.hash_images(batch["image"]))
            yield batch["image"]
        logger.info(f"scores of {len(images):,} images of {images.name}")  # the Fréchet distance and precision take long

    scores = scorer.of_batches(batches(), len(images), f"features of {images.name}")
    return scores, duplicates.digest(gather_hashes(hashes))


def score_statistics(a: Reference, b: Reference, named: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The distances of two statistics, as columns of a table, and notes on their comparability.

    Args:
      a: of the scored images.
      b: the reference.
      named: any of frechet and sfid; () for those that both have.

    Raises:
      InvalidArgumentError: another metric is named.
      ExpectedError: the statistics are of different features.
    """
    for metric in named:
        if metric not in OF_STATISTICS:
            raise InvalidArgumentError(
                f"`metrics` contains {metric}, which needs images: statistics have frechet and sfid only"
            )
    parts = {"frechet": (a.gaussian, b.gaussian), "sfid": (a.spatial, b.spatial)}
    row: dict[str, Any] = {"count": a.count} if a.count else {}
    for metric, (ours, theirs) in parts.items():
        if ours is None or theirs is None:
            if metric in (named or ("frechet",)):
                raise InvalidArgumentError(f"`metrics` contains {metric}, whose mean and covariance a file lacks")
        elif not named or metric in named:
            try:
                row[metric] = frechet.frechet_distance(ours, theirs)
            except (ValueError, ExpectedError) as error:
                raise ExpectedError(f"cannot compare the statistics: {error}") from error
    notes = ["statistics have no images: only Fréchet distances can be computed from them"]
    if a.count is None or b.gaussian is None:
        notes.append("the number of images is unknown, and a Fréchet distance depends on it")
        return row, notes
    return row, notes + sample_warnings(a.count, b.count, b.gaussian.mean.size, published=False)


def make_results(row: dict[str, Any], key: dict[str, Any], details: dict[str, Any], provenance: dict[str, Any]) -> list[Result]:
    """A result of the kind "images" for each metric in a row, as an evaluation writes them."""
    scores = {name for names in SCORES.values() for name in names}
    shared = {name: value for name, value in row.items() if name not in scores}
    found = []
    for metric, names in SCORES.items():
        if names[0] in row:
            own = shared | {name: row[name] for name in names}
            found.append(Result("images", metric, key, own, details | {"provenance": {metric: provenance}}))
    return found
