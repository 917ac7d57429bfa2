"""Choices of config.evaluation: held-out images by their pixels, not by the name of their split, and valid features."""

import importlib
import pathlib

import numpy as np
import pytest

from ddpm_jax import build, data_config
from ddpm_jax.configs import digits, image_folder
from ddpm_jax.data import identity
from ddpm_jax.data.source import ArraySource, NoSuchSplit
from ddpm_jax.evaluation import reference
from ddpm_jax.evaluation_config import check_evaluation, find_held_out, metrics_of
from ddpm_jax.metrics import features
from ddpm_jax.runtime.errors import InvalidArgumentError
from ddpm_jax.user_messages import UsageError

CONFIGS = sorted(pathlib.Path(digits.__file__).parent.glob("*.py"))
SHIPPED = [file.stem for file in CONFIGS if file.stem not in ("__init__", "defaults", "from_workdir")]


def source(images, split):
    return ArraySource(images, name="set", split=split, fingerprint=identity.arrays_fingerprint(images, None))


def sets(monkeypatch, **splits):
    """Replace any data set by one with these splits, uint8 [N, 4, 4, 1]."""

    def build_source(config):
        if config.data.split not in splits:
            raise NoSuchSplit(f"the set has no split {config.data.split!r}")
        return source(splits[config.data.split], config.data.split)

    monkeypatch.setattr(data_config, "load_source", build_source)


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)


def _check_features(config):
    extractor = features.make_extractor(config.evaluation.features)
    reference.check_features(extractor, build.image_shape(config), config.evaluation.metrics)


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
def test_training_images_are_not_held_out(monkeypatch, held_out, match):
    sets(monkeypatch, train=images(20), other=held_out)
    match = rf"heldout_split is 'other', but {match}.*config\.data\.split='train\[:90%\]'"
    with pytest.raises(InvalidArgumentError, match=match) as caught:
        find_held_out(config_of(heldout_split="other"))
    assert "\n" not in str(caught.value)


def test_a_few_common_images_give_a_note(monkeypatch):
    sets(monkeypatch, train=images(200), test=np.concatenate([images(200)[:3], images(97, 1)]))
    found = find_held_out(config_of())
    assert (found.source.split, len(found.source), found.in_reference) == ("test", 100, False)
    assert found.notes == ["3 of the 100 images of set test are also among the training images (config.data.split='train')"]


def test_a_changed_training_set_gives_a_note(monkeypatch):
    """A slice of a folder that has grown holds other images; the model may have been trained on some of them."""
    sets(monkeypatch, train=images(20), test=images(9, 1))
    now = identity.identity_of(source(images(20), "train"))
    assert find_held_out(config_of(), now).notes == []
    (note,) = find_held_out(config_of(), now | {"fingerprint": "another", "count": 18}).notes
    assert "set has changed since the model was trained on it (18 images before, 20 now" in note
    assert note.endswith("it may have been trained on images that are now held out")


def test_auto_uses_any_split_that_exists(monkeypatch):
    sets(monkeypatch, train=images(20), validation=images(9, 1))
    assert find_held_out(config_of()).source.split == "validation"
    sets(monkeypatch, train=images(20), test=images(20))
    found = find_held_out(config_of())
    assert found.source is None
    assert "they are not held out" in found.notes[0]
    sets(monkeypatch, train=images(20))
    found = find_held_out(config_of())
    assert found.source is None
    assert metrics_of(config_of(), found) == ("frechet", "kid", "precision_recall")
    with pytest.raises(UsageError, match="bits/dim needs images that were not trained on"):
        metrics_of(config_of(metrics=("bits_per_dim",)), found)
    with pytest.raises(
        InvalidArgumentError, match=r"config\.evaluation\.heldout_split is 'test': the set has no split 'test'; use auto"
    ):
        find_held_out(config_of(heldout_split="test"))


def test_held_out_images_that_are_the_reference_have_no_scores(monkeypatch):
    sets(monkeypatch, train=images(20), test=images(9, 1))
    found = find_held_out(config_of(split="test"))
    assert found.in_reference
    assert "scoring it against itself is meaningless" in found.notes[0]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "validation")], ids="-".join)
def test_each_shipped_config_can_be_evaluated(monkeypatch, name, splits):
    """On a tiny replacement of its data set: the checks pass and the features are not too many."""
    config = importlib.import_module(f"ddpm_jax.configs.{name}").get_config()
    held = {split: images(12, seed) for seed, split in enumerate(splits)}
    if name != "digits" and config.evaluation.heldout_split != "auto":
        held[config.evaluation.heldout_split] = images(5, 9)
    sets(monkeypatch, **held)
    check_evaluation(config)
    found = find_held_out(config)
    wanted = metrics_of(config, found)
    assert "frechet" in wanted
    assert ("bits_per_dim" in wanted) == (found.source is not None and "bits_per_dim" in config.evaluation.metrics)
    if config.evaluation.features != "inception":  # always 2,048; the weights are not available
        _check_features(config)


def test_too_many_pixel_features_are_an_error():
    config = config_of(features="pixels")
    config.data.image_size = 256
    with pytest.raises(InvalidArgumentError, match=r"has 196,608 features for an image of 256x256x3: .* pixels_16"):
        _check_features(config)
