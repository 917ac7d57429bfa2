"""What statistics of real images remember of their set, and what a comparison with them reports because of it."""

import numpy as np
import pytest

from ddpm_jax.cli import compute_stats, sample_metrics
from ddpm_jax.data import identity
from ddpm_jax.data.source import ArraySource
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
    """12 images in two classes, 9 and 3, of which one is a copy; every config reads this set."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    images[5] = images[2]
    labels = np.repeat([0, 1], [9, 3])
    names, fingerprint = ["daisy", "rose"], identity.arrays_fingerprint(images, labels)
    source = ArraySource(
        images, labels, num_classes=2, class_names=names, fingerprint=fingerprint, name="flowers", split="train"
    )
    monkeypatch.setattr(compute_stats.build, "build_source", lambda config, report=print: source)
    return source


@pytest.fixture
def file(flowers, tiny_config, tmp_path):
    """Statistics of them by --mode=compute_stats."""
    assert compute_stats.run(tiny_config(FIELDS), str(tmp_path), output=str(tmp_path / "flowers.npz")) == 0
    return tmp_path / "flowers.npz"


@pytest.fixture
def compare(file, tiny_config):
    """(the set that the run was trained on, fields) -> the comparison with the file."""

    def make(trained_on, fields=None):
        config = tiny_config(FIELDS | {"evaluation.reference": str(file)} | (fields or {}))
        return sample_metrics.SampleScorer(config, make_mesh(), None, trained_on)

    return make


def test_repeated_images_are_noted_where_precision_is_affected(compare, flowers):
    trained_on = identity.identity_of(flowers)
    compared = compare(trained_on)
    repeated = "1 of the 12 reference images are copies of others: this lowers precision and recall and raises kid"
    assert repeated in compared.notes()
    assert compared.reference.provenance["repeated_images"] == 1
    assert repeated not in compare(trained_on, {"evaluation.metrics": ("frechet",)}).notes()
    images = flowers.batch(np.arange(12))["image"]
    assert compared.of_images(images)["repeated"] == 1
    assert "repeated" not in compared.of_images(np.delete(images, 5, axis=0))


def test_kid_compares_in_the_order_of_torch_fidelity(compare, flowers, monkeypatch):
    """(generated, reference): with one seed the subsets are drawn in this order, and the number depends on it."""
    counts, measure = [], sample_metrics.kernel_distance
    monkeypatch.setattr(
        sample_metrics, "kernel_distance", lambda *sets: counts.append([len(x) for x in sets]) or measure(*sets)
    )
    compare(None).of_images(flowers.batch(np.arange(8))["image"])
    assert counts == [[8, 12]]


def test_statistics_of_other_images_than_were_trained_on_are_noted(compare, flowers):
    trained_on = identity.identity_of(flowers)
    about = "the reference images are not those that the model was trained on"
    assert not any(about in note for note in compare(trained_on).notes())
    changed = compare(trained_on | {"fingerprint": "another", "count": 11})
    (note,) = [note for note in changed.notes() if about in note]
    assert "11 images before, 12 now" in note
    part = trained_on | {"fingerprint": "another", "split": "train[:90%]"}  # not the same by intent
    of_folder = "the reference images are of flowers, the model was trained on images of trees"
    assert not any(about in note or of_folder in note for note in compare(part).notes())
    assert of_folder in compare(part | {"name": "trees"}).notes()


def test_statistics_of_other_classes_are_refused(compare, flowers):
    renamed = identity.identity_of(flowers) | {"class_names": ["daisy", "tulip"]}
    with pytest.raises(UserError, match=r"images of other classes than .* \(no longer there: tulip; new: rose\)") as caught:
        compare(renamed)
    assert "\n" not in str(caught.value)
    compare(renamed, {"model.class_conditional": False})  # classes do not matter to it


def test_statistics_remember_the_proportions_of_the_classes(compare, flowers):
    compared = compare(identity.identity_of(flowers))
    assert compared.class_counts.tolist() == [3, 1]
    assert compare(None, {"evaluation.class_proportions": "uniform"}).class_counts is None


def test_statistics_are_replaced_by_the_same_and_by_nothing_else(file, tiny_config):
    before = file.read_bytes()
    with pytest.raises(UserError, match=r'split is "train", wanted "test".*it is not replaced: choose another --output'):
        compute_stats.run(tiny_config(FIELDS | {"evaluation.split": "test"}), str(file.parent), output=str(file))
    assert file.read_bytes() == before
    assert compute_stats.run(tiny_config(FIELDS), str(file.parent), output=str(file)) == 0
