"""The part of --mode=evaluate that compares images with real ones: scores, and a word on what these do not compare with."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data.source import ImageSource
from ddpm_jax.metrics import frechet
from ddpm_jax.metrics import reference as reference_file
from ddpm_jax.metrics.collection import chosen
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.kernel import kernel_distance
from ddpm_jax.metrics.precision_recall import Manifold
from ddpm_jax.metrics.statistics import sample_warnings
from ddpm_jax.programs import reference
from ddpm_jax.runtime import paths, processes
from ddpm_jax.runtime.errors import PersonError

DRAWN_METRICS = ("frechet", "kid", "inception_score", "precision_recall")  # of drawn images against real ones
FEATURE_METRICS = {"kid", "precision_recall"}  # that need features, where the others need their moments or logits
NEIGHBOUR = 3  # of precision and recall


class Comparison:
    """Of images with the real ones of config.evaluation.split, through features.

    Attributes:
      extractor: of the features.
      reference: statistics of the real images, and their features, at most config.evaluation.kept_features.

    Raises:
      PersonError: config.evaluation.reference holds statistics of something else, or too little.
    """

    def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
        self._config, self._mesh, self._wanted = config, mesh, set(config.evaluation.metrics)
        file, source = config.evaluation.reference and paths.expand(config.evaluation.reference), None
        with processes.together():
            self.extractor = reference.make_extractor(config)
            if file:
                self.reference = reference_file.load(file)
                reference_file.check_matches(file, self.reference.provenance, reference.identity(config, self.extractor))
                if self.reference.features is None and self._wanted & FEATURE_METRICS:
                    raise PersonError(
                        f"{file} holds no features, which kid and precision_recall need: make it by --mode=reference"
                    )
            else:
                source = reference.real_source(config)
        if source:
            self.reference = reference.measure(config, source, self.extractor, mesh)
        self._real = self.reference.features
        if self._real is not None:
            self._real = self._real[chosen(len(self._real), config.evaluation.kept_features)]
        self._manifold: Manifold | None = None

    def of_source(self, source: ImageSource) -> dict[str, Any]:
        """Scores of all images of a source."""
        return self.of_batches(reference.batches_of(source, self._config.evaluation.batch_size), len(source))

    def of_images(self, images: np.ndarray) -> dict[str, Any]:
        """Scores of images, uint8 [N, H, W, C]."""
        size = self._config.evaluation.batch_size
        return self.of_batches((images[first : first + size] for first in range(0, len(images), size)), len(images))

    def of_batches(self, batches: Iterator[np.ndarray], count: int) -> dict[str, Any]:
        """Scores of `count` images that come in batches, uint8 [b, H, W, C].

        `compared` is there where kid, precision and recall are of fewer images than count says.
        """
        scores: dict[str, Any] = {"count": count}
        wanted, need_logits = self._wanted, "inception_score" in self._wanted
        try:
            found = reference.collect(
                self._config, self.extractor, self._mesh, batches, count, gaussian="frechet" in wanted, logits=need_logits
            )
            if "frechet" in wanted:
                scores["frechet"] = frechet.frechet_distance(found.gaussian, self.reference.gaussian)
            if "kid" in wanted:
                distance = kernel_distance(self._real, found.features)
                scores["kid"], scores["kid error"] = distance.mean, distance.standard_error
            if "inception_score" in wanted:
                scores["inception score"], scores["is deviation"], _ = inception_score(found.logits)
            if "precision_recall" in wanted:
                self._manifold = self._manifold or Manifold(self._real, k=NEIGHBOUR)
                scores["precision"], scores["recall"] = self._manifold.compare(found.features)
            if wanted & FEATURE_METRICS and len(found.features) < count:
                scores["compared"] = len(found.features)
        except (ValueError, PersonError) as error:  # of the reference's dimension, too few, or without logits
            raise PersonError(f"cannot compare {count:,} images: {error}") from error
        return scores

    def notes(self) -> list[str]:
        """What keeps the scores of config.evaluation.num_images from being compared with others'."""
        evaluation, extractor = self._config.evaluation, self.extractor
        counted = (self.reference.provenance or {}).get("images")
        published = extractor.name == "inception" and bool(extractor.provenance["weights_published"])
        drawn = evaluation.num_images
        notes = sample_warnings(drawn, counted, self.reference.gaussian.mean.size, published=published)
        if not published:
            notes.append(
                f"a Fréchet distance falls as the number of images grows: this one compares only with one of as many, {drawn:,}"
            )
        if extractor.name != "inception":
            notes.append(f"features are {extractor.name}: the Fréchet distance is no FID")
        elif not published:
            notes.append("Inception's weights are not the published ones: the Fréchet distance is no FID")
        kept = min(drawn, evaluation.kept_features or drawn)
        if self._wanted & FEATURE_METRICS and (kept < drawn or len(self._real) < (counted or 0)):
            notes.append(
                f"kid, precision and recall look at {kept:,} of the drawn and {len(self._real):,} of the real images, by a "
                "seed: compare precision and recall only with those of as many (config.evaluation.kept_features)"
            )
        return notes


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """The scores of a row of the table as curves have them: {"evaluation/frechet": ...}."""
    left_out = ("step", "evaluations")  # the one is their axis, the other never changes
    return {
        f"evaluation/{name}": float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in left_out
    }
