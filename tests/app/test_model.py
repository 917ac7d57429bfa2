"""What the page does, without the page: the same images as the Python interface, stages on the way, and errors in a line."""

import dataclasses
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.app import model as model_module
from ddpm_jax.app import pictures
from ddpm_jax.app.controls import EACH_CLASS, NO_CLASS
from ddpm_jax.app.model import Model
from ddpm_jax.cli import common
from ddpm_jax.configs import digits, from_workdir
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError
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
    return dataclasses.replace(model.controls.start, **changes)


def test_the_controls_start_with_the_config(model):
    start = model.controls.start
    assert start == (type(start))(EACH_CLASS, 0, "ddim", 8, "leading", 0.0, 1.0, "ema", 4)
    assert model.controls.has_guidance
    choices = model.controls.choices
    assert choices["sample_label"] == (EACH_CLASS, *map(str, range(10)), NO_CLASS)
    assert choices["edit_label"][0] == NO_CLASS
    assert choices["params"] == ("ema", "raw")
    assert model.title == "run: digits, 8x8x1"


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
    jax.tree.map(np.testing.assert_array_equal, model._run_of("raw", 4).params, expected.params)
    np.testing.assert_array_equal(raw.picture, pictures.grid(expected.sample(2).images))
    ema, raw = (jax.tree.leaves(model._run_of(name, 4).params) for name in ("ema", "raw"))
    assert any((a != b).any() for a, b in zip(ema, raw, strict=True))


def test_every_checkpoint_can_be_chosen(model, views, monkeypatch):
    assert model.steps() == [2, 4]
    model.generate(settings(model, label="3"), 2, views.append)
    monkeypatch.setattr(build, "build_batched_sampler", None)  # all of them use the functions that are compiled
    view = model.generate(settings(model, step=2, label="3"), 2, views.append)
    monkeypatch.undo()
    expected = ddpm_jax.load(model._folder, step=2).sample(2, label=3).images
    np.testing.assert_array_equal(view.picture, pictures.grid(expected))
    assert "step=2" in view.call
    assert (expected != model.run.sample(2, label=3).images).any()
    with pytest.raises(ExpectedError, match=r"no checkpoint of step 3 .* there are 2, 4"):
        model.generate(settings(model, step=3), 2, views.append)


def test_a_checkpoint_that_is_deleted_while_the_run_is_trained(model, tmp_path, views, monkeypatch):
    """The page keeps what it started with, whatever else was used, and knows the new ones."""
    monkeypatch.setattr(model_module, "MAX_RUNS", 2)
    folder = tmp_path / "run"
    shutil.copytree(model._folder, folder)
    other = Model(from_workdir.get_config(folder), *common.open_run(from_workdir.get_config(folder), str(folder), ""))
    for changes in ({"params": "raw"}, {"step": 2}):
        other.generate(settings(other, **changes), 1, views.append)
    assert len(other._runs) == 2
    shutil.move(folder / "checkpoints" / "4", folder / "checkpoints" / "6")
    assert other.steps() == [2, 6]
    kept = other.generate(settings(other, label="3"), 2, views.append)
    np.testing.assert_array_equal(kept.picture, model.generate(settings(model, label="3"), 2, views.append).picture)
    with pytest.raises(ExpectedError, match=r"no checkpoint of step 4 .* there are 2, 6"):
        other.generate(settings(other, params="raw"), 1, views.append)
    shutil.rmtree(folder)
    assert other.steps() == []
    assert other.generate(settings(other), 1, views.append).picture is not None


def test_samplers_get_the_same_number_of_evaluations(model, views, monkeypatch):
    view = model.compare(settings(model), ["ddim", "heun", "ode"], 9, 2, views.append)
    rows = {row[0]: row[1:] for row in view.table}
    assert rows["ddim"][:2] == ["9", "9"]
    assert rows["heun"][:2] == ["5", "9"]
    assert int(rows["ode"][1]) <= 9
    monkeypatch.setattr(type(model.run), "nfe", lambda run, *, sampler, num_steps, **more: 2 if sampler == "ode" else num_steps)
    few = model.compare(settings(model), ["ode", "ddim"], 1, 2, views.append)
    assert [row[:3] for row in few.table] == [["ode", "-", "-"], ["ddim", "1", "1"]]
    assert few.table[0][3] == "ode needs more than 1 network evaluations: allow more"
    monkeypatch.undo()
    run = ddpm_jax.load(model._folder)
    first = run.sample(2, sampler="ddim", num_steps=9).images
    np.testing.assert_array_equal(view.picture[16:80, -2 * 80 : -2 * 80 + 64, :1], first[0].repeat(8, 0).repeat(8, 1))
    assert views[0].status.startswith("ddim: step 1 of 9")
    assert run.nfe(sampler="heun", num_steps=5) == 9
    with pytest.raises(ValueError, match="num_steps"):
        run.nfe(num_steps=101)


