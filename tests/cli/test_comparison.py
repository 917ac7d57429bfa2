"""Reference statistics record their data set, and comparisons with them give the corresponding notes."""

import numpy as np
import pytest

from ddpm_jax import data_config, evaluation_config
from ddpm_jax.cli import compute_stats
from ddpm_jax.data import identity
from ddpm_jax.data.source import ArraySource
from ddpm_jax.evaluation import sample_metrics
from ddpm_jax.runtime.errors import InvalidDataError
from ddpm_jax.runtime.mesh import make_mesh
from ddpm_jax.user_messages import UserError

FIELDS = {
    "model.class_conditional": True,
    "data.num_classes": 2,
    "evaluation.features": "pixels",
    "evaluation.metrics": ("kid", "precision_recall"),
    "evaluation.num_images": 8,
    "evaluation.batch_size": 8,
}


@pytest.fixture
def flowers(monkeypatch):
    """12 images in two classes, 9 and 3, one of them a duplicate; replaces the data set of every config."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    images[5] = images[2]
    labels = np.repeat([0, 1], [9, 3])
    names, fingerprint = ["daisy", "rose"], identity.arrays_fingerprint(images, labels)
    source = ArraySource(
        images, labels, num_classes=2, class_names=names, fingerprint=fingerprint, name="flowers", split="train"
    )
    monkeypatch.setattr(data_config, "load_source", lambda config: source)
    return source


@pytest.fixture
def file(flowers, tiny_config, tmp_path):
    """Their statistics, by --mode=compute_stats."""
    assert compute_stats.run(tiny_config(FIELDS), str(tmp_path), output=str(tmp_path / "flowers.npz")) == 0
    return tmp_path / "flowers.npz"


@pytest.fixture
def compare(file, tiny_config):
    """(identity of the training set, fields) -> scorer that compares with the file."""

    def make(trained_on, fields=None):
        config = tiny_config(FIELDS | {"evaluation.reference": str(file)} | (fields or {}))
        return evaluation_config.build_scorer(config, make_mesh(), None, trained_on)

    return make


def test_duplicates_give_a_note_if_they_affect_the_metrics(compare, flowers):
    trained_on = identity.identity_of(flowers)
    scorer = compare(trained_on)
    repeated = "1 of the 12 reference images are duplicates: this lowers precision and recall and raises kid"
    assert repeated in scorer.notes(8)
    assert scorer.reference.provenance["repeated_images"] == 1
    assert repeated not in compare(trained_on, {"evaluation.metrics": ("frechet",)}).notes(8)
    images = flowers.batch(np.arange(12))["image"]
    assert scorer.of_images(images)["repeated"] == 1
    assert "repeated" not in scorer.of_images(np.delete(images, 5, axis=0))


def test_kid_has_the_argument_order_of_torch_fidelity(compare, flowers, monkeypatch):
    """(generated, reference): the random subsets, and so the result, depend on this order."""
    counts, measure = [], sample_metrics.kernel_distance
    monkeypatch.setattr(
        sample_metrics, "kernel_distance", lambda *sets: counts.append([len(x) for x in sets]) or measure(*sets)
    )
    compare(None).of_images(flowers.batch(np.arange(8))["image"])
    assert counts == [[8, 12]]


def test_statistics_of_other_images_than_the_training_set_give_a_note(compare, flowers):
    trained_on = identity.identity_of(flowers)
    about = "the reference images differ from the training images"
    assert not any(about in note for note in compare(trained_on).notes(8))
    changed = compare(trained_on | {"fingerprint": "another", "count": 11})
    (note,) = [note for note in changed.notes(8) if about in note]
    assert "11 images before, 12 now" in note
    part = trained_on | {"fingerprint": "another", "split": "train[:90%]"}  # intentionally different
    of_folder = "the reference images are from flowers, the training images from trees"
    assert not any(about in note or of_folder in note for note in compare(part).notes(8))
    assert of_folder in compare(part | {"name": "trees"}).notes(8)


def test_statistics_of_other_classes_are_an_error(compare, flowers):
    renamed = identity.identity_of(flowers) | {"class_names": ["daisy", "tulip"]}
    with pytest.raises(
        InvalidDataError, match=r"images of other classes than .* \(no longer there: tulip; new: rose\)"
    ) as caught:
        compare(renamed)
    assert "\n" not in str(caught.value)
    compare(renamed, {"model.class_conditional": False})  # classes do not matter


def test_statistics_record_the_class_proportions(compare, flowers):
    scorer = compare(identity.identity_of(flowers))
    assert scorer.classes.counts.tolist() == [3, 1]
    assert compare(None, {"evaluation.class_proportions": "uniform"}).classes.counts is None


def test_statistics_are_overwritten_only_by_the_same_ones(file, tiny_config):
    before = file.read_bytes()
    with pytest.raises(UserError, match=r'split is "train", wanted "test".*it was not overwritten: choose another --output'):
        compute_stats.run(tiny_config(FIELDS | {"evaluation.split": "test"}), str(file.parent), output=str(file))
    assert file.read_bytes() == before
    assert compute_stats.run(tiny_config(FIELDS), str(file.parent), output=str(file)) == 0
