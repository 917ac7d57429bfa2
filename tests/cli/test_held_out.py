"""Images are held out by their pixels, not by the name of their split; each shipped config can be evaluated."""

import pathlib

import numpy as np
import pytest

from configs import digits, image_folder
from ddpm_jax.cli import compute_stats, evaluate, sample_metrics
from ddpm_jax.cli.held_out import find_held_out
from ddpm_jax.data import identity
from ddpm_jax.data.source import ArraySource, NoSuchSplit
from ddpm_jax.metrics import features
from ddpm_jax.user_messages import UsageError

CONFIGS = sorted(pathlib.Path(digits.__file__).parent.glob("*.py"))
SHIPPED = [file.stem for file in CONFIGS if file.stem not in ("__init__", "defaults", "from_workdir")]


def source(images, split):
    return ArraySource(images, name="set", split=split, fingerprint=identity.arrays_fingerprint(images, None))


def sets(monkeypatch, **splits):
    """A stand-in for any data set: its splits are these images, uint8 [N, 4, 4, 1]."""

    def build_source(config):
        if config.data.split not in splits:
            raise NoSuchSplit(f"the set has no split {config.data.split!r}")
        return source(splits[config.data.split], config.data.split)

    monkeypatch.setattr(compute_stats.build, "build_source", build_source)


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)


def config_of(**evaluation):
    config = image_folder.get_config()
    config.evaluation.update(evaluation)
    return config


@pytest.mark.parametrize(
    ("held_out", "match"),
    [
        (images(20), "20 of the 20 images of set other are among the training images"),
        (images(20)[5:9], "4 of the 4 images"),
        (np.concatenate([images(20), images(300, 1)]), "20 of the 320 images"),  # contains the training set
        (np.concatenate([images(20)[:4], images(6, 1)]), "4 of the 10 images"),  # slices that overlap
    ],
    ids=["the set itself", "a slice", "contains it", "overlaps"],
)
def test_what_was_trained_on_is_not_held_out(monkeypatch, held_out, match):
    sets(monkeypatch, train=images(20), other=held_out)
    match = rf"heldout_split is 'other', but {match}.*config\.data\.split='train\[:90%\]'"
    with pytest.raises(UsageError, match=match) as caught:
        find_held_out(config_of(heldout_split="other"))
    assert "\n" not in str(caught.value)


def test_a_few_images_in_both_are_noted_with_their_number(monkeypatch):
    sets(monkeypatch, train=images(200), test=np.concatenate([images(200)[:3], images(97, 1)]))
    found = find_held_out(config_of())
    assert (found.source.split, len(found.source), found.in_reference) == ("test", 100, False)
    assert found.notes == ["3 of the 100 images of set test are also among the training images (config.data.split='train')"]


def test_a_training_set_that_has_changed_is_noted(monkeypatch):
    """A slice of a folder that has grown since holds other images, some of which the model may know."""
    sets(monkeypatch, train=images(20), test=images(9, 1))
    now = identity.identity_of(source(images(20), "train"))
    assert find_held_out(config_of(), now).notes == []
    (note,) = find_held_out(config_of(), now | {"fingerprint": "another", "count": 18}).notes
    assert "set has changed since the model was trained on it (18 images before, 20 now" in note
    assert note.endswith("it may have been trained on images that are held out now")


def test_auto_takes_what_there_is(monkeypatch):
    sets(monkeypatch, train=images(20), validation=images(9, 1))
    assert find_held_out(config_of()).source.split == "validation"
    sets(monkeypatch, train=images(20), test=images(20))
    found = find_held_out(config_of())
    assert found.source is None
    assert "they are not held out" in found.notes[0]
    sets(monkeypatch, train=images(20))
    found = find_held_out(config_of())
    assert found.source is None
    assert evaluate.metrics_of(config_of(), found) == ("frechet", "kid", "precision_recall")
    with pytest.raises(UsageError, match="bits/dim needs images that were not trained on"):
        evaluate.metrics_of(config_of(metrics=("bits_per_dim",)), found)
    with pytest.raises(
        UsageError, match=r"config\.evaluation\.heldout_split is 'test': the set has no split 'test'; auto takes"
    ):
        find_held_out(config_of(heldout_split="test"))


def test_held_out_images_that_are_the_reference_have_no_scores(monkeypatch):
    sets(monkeypatch, train=images(20), test=images(9, 1))
    found = find_held_out(config_of(split="test"))
    assert found.in_reference
    assert "its own scores would say nothing" in found.notes[0]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "validation")], ids="-".join)
def test_each_shipped_config_can_be_evaluated(monkeypatch, name, splits):
    """Its checks, on a tiny stand-in of its set: what can be measured is, through features of which there are not too many."""
    config = getattr(__import__(f"configs.{name}"), name).get_config()
    held = {split: images(12, seed) for seed, split in enumerate(splits)}
    if name != "digits" and config.evaluation.heldout_split != "auto":
        held[config.evaluation.heldout_split] = images(5, 9)
    sets(monkeypatch, **held)
    evaluate.check_evaluation(config)
    found = find_held_out(config)
    wanted = evaluate.metrics_of(config, found)
    assert "frechet" in wanted
    assert ("bits_per_dim" in wanted) == (found.source is not None)
    if config.evaluation.features != "inception":  # 2,048 of any image; its weights are not here
        sample_metrics.check_features(config, features.make_extractor(config.evaluation.features))


def test_features_of_too_many_pixels_are_refused():
    config = config_of(features="pixels")
    config.data.image_size = 256
    with pytest.raises(UsageError, match=r"compares 196,608 numbers of each image of 256x256x3: .* pixels_16"):
        sample_metrics.check_features(config, features.make_extractor("pixels"))
