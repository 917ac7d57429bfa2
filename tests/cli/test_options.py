"""Many options with values other than their defaults in one run, on real images if available."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import sample, train

OTHERS = {
    "model.dtype": "bfloat16",
    "model.unet.remat": True,
    "model.unet.dropout": 0.2,
    "model.class_conditional": True,
    "diffusion.schedule": "sigmoid",
    "diffusion.prediction": "v",
    "diffusion.variance": "fixed_small",
    "diffusion.clip_denoised": False,
    "optimizer.clip_norm": 0.0,
    "optimizer.accumulation_steps": 2,
    "train.batch_size": 16,
    "train.num_steps": 3,
    "train.log_every": 1,
    "sampling.sampler": "ancestral",
    "sampling.spacing": "quadratic",
}


@pytest.fixture
def images(real_data):
    """Fields of a local color data set; none if it is missing, for the digits."""
    if real_data is None:
        return {}
    return {
        "data.name": "cifar10",
        "data.split": "train[:200]",
        "data.data_dir": str(real_data / "tfds"),
        "data.image_size": 8,
        "data.channels": 3,
        "data.random_flip": True,
        "data.in_memory": "never",
    }


def test_options_work_together(tmp_path, tiny_config, metrics, images):
    config = tiny_config(OTHERS | images)
    assert train.run(config, str(tmp_path)) == 0
    losses = [row["train/loss"] for row in metrics(tmp_path)]
    assert len(losses) == 3
    assert all(0.5 < loss < 2 for loss in losses)  # v at initialization: between the mean square of image and noise
    assert sample.run(config, str(tmp_path), output=str(tmp_path / "out")) == 0
    with np.load(tmp_path / "out" / "images.npz") as arrays:
        assert arrays["arr_0"].shape == (5, config.data.image_size, config.data.image_size, config.data.channels)
    with Image.open(tmp_path / "out" / "grid.png") as picture:
        assert picture.mode == ("RGB" if images else "L")
