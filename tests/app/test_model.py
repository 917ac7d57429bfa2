"""What the page does, without the page: the same images as the Python interface, stages on the way, and errors in a line."""

import dataclasses

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.app import pictures
from ddpm_jax.app.model import EACH_CLASS, NO_CLASS, Model
from ddpm_jax.cli import common
from ddpm_jax.configs import digits, from_workdir
from ddpm_jax.runtime.errors import ExpectedError
from tests.test_api import TINY

FIELDS = TINY | {
    "diffusion.num_timesteps": 100,
    "sampling.num_steps": 8,
    "model.class_conditional": True,
    "model.label_dropout": 0.1,
    "edit.resampling": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app") / "run"
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS)
    ddpm_jax.train(config, folder)
    config = from_workdir.get_config(folder)
    run_folder, mesh = common.open_run(config, str(folder), "")
    return Model(config, run_folder, mesh)


@pytest.fixture
def views():
    return []


def settings(model, **changes):
    return dataclasses.replace(model.start, **changes)


def test_the_controls_start_with_the_config(model):
    start = model.start
    assert start == (type(start))(EACH_CLASS, 0, "ddim", 8, "leading", 0.0, 1.0, "ema")
    assert model.has_guidance
    choices = model.choices
    assert choices["sample_label"] == (EACH_CLASS, *map(str, range(10)), NO_CLASS)
    assert choices["edit_label"][0] == NO_CLASS
    assert choices["params"] == ("ema", "raw")
    assert "digits, 8x8x1, step 4" in model.title


def test_generated_images_are_those_of_the_run(model, views):
    view = model.generate(settings(model, label="3", seed=5, guidance_scale=2.0), 4, views.append)
    run = ddpm_jax.load(model._folder)
    expected = run.sample(4, label=3, seed=5, guidance_scale=2.0).images
    np.testing.assert_array_equal(view.picture, pictures.grid(expected))
    assert [view.status.split(" · ")[0] for view in views] == [f"step {step} of 8" for step in range(1, 9)]
    assert "8 network evaluations each x 2 of guidance" in view.status
    assert (views[0].picture != views[0].predicted).any()
    np.testing.assert_array_equal(views[-1].picture, view.picture)
    load, call = view.call.split("\n")
    names = {"ddpm_jax": ddpm_jax}
    exec(load, names)
    np.testing.assert_array_equal(eval(call, names).images, expected)


def test_classes_and_parameters(model, views):
    assert "row by row: 0, 1, 2" in model.generate(settings(model), 3, views.append).status
    nothing = model.generate(settings(model, label=NO_CLASS), 2, views.append)
    assert "guidance_scale=0.0" in nothing.call
    raw = model.generate(settings(model, params="raw"), 2, views.append)
    assert "params='raw'" in raw.call
    expected = ddpm_jax.load(model._folder, params="raw")
    jax.tree.map(np.testing.assert_array_equal, model._run_of("raw").params, expected.params)
    np.testing.assert_array_equal(raw.picture, pictures.grid(expected.sample(2).images))
    ema, raw = (jax.tree.leaves(model._run_of(name).params) for name in ("ema", "raw"))
    assert any((a != b).any() for a, b in zip(ema, raw, strict=True))


def test_samplers_get_the_same_number_of_evaluations(model, views):
    view = model.compare(settings(model), ["ddim", "heun", "ode", "nothing"], 9, 2, views.append)
    rows = {row[0]: row[1:] for row in view.table}
    assert rows["ddim"][:2] == ["9", "9"]
    assert rows["heun"][:2] == ["5", "9"]
    assert int(rows["ode"][1]) <= 9
    assert "nothing" in rows["nothing"][2]
    assert rows["nothing"][0] == "-"
    run = ddpm_jax.load(model._folder)
    first = run.sample(2, sampler="ddim", num_steps=9).images
    np.testing.assert_array_equal(view.picture[16:80, -2 * 80 : -2 * 80 + 64, :1], first[0].repeat(8, 0).repeat(8, 1))
    assert views[0].status.startswith("ddim: step 1 of 9")
    assert run.nfe(sampler="heun", num_steps=5) == 9
    with pytest.raises(ValueError, match="num_steps"):
        run.nfe(num_steps=101)


def test_edits(model, views):
    image, label = model.data_image("test", 2)
    mask = np.zeros((8, 8), bool)
    mask[4:] = True
    run = ddpm_jax.load(model._folder)
    view = model.inpaint(settings(model, label="1"), image, mask, 2, 1, views.append)
    filled = run.inpaint(image[None], mask, label=1, samples_per_image=2, resampling=1).images[0]
    np.testing.assert_array_equal(view.picture, pictures.grid(np.concatenate([image[None], filled])))
    assert label in map(str, range(10))

    view = model.image_to_image(settings(model), image, 0.5, 3, views.append)
    variants = run.image_to_image(image[None], strength=0.5, samples_per_image=3).images[0]
    np.testing.assert_array_equal(view.picture, pictures.grid(np.concatenate([image[None], variants])))

    other, _ = model.data_image("test", 3)
    view = model.interpolate(settings(model), [image, other], 3, 1, views.append)
    frames = run.interpolate(image, other, num_frames=3, inversion_iters=1).images
    np.testing.assert_array_equal(view.picture, pictures.grid(np.stack([image, *frames, other])))
    view = model.interpolate(settings(model), [0, 1], 3, 1, views.append)
    ends = [run.sample(1, seed=seed, label=seed, eta=0.0, guidance_scale=1.0).images[0] for seed in (0, 1)]
    frames = run.interpolate(*ends, label=[0, 1], num_frames=3, inversion_iters=1).images
    np.testing.assert_array_equal(view.picture, pictures.grid(np.stack([ends[0], *frames, ends[1]])))


def test_errors_are_one_line(model, views):
    def refused(match, call):
        with pytest.raises((ExpectedError, ValueError), match=match) as caught:
            call()
        assert "\n" not in str(caught.value)

    refused("number of images is 0", lambda: model.generate(settings(model), 0, views.append))
    refused("num_steps", lambda: model.generate(settings(model, num_steps=101), 1, views.append))
    refused("ancestrol", lambda: model.generate(settings(model, sampler="ancestrol"), 1, views.append))
    refused("no sampler", lambda: model.compare(settings(model), [], 9, 2, views.append))
    refused("the image is missing", lambda: model.image_to_image(settings(model), None, 0.5, 1, views.append))
    refused("image 9999 does not exist", lambda: model.data_image("", 9999))
    refused(
        "inpainting",
        lambda: model.inpaint(settings(model, sampler="dpmpp_2m"), np.zeros((8, 8, 1), np.uint8), "left", 1, 1, views.append),
    )
    refused("decay_0.5", lambda: model.generate(settings(model, params="decay_0.5"), 1, views.append))
    assert model.generate(settings(model), 1, views.append).picture is not None
