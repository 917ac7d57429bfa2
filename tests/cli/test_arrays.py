"""Images that are not 8-bit RGB: uint16 and floats, of any number of channels, in training, sampling and evaluation."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import config_validation, evaluation_config
from ddpm_jax.cli import common, compute_stats, evaluate, sample, train
from ddpm_jax.configs import digits
from ddpm_jax.data.source import ArraySource
from ddpm_jax.user_messages import UsageError

SHAPE = (8, 16, 4)


def own_set(split, *, levels=()):
    """A data set of the user's own: floats."""
    images = np.random.default_rng(0).uniform(-3, 5, (12, 8, 16, 2)).astype(np.float32)
    return ArraySource(images, name="own", split=split, value_range=levels)


@pytest.fixture
def array_config(tmp_path, tiny_config):
    """Fields -> a tiny config of 12 arrays uint16 [8, 16, 4]."""
    rng = np.random.default_rng(0)
    (tmp_path / "arrays").mkdir()
    for index in range(12):
        np.save(tmp_path / "arrays" / f"{index}.npy", rng.integers(0, 4096, SHAPE, dtype=np.uint16))

    def make(fields=None):
        config = tiny_config()
        config.data.update(name="array_folder", data_dir=str(tmp_path / "arrays"), image_size=SHAPE[:2], channels=4)
        config.data.update(dtype="uint16", value_range=(0.0, 4095.0), num_classes=0, split="train[:8]")
        config.train.update(num_steps=2, sample_every=2)
        config.evaluation.update(features="pixels_16", num_images=8, heldout_split="train[8:]", vlb_num_timesteps=4)
        config.evaluation.update(metrics=("frechet", "bits_per_dim"), hutchinson_samples=1)
        config.update_from_flattened_dict(fields or {})
        return config

    return make


def test_sixteen_bits_and_four_channels(tmp_path, array_config):
    run, config = tmp_path / "run", array_config({"sampling.num_intermediates": 2})
    assert train.run(config, str(run)) == 0
    losses = [json.loads(line)["train/loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(1, abs=0.3)  # of noise: the images are in [-1, 1]
    with Image.open(run / "samples" / "step_00000002.png") as picture:
        assert picture.mode == "RGB"
    assert sample.run(config, str(run)) == 0
    (file,) = run.glob("samples/**/images.npz")
    with np.load(file) as arrays:
        assert arrays["arr_0"].shape == (5, *SHAPE)
        assert {arrays[name].dtype for name in ("arr_0", "x_t", "pred_xstart")} == {np.dtype(np.uint16)}
        assert 255 < arrays["arr_0"].max() <= 4095
    for name in ("grid", "x_t"):
        with Image.open(file.with_name(f"{name}.png")) as picture:
            assert picture.mode == "RGB"
    assert compute_stats.run(config, str(run)) == 0
    assert evaluate.run(config, str(run)) == 0
    report = json.loads((run / "eval" / "step_2.json").read_text())
    assert np.isfinite(report["generated"][0]["frechet"])
    # An untrained network needs about log2(n / 2) bits, the density of noise of variance 1 over n levels, and more.
    (bound,) = report["bits_per_dim"]
    assert 11 < bound["bits_per_dim"] < 40, bound
    with pytest.raises(UsageError, match="modes that start from images need images of 8 bits"):
        common.check_edit(config)


def test_floats_of_a_set_of_ones_own(tmp_path, array_config):
    fields = {"data.name": "tests.cli.test_arrays:own_set", "data.channels": 2, "data.dtype": "float32"}
    config = array_config(fields | {"data.value_range": (-3.0, 5.0), "data.split": "train", "evaluation.heldout_split": ""})
    run = tmp_path / "run"
    assert train.run(config, str(run)) == 0
    with Image.open(run / "samples" / "step_00000002.png") as picture:
        assert picture.mode == "L"  # the first of two channels
    assert sample.run(config, str(run)) == 0
    (file,) = run.glob("samples/**/images.npz")
    with np.load(file) as arrays:
        images = arrays["arr_0"]
    assert (images.dtype, images.shape) == (np.float32, (5, 8, 16, 2))
    assert -3 <= images.min() < 0 < images.max() <= 5
    config.data.dtype = "uint16"
    with pytest.raises(UsageError, match=r"has images of float32: set config\.data\.dtype=float32"):
        train.run(config, str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"data.dtype": "int8"}, r"config\.data\.dtype is 'int8': choose one of uint8, uint16, float32"),
        ({"data.dtype": "float32"}, r"config\.data\.value_range is \(\): floats need"),
        ({"data.dtype": "uint16", "data.value_range": (0.0, 0.5)}, "must be two integers for uint16"),
        ({"data.channels": 4, "data.condition": "gray"}, r"config\.data\.condition needs images of 8 bits"),
        ({"data.channels": 0}, r"config\.data\.channels is 0: it must be above 0"),
        ({"data.channels": 4, "sampling.format": "png"}, r"set config\.sampling\.format=npz"),
        ({"data.dtype": "uint16", "sampling.format": "both"}, r"set config\.sampling\.format=npz"),
        ({"data.channels": 4, "sampling.shown_channels": (0, 1)}, "give one or three channels of 0..3"),
        ({"data.channels": 4, "sampling.shown_channels": (4,)}, "give one or three channels of 0..3"),
    ],
)
def test_invalid_fields(fields, error):
    config = digits.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UsageError, match=error):
        config_validation.check_config(config)


def test_what_cannot_be_evaluated():
    config = digits.get_config()
    config.data.channels = 4
    config.evaluation.update(features="inception", metrics=("frechet",))
    with pytest.raises(UsageError, match="inception, which needs 1 or 3 channels, not 4"):
        evaluation_config.check_evaluation(config)
    config.evaluation.metrics = ("bits_per_dim",)
    evaluation_config.check_evaluation(config)
    config.data.update(dtype="float32", value_range=(0.0, 1.0))
    with pytest.raises(UsageError, match=r"has bits_per_dim, which needs images with discrete levels, .* is float32"):
        evaluation_config.check_evaluation(config)
