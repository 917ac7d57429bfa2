"""evaluation.features=inception in compute_stats and evaluate."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from benchmarks import random_inception
from ddpm_jax import data_config, evaluation_config
from ddpm_jax.cli import compute_stats
from ddpm_jax.metrics import inception_weights
from ddpm_jax.metrics import reference_stats as reference_file
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import InvalidArgumentError

COUNT = 5


class First:
    """The first images of a source."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return COUNT

    def batch(self, indices):
        return self._source.batch(indices)


@pytest.fixture
def few(monkeypatch):
    build_source = data_config.load_source
    monkeypatch.setattr(data_config, "load_source", lambda *arguments, **options: First(build_source(*arguments, **options)))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Random weights as a converted file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "random.pth"
    file.write_bytes(b"random")
    monkeypatch.setattr(inception_weights, "read_torch_file", lambda file: random_inception.random_state_dict(0))
    inception_weights.load_weights(str(file))
    (converted,) = (tmp_path / "cache/ddpm_jax/inception").iterdir()
    return converted


def test_statistics_of_gray_images_on_eight_devices(tiny_config, tmp_path, few, weights):
    """The file has the expected content, and a run that uses it notes that the distance is not an FID."""
    fields = {"evaluation.features": "inception", "evaluation.inception_path": str(weights), "evaluation.batch_size": 8}
    file = tmp_path / "reference.npz"
    assert compute_stats.run(tiny_config(fields), str(tmp_path / "run"), output=str(file)) == 0
    made = reference_file.load(file)
    assert made.features.shape == (COUNT, 2048)
    assert np.isfinite(made.features).all()
    assert made.provenance["extractor"]["weights_sha256"] == hashlib.sha256(b"random").hexdigest()
    json.dumps(made.provenance)
    comparison = evaluation_config.build_scorer(tiny_config(fields | {"evaluation.reference": str(file)}), meshes.make_mesh())
    note = "weights are not the published ones: the Fréchet distance is not an FID"
    assert any(note in line for line in comparison.notes(COUNT))


def test_missing_weights_are_an_error_before_anything_is_computed(tiny_config, tmp_path):
    fields = {"evaluation.features": "inception", "evaluation.inception_path": str(tmp_path / "nowhere.pth")}
    with pytest.raises(InvalidArgumentError, match=r"no weights at .*nowhere\.pth: give the file pt_inception"):
        compute_stats.run(tiny_config(fields), str(tmp_path))
    with pytest.raises(InvalidArgumentError, match=r"no weights at .*nowhere\.pth: give the file pt_inception"):
        evaluation_config.build_scorer(tiny_config(fields), meshes.make_mesh())
    assert list(pathlib.Path(tmp_path).rglob("*.npz")) == []