def test_edits(model, views):
    image, label = model.images.of_data("test", 2)
    mask = np.zeros((8, 8), bool)
    mask[4:] = True
    run = ddpm_jax.load(model._folder)
    view = model.inpaint(settings(model, label="1"), image, mask, 2, 1, views.append)
    filled = run.inpaint(image[None], mask, label=1, samples_per_image=2, resampling=1).images[0]
    np.testing.assert_array_equal(view.picture, pictures.grid(np.concatenate([image[None], filled])))
    assert NO_CLASS not in view.status
    assert label in map(str, range(10))

    view = model.image_to_image(settings(model), image, 0.5, 3, views.append)
    variants = run.image_to_image(image[None], strength=0.5, samples_per_image=3).images[0]
    np.testing.assert_array_equal(view.picture, pictures.grid(np.concatenate([image[None], variants])))
    assert view.status.startswith("the image, and 3 images · no class · ")

    other, _ = model.images.of_data("test", 3)
    view = model.interpolate(settings(model), [image, other], 3, 1, views.append)
    frames = run.interpolate(image, other, num_frames=3, inversion_iters=1).images
    np.testing.assert_array_equal(view.picture, pictures.grid(np.stack([image, *frames, other])))
    assert " · no class · " in view.status
    view = model.interpolate(settings(model), [0, 1], 3, 1, views.append)
    ends = [run.sample(1, seed=seed, label=seed, eta=0.0, guidance_scale=1.0).images[0] for seed in (0, 1)]
    frames = run.interpolate(*ends, label=[0, 1], num_frames=3, inversion_iters=1).images
    np.testing.assert_array_equal(view.picture, pictures.grid(np.stack([ends[0], *frames, ends[1]])))
    assert NO_CLASS not in view.status


def test_a_class_must_be_chosen_if_the_model_knows_no_images_without(model, views, monkeypatch):
    monkeypatch.setattr(model.controls, "has_guidance", False)
    image = np.zeros((8, 8, 1), np.uint8)
    with pytest.raises(InvalidArgumentError, match=r"^choose a class: "):
        model.image_to_image(settings(model), image, 0.5, 1, views.append)
    assert model.interpolate(settings(model), [0, 1], 2, 1, views.append).picture is not None  # of the first two classes


def test_errors_are_one_line(model, views):
    def refused(match, call):
        with pytest.raises((ExpectedError, ValueError), match=match) as caught:
            call()
        assert "\n" not in str(caught.value)

    refused("num_images is 0", lambda: model.generate(settings(model), 0, views.append))
    refused("num_steps", lambda: model.generate(settings(model, num_steps=101), 1, views.append))
    refused("ancestrol", lambda: model.generate(settings(model, sampler="ancestrol"), 1, views.append))
    refused("no sampler", lambda: model.compare(settings(model), [], 9, 2, views.append))
    refused("the image is missing", lambda: model.image_to_image(settings(model), None, 0.5, 1, views.append))
    refused("image 9999 does not exist", lambda: model.images.of_data("", 9999))
    refused(
        "inpainting",
        lambda: model.inpaint(settings(model, sampler="dpmpp_2m"), np.zeros((8, 8, 1), np.uint8), "left", 1, 1, views.append),
    )
    refused("decay_0.5", lambda: model.generate(settings(model, params="decay_0.5"), 1, views.append))
    assert model.generate(settings(model), 1, views.append).picture is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", "11"),
        ("label", 3),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", float("nan")),
        ("num_steps", 0),
        ("num_steps", float("inf")),
        ("num_steps", 2.5),
        ("num_steps", "8"),
        ("spacing", "os:environ"),
        ("eta", float("nan")),
        ("eta", 1e30),
        ("guidance_scale", -0.5),
        ("guidance_scale", True),
        ("params", "../ema"),
        ("params", "power_0.1"),  # which the run does not have
        ("params", ["ema"]),
        ("step", "4"),
        ("step", -1),
    ],
)
def test_values_that_no_control_offers_are_refused(model, name, value):
    with pytest.raises(InvalidArgumentError) as caught:
        model.generate(settings(model, **{name: value}), 1, None)
    assert str(caught.value).startswith({"label": "the class"}.get(name, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("num_images is 65", lambda model, start: model.generate(start, 65, None)),
        ("num_images is 17", lambda model, start: model.compare(start, ["ddim"], 9, 17, None)),
        ("nfe is 101", lambda model, start: model.compare(start, ["ddim"], 101, 1, None)),
        ("sampler is 'os:environ'", lambda model, start: model.compare(start, ["ddim", "os:environ"], 9, 1, None)),
        ("no sampler is chosen", lambda model, start: model.compare(start, "ddim", 9, 1, None)),
        ("mask is 'os:environ'", lambda model, start: model.inpaint(start, None, "os:environ", 1, 1, None)),
        ("resampling is 21", lambda model, start: model.inpaint(start, None, "left", 1, 21, None)),
        ("samples_per_image is 17", lambda model, start: model.image_to_image(start, None, 0.5, 17, None)),
        ("strength is nan", lambda model, start: model.image_to_image(start, None, float("nan"), 1, None)),
        ("num_frames is 26", lambda model, start: model.interpolate(start, [0, 1], 26, 1, None)),
        ("inversion_iters is 0", lambda model, start: model.interpolate(start, [0, 1], 3, 0, None)),
        ("seed is -1", lambda model, start: model.interpolate(start, [0, -1], 3, 1, None)),
        ("the split is '../../etc'", lambda model, start: model.images.of_data("../../etc", 0)),
        ("the index of the image is nan", lambda model, start: model.images.of_data("", float("nan"))),
    ],
)
def test_arguments_that_no_control_offers_are_refused(model, match, call):
    with pytest.raises(InvalidArgumentError, match=match):
        call(model, model.controls.start)


