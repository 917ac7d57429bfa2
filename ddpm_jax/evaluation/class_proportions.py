"""Class proportions of the generated images, and notes where those of the reference differ."""

import dataclasses
from typing import Any

import numpy as np

from ddpm_jax.data.class_sequence import reduced

PROPORTIONS = ("reference", "uniform")


@dataclasses.dataclass(frozen=True, eq=False)
class ClassProportions:
    """The classes of the images to generate.

    Attributes:
      num_classes: number of classes of the model; 0 if it is unconditional.
      label: the only class to generate; -1 for all.
      rule: one of `PROPORTIONS`.
      known: int [K], number of reference images of each class; None if unknown.
    """

    num_classes: int
    label: int = -1
    rule: str = "reference"
    known: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray | None:
        """int64 [num_classes], the proportions of the classes to generate; None for equal proportions."""
        if not self.num_classes or self.rule == "uniform" or self.known is None:
            return None
        counts = np.append(self.known, np.zeros(max(0, self.num_classes - len(self.known)), np.int64))
        return reduced(counts) if len(counts) == self.num_classes and counts.any() else None

    def report(self, labels: np.ndarray | None) -> dict[str, Any] | None:
        """The class proportions of images with these labels, for the report; None for an unconditional model."""
        if labels is None:
            return None
        return {
            "proportions": "one class" if self.label >= 0 else "uniform" if self.counts is None else "reference",
            "generated": np.bincount(labels, minlength=self.num_classes).tolist(),
            "reference": None if self.known is None else self.known.tolist(),
        }

    def notes(self) -> list[str]:
        """Notes where the proportions differ from those of the reference."""
        if not self.num_classes:
            return []
        if self.label >= 0:
            return [
                f"all generated images have class {self.label} (config.sampling.label), the reference images have all classes"
            ]
        if self.rule == "uniform":
            even = self.known is not None and len(set(self.known.tolist())) == 1
            return [] if even else ["all classes have the same number of images (config.evaluation.class_proportions=uniform)"]
        if self.counts is None:
            why = "holds no class counts" if self.known is None else f"counts {len(self.known)} classes, unlike the model"
            return [
                f"config.evaluation.reference {why}: all classes have the same number of images, perhaps unlike the reference; "
                "a file from --mode=compute_stats has the counts"
            ]
        return []
