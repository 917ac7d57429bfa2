"""Several evaluations in one folder keep all results; the cache of images is named after its settings."""

import json

import numpy as np
import pytest

from ddpm_jax import evaluation_config, sampling_config
from ddpm_jax.cli import evaluate
from ddpm_jax.runtime.errors import CheckpointError

NETWORK = "tests.small_network:Small"

TRAINED = {
    "model.class_conditional": True,
    "evaluation.num_images": 12,
    "evaluation.batch_size": 16,
    "evaluation.num_heldout_images": 8,
    "evaluation.vlb_num_timesteps": 4,
}


def test_two_evaluations_of_one_checkpoint_keep_both(trained, tiny_config, tmp_path):
    """Other metrics, counts and decoders add results; a repeated one replaces only itself."""

    def measure(**fields):
        config = tiny_config(TRAINED | {f"evaluation.{name}": value for name, value in fields.items()})
        assert evaluate.run(config, str(trained), output=str(tmp_path)) == 0
        return json.loads((tmp_path / "step_6.json").read_text())

    first = measure(metrics=("frechet", "bits_per_dim"))
    files = {file.name: file.read_bytes() for file in (tmp_path / "results").glob("step_*")}
    second = measure(metrics=("kid", "bits_per_dim"), vlb_decoder="tanh")
    third = measure(metrics=("frechet",), num_images=20)
    assert all((tmp_path / "results" / name).read_bytes() == content for name, content in files.items())
    (row,) = second["generated"]
    assert row["frechet"] == first["generated"][0]["frechet"]
    assert "kid" in row
    assert sorted(row["count"] for row in third["generated"]) == [12, 20]
    exact, tanh = sorted(third["bits_per_dim"], key=lambda row: row["decoder"])
    assert exact["bits_per_dim"] == first["bits_per_dim"][0]["bits_per_dim"]
    assert (exact["decoder"], tanh["decoder"]) == ("exact", "tanh")
    assert exact["rate"] == tanh["rate"]
    assert exact["distortion_bits"] != tanh["distortion_bits"]
    table = (tmp_path / "table.md").read_text()
    assert table.count("| generated |") == 2
    assert "| decoder |" in table.splitlines()[0]
    again = measure(metrics=("frechet",), num_images=20)
    assert len(again["generated"]) == 2
    classes = again["generated"][0]["classes"]
    assert classes["proportions"] == "reference"
    assert sum(classes["reference"]) == 1500


def test_a_missing_checkpoint_is_an_error_before_images_are_read(trained, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_config, "find_held_out", None)
    with pytest.raises(
        CheckpointError, match=r"checkpoint_steps names 5, but there is no such checkpoint in .*there are 2, 4, 6"
    ):
        evaluate.run(tiny_config(TRAINED | {"evaluation.checkpoint_steps": (6, 5)}), str(trained), output=str(tmp_path))


def test_the_cache_name_depends_on_the_classes(tiny_config):
    config, trained = tiny_config(TRAINED), tiny_config(TRAINED).to_dict()
    even = sampling_config.cache_identity(config, trained, 6, "ab", None)
    assert sampling_config.cache_identity(config, trained, 6, "ab", np.full(10, 3)) == even
    uneven = sampling_config.cache_identity(config, trained, 6, "ab", np.arange(10))
    assert uneven["class_counts"] == list(range(10))
    assert sampling_config.cache_name(config, uneven) != sampling_config.cache_name(config, even)
    config.diffusion.clip_denoised = False  # may differ from the training config and affects the images
    changed = sampling_config.cache_identity(config, trained, 6, "ab", None)
    assert changed == even | {"diffusion.clip_denoised": False}
    assert sampling_config.cache_name(config, changed) != sampling_config.cache_name(config, even)
