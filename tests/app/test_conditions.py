"""The page of a model with condition images and without classes: the same images as `Run`, and the conditions shown."""

import dataclasses

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import sampling_conditions
from ddpm_jax.app import pictures
from ddpm_jax.app.model import Model
from ddpm_jax.cli import common
from ddpm_jax.configs import digits, from_workdir
from ddpm_jax.data import load
from ddpm_jax.runtime.errors import UnavailableError
from tests.app.test_model import FIELDS

CONDITIONAL = FIELDS | {"model.class_conditional": False, "data.condition": "downsample", "data.downsample.factor": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app") / "run"
    config = digits.get_config()
    config.update_from_flattened_dict(CONDITIONAL)
    ddpm_jax.train(config, folder)
    config = from_workdir.get_config(folder)
    return Model(config, *common.open_run(config, str(folder), ""))


def test_condition_images_of_the_data_set(model):
    assert model.controls.has_condition
    assert model.controls.has_guidance  # label_dropout drops the condition image
    assert model.controls.classes == ()
    view = model.generate(model.controls.start, 4, lambda view: None)
    run = ddpm_jax.load(model._folder)
    np.testing.assert_array_equal(view.picture, pictures.grid(run.sample(4).images))
    conditions = sampling_conditions.read_conditions(model._config, run.condition, 4).images
    np.testing.assert_array_equal(view.predicted, pictures.grid(conditions))
    assert "condition=" not in view.call


def test_a_condition_image_of_the_user(model):
    condition = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 16
    settings = dataclasses.replace(model.controls.start, guidance_scale=2.0)
    view = model.generate(settings, 3, lambda view: None, condition)
    names = {"ddpm_jax": ddpm_jax, "condition": condition[None]}
    load_line, array, call = view.call.split("\n")
    assert array == "condition = ...  # uint8 [1, 4, 4, 1]"
    exec(load_line, names)
    images = eval(call, names).images
    np.testing.assert_array_equal(view.picture, pictures.grid(images))
    np.testing.assert_array_equal(view.predicted, pictures.grid(condition[None]))
    assert (images != names["run"].sample(3, guidance_scale=2.0).images).any()
    rows = model.compare(settings, ["ddim"], 8, 3, lambda view: None, condition).picture
    first = images[0].repeat(8, 0).repeat(8, 1)[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(rows[..., 0], first.shape)
    assert (windows == first).all(axis=(2, 3)).any()


def test_no_data_set_is_downloaded_for_them(model, monkeypatch):
    monkeypatch.setattr(load, "needs_download", lambda name, folder: True)
    with pytest.raises(UnavailableError, match="is not on this machine"):
        model.generate(model.controls.start, 1, lambda view: None)
