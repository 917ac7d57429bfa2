"""Images that are not square, in every mode: from the flag to the pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build, config_validation
from ddpm_jax.cli import compute_stats, evaluate, inpaint, sample, train, visualize
from ddpm_jax.configs import digits
from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"

SIZE = (8, 16)


@pytest.fixture
def wide_config(tmp_path, tiny_config):
    """Fields -> a tiny config of 12 RGB images whose left half is black and whose right half is bright."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "wide"
    folder.mkdir()
    for index in range(12):
        image = np.zeros((16, 32, 3), np.uint8)
        image[:, 16:] = rng.integers(180, 256, (16, 16, 3))
        Image.fromarray(image).save(folder / f"{index}.png")

    def make(fields=None):
        config = tiny_config()
        config.data.update(name="image_folder", data_dir=str(folder), image_size=SIZE, channels=3, num_classes=0)
        config.data.split = "train[:8]"
        config.model.unet.update(ch_mult=(1, 1), attn_resolutions=(4,))
        config.train.update(num_steps=2, sample_every=2)
        config.evaluation.update(features="pixels_16", num_images=8, heldout_split="train[8:]", vlb_num_timesteps=4)
        config.evaluation.metrics = ("frechet", "bits_per_dim")
        config.update_from_flattened_dict(fields or {})
        return config

    return make


def test_every_mode(tmp_path, wide_config):
    run, config = tmp_path / "run", wide_config()
    assert train.run(config, str(run)) == 0
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"]["image_size"] == [8, 16]
    with Image.open(run / "samples" / "step_00000002.png") as picture:
        assert picture.width > 1.5 * picture.height / 2  # 3 columns and 2 rows of images twice as wide as high
    config.update_from_flattened_dict({"data.image_size": [8, 16]})  # as it is read from config.json
    assert sample.run(config, str(run)) == 0
    (file,) = run.glob("samples/**/images.npz")
    with np.load(file) as arrays:
        assert arrays["arr_0"].shape == (5, 8, 16, 3)
    assert compute_stats.run(config, str(run)) == 0
    config.evaluation.reference = str(run / "eval" / "reference.npz")
    assert evaluate.run(config, str(run)) == 0
    (row,) = json.loads((run / "eval" / "step_2.json").read_text())["generated"]
    assert np.isfinite(row["frechet"])
    config.edit.update(num_images=2, samples_per_image=1, mask="right", resampling=1)
    assert inpaint.run(config, str(run)) == 0
    (file,) = run.glob("samples/inpaint*/images.npz")
    with np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["missing"], np.tile(np.arange(16) >= 8, (8, 1)))
        assert arrays["originals"][:, :, :8].max() < 40  # black, up to the filter at the edge
        assert arrays["images"][:, 0, :, :8].max() < 40  # kept, up to the noise of the last step
    config.visualize.update(num_images=2, num_stages=5)
    assert visualize.run(config, str(run)) == 0
    square = wide_config({"data.image_size": 8, "evaluation.reference": config.evaluation.reference})
    with pytest.raises(ExpectedError, match=r"data\.image_size was \[8, 16\], now 8"):
        evaluate.run(square, str(run))


def test_named_masks():
    mask = {name: inpaint.named_mask(name, (8, 16))[..., 0] for name in inpaint.NAMED_MASKS}
    assert {name: array.sum() for name, array in mask.items()} == dict.fromkeys(mask, 64) | {"center": 32}
    assert mask["left"][:, :8].all()
    assert mask["right"][:, 8:].all()
    assert mask["top"][:4].all()
    assert mask["bottom"][4:].all()
    assert mask["center"][2:6, 4:12].all()


@pytest.mark.parametrize("size", [0, -8, 8.0, "64x96", (8,), (8, 16, 3), (0, 8), (8, 2.5), True])
def test_invalid_sizes(size):
    config = digits.get_config()
    config.data.image_size = size
    with pytest.raises(ValueError, match=r"`image_size` is .*: it must be above 0"):
        config_validation.check_config(config)


def test_sides_that_the_network_cannot_halve():
    config = digits.get_config()
    config.model.unet.update(ch_mult=(1, 2, 2), attn_resolutions=(4,))
    config.data.image_size = (8, 16)
    config_validation.check_config(config)
    assert build.image_shape(config) == (8, 16, 1)
    config.data.image_size = (8, 18)
    with pytest.raises(UsageError, match=r"`image_size` is \(8, 18\), which cannot be halved 2 times"):
        config_validation.check_config(config)
    config.data.image_size = (16, 8)
    config.model.unet.attn_resolutions = (2,)
    with pytest.raises(UsageError, match=r"contains \[2\], but images of \(16, 8\) pixels only have the heights \[16, 8, 4\]"):
        config_validation.check_config(config)
