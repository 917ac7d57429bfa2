"""Classes of generated images have the proportions of the reference; a note is added where they cannot."""

import numpy as np
import pytest

from ddpm_jax.data.class_sequence import class_sequence
from ddpm_jax.evaluation.class_proportions import ClassProportions
from ddpm_jax.metrics.frechet import fit_gaussian, frechet_distance


def test_classes_have_the_proportions_of_the_reference():
    """Exact samples of two classes, 95 : 5, score 0.4 against the same mixture, and 11 if both classes are equally frequent."""

    def samples(labels, seed):
        rng = np.random.RandomState(seed)
        colors = np.array([(200, 60, 60), (60, 60, 200)])[labels][:, None, None]
        return np.clip(rng.randn(len(labels), 8, 8, 3) * 20 + colors, 0, 255).astype(np.uint8).reshape(len(labels), -1) / 255

    real = fit_gaussian(samples(np.repeat([0, 1], [190, 10]), 1))
    distances = {}
    for rule in ("reference", "uniform"):
        counts = ClassProportions(2, rule=rule, known=np.array([190, 10])).counts
        assert (counts is None) == (rule == "uniform")
        labels = class_sequence(np.ones(2, int) if counts is None else counts, 2000)
        distances[rule] = frechet_distance(real, fit_gaussian(samples(labels, 5)))
    assert distances["reference"] < 0.5
    assert distances["uniform"] > 10


@pytest.mark.parametrize(
    ("known", "note"), [(None, "holds no class counts"), ([5, 5, 5], "counts 3 classes, unlike the model")]
)
def test_statistics_without_class_counts_give_a_note(known, note):
    found = ClassProportions(2, known=None if known is None else np.array(known))
    assert found.counts is None
    assert note in found.notes()[0]


def test_a_class_that_the_reference_lacks_is_not_generated():
    found = ClassProportions(3, known=np.array([4, 2]))
    assert found.counts.tolist() == [2, 1, 0]
    assert found.notes() == []
    report = found.report(np.array([0, 0, 1]))
    assert report == {"proportions": "reference", "generated": [2, 1, 0], "reference": [4, 2]}
    assert ClassProportions(0, known=np.array([4, 2])).report(None) is None
