"""In which proportions the classes of generated images come, and what to note where the reference has others."""

import dataclasses
from typing import Any

import numpy as np

from ddpm_jax.data.class_sequence import reduced

PROPORTIONS = ("reference", "uniform")


@dataclasses.dataclass(frozen=True, eq=False)
class ClassProportions:
    """The classes of the images to generate.

    Attributes:
      num_classes: of the model; 0 for an unconditional one.
      label: the one class to generate; -1 for all.
      rule: one of `PROPORTIONS`.
      known: int [K], images of each class of the reference; None where it is unknown.
    """

    num_classes: int
    label: int = -1
    rule: str = "reference"
    known: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray | None:
        """int64 [num_classes], the proportions of the classes to generate; None for as many of each."""
        if not self.num_classes or self.rule == "uniform" or self.known is None:
            return None
        counts = np.append(self.known, np.zeros(max(0, self.num_classes - len(self.known)), np.int64))
        return reduced(counts) if len(counts) == self.num_classes and counts.any() else None

    def report(self, labels: np.ndarray | None) -> dict[str, Any] | None:
        """In which proportions images of these classes are; None for an unconditional model."""
        if labels is None:
            return None
        return {
            "proportions": "one class" if self.label >= 0 else "uniform" if self.counts is None else "reference",
            "generated": np.bincount(labels, minlength=self.num_classes).tolist(),
            "reference": None if self.known is None else self.known.tolist(),
        }

    def notes(self) -> list[str]:
        """Where classes are not generated as the reference has them."""
        if not self.num_classes:
            return []
        if self.label >= 0:
            return [
                f"all generated images are of class {self.label} (config.sampling.label), the reference images of all classes"
            ]
        if self.rule == "uniform":
            even = self.known is not None and len(set(self.known.tolist())) == 1
            return [] if even else ["all classes get equally many images (config.evaluation.class_proportions=uniform)"]
        if self.counts is None:
            why = "holds no class counts" if self.known is None else f"counts {len(self.known)} classes, the model has others"
            return [
                f"config.evaluation.reference {why}: all classes get equally many images, whatever the reference has; "
                "a file made by --mode=compute_stats has the counts"
            ]
        return []