def test_a_request_cannot_import_a_module(model, monkeypatch):
    called = []
    monkeypatch.setitem(sys.modules, "other_module", types.SimpleNamespace(make=lambda *given, **more: called.append(given)))
    for name in ("other_module:make", "other_module:missing", "os:environ"):
        with pytest.raises(InvalidArgumentError, match=f"sampler is '{name}': choose one of") as caught:
            model.generate(settings(model, sampler=name), 1, None)
        assert "PATH" not in str(caught.value)
    assert called == []


def test_the_value_of_an_attribute_is_in_no_error(model, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    with pytest.raises(ValueError, match="environ is of type _Environ: a function or class is required") as caught:
        model.run.sample(1, sampler="os:environ")
    assert "hidden" not in str(caught.value)


def test_the_calls_make_the_images_again(model, tmp_path, views):
    """Whatever the command line changed: the checkpoint, options of samplers, the class."""
    config = from_workdir.get_config(model._folder)
    changes = {"checkpoint_step": 2, "heun.churn": 5.0, "guidance_interval": (0.0, 0.5), "guidance_scale": 2.0, "label": 4}
    config.update_from_flattened_dict({f"sampling.{name}": value for name, value in changes.items()})
    config.update_from_flattened_dict({"edit.jump_length": 2, "diffusion.clip_denoised": False})
    other = Model(config, model._folder, model._mesh)
    assert other.run.step == 2

    def again(view, **arrays):
        """Run the lines, with arrays for those that only the user has."""
        names = {"ddpm_jax": ddpm_jax}
        for line in view.call.split("\n"):
            name, equals, value = line.partition(" = ")
            if line.startswith("#"):
                assert line == "# the page has --config.diffusion.clip_denoised=False; this has the setting of the run"
            elif value.startswith("..."):
                array = arrays.pop(name)
                assert value.startswith(f"...  # {array.dtype} {list(array.shape)}")
                names[name] = array
            elif equals and name.isidentifier():
                exec(line, names)
                if name == "run":
                    assert names["run"].step == other.run.step
                    names["run"] = _with_clipping(names["run"], clip=False)
            else:
                found = eval(line, names).images
        assert not arrays
        return found, names

    heun = settings(other, sampler="heun", label="3", num_steps=4)
    view = other.generate(heun, 2, views.append)
    assert "heun" in view.call
    assert "churn=5.0" in view.call
    np.testing.assert_array_equal(view.picture, pictures.grid(again(view)[0]))
    every = other.generate(settings(other, label=EACH_CLASS), 2, views.append)
    assert "row by row: 0, 1" in every.status
    np.testing.assert_array_equal(every.picture, pictures.grid(again(every)[0]))

    nothing = other.generate(settings(other, label=NO_CLASS), 1, views.append)
    assert "guidance_scale=0.0, guidance_interval=(0.0, 1.0)" in nothing.call

    image, mask = np.arange(64, dtype=np.uint8).reshape(8, 8, 1), np.tri(8, dtype=bool)
    view = other.inpaint(settings(other), image, mask, 1, 2, views.append)
    assert "jump_length=2" in view.call
    filled = again(view, images=image[None], mask=mask)[0][0]
    np.testing.assert_array_equal(view.picture, pictures.grid(np.concatenate([image[None], filled])))
    view = other.interpolate(settings(other, label=EACH_CLASS), [3, image], 3, 1, views.append)
    assert [line.partition(" = ")[0] for line in view.call.split("\n")[2:4]] == ["a", "b"]
    frames, names = again(view, b=image)
    np.testing.assert_array_equal(view.picture, pictures.grid(np.stack([names["a"], *frames, image])))


def _with_clipping(run, clip):
    config = ConfigDict(run.config)
    config.diffusion.clip_denoised = clip
    return type(run)(config, run.workdir, run.params, run.step, run._mesh, run._identity)
