"""Runs that are conditioned on images: trained, resumed, sampled and evaluated by the program and from Python."""

import json

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import build, condition_config, data_config
from ddpm_jax.cli import evaluate, export, inpaint, sample, train, visualize
from ddpm_jax.configs import from_workdir
from ddpm_jax.data.condition import batch_conditions
from ddpm_jax.metrics.psnr import psnr
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime.errors import ConflictError, InvalidArgumentError, InvalidDataError
from ddpm_jax.sampling_conditions import sampling_inputs
from ddpm_jax.user_messages import UsageError, UserError
from tests.cli.conftest import set_fields

NETWORK = "tests.small_network:Small"
TRAINED = {
    "data.condition": "downsample",
    "data.downsample.factor": 4,
    "data.condition_noise": 0.5,
    "model.class_conditional": True,
    "model.label_dropout": 0.2,
    "optimizer.learning_rate": 0.05,
    "optimizer.warmup_steps": 0,
    "train.num_steps": 3,
    "sampling.format": "npz",
}


def read_config(folder, fields=None):
    return set_fields(from_workdir.get_config(str(folder)), fields or {})


def sampled(folder, output, fields=None):
    """The arrays of --mode=sample with these fields."""
    assert sample.run(read_config(folder, fields), str(folder), output=str(output)) == 0
    with np.load(output / "images.npz") as arrays:
        return dict(arrays)


def held_out(config):
    """The held-out images and labels, in the order of the data set."""
    other = config.copy_and_resolve_references()
    other.data.split = "test"
    source = data_config.load_source(other)
    return source.batch(np.arange(len(source)))


def test_conditions_are_those_of_held_out_images(trained, tmp_path):
    """The workdir is enough; each image has the condition, the label and the original of one held-out image."""
    found = sampled(trained, tmp_path / "a", {"sampling.num_images": 6})
    config = read_config(trained, {"sampling.num_images": 6})
    inputs, test = sampling_inputs(config), held_out(config)
    np.testing.assert_array_equal(found["conditions"], inputs.given.images)
    np.testing.assert_array_equal(found["labels"], inputs.labels)
    for original, label in zip(inputs.given.originals, inputs.labels, strict=True):
        (index,) = [i for i, image in enumerate(test["image"]) if np.array_equal(image, original)][:1]
        assert test["label"][index] == label
    np.testing.assert_array_equal(
        batch_conditions(build.build_condition(config), {"image": inputs.given.originals}), found["conditions"]
    )
    assert len(np.unique(inputs.given.originals, axis=0)) == 6
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["conditions"] == "digits test"
    assert image_grid.read_png(tmp_path / "a" / "grid.png").ndim == 3


def test_an_image_depends_on_its_index_and_seed_only(trained, tmp_path):
    noisy = {"sampling.condition_noise": 0.3}
    few = sampled(trained, tmp_path / "a", {"sampling.num_images": 2, "sampling.batch_size": 2, **noisy})
    many = sampled(trained, tmp_path / "b", {"sampling.num_images": 5, **noisy})
    np.testing.assert_array_equal(many["arr_0"][:2], few["arr_0"])
    np.testing.assert_array_equal(many["conditions"][:2], few["conditions"])


def test_the_condition_and_its_noise_change_the_image(trained, tmp_path):
    base = sampled(trained, tmp_path / "a")["arr_0"]
    for name, fields in {
        "noise": {"sampling.condition_noise": 0.5},
        "split": {"sampling.condition_split": "train"},
        "guidance": {"sampling.guidance_scale": 3.0},
        "ancestral": {"sampling.sampler": "ancestral"},
    }.items():
        assert (sampled(trained, tmp_path / name, fields)["arr_0"] != base).any(), name


def test_condition_images_from_files_are_those_of_the_data_set(trained, tmp_path):
    """Conditions saved as PNG files, with one label for all, give the same images as the data set does."""
    fields = {"sampling.label": 3, "sampling.num_images": 4}
    first = sampled(trained, tmp_path / "a", fields)
    (tmp_path / "files").mkdir()
    for index, image in enumerate(first["conditions"]):
        Image.fromarray(image[..., 0]).save(tmp_path / "files" / f"{index}.png")
    again = sampled(trained, tmp_path / "b", fields | {"sampling.condition_images": str(tmp_path / "files")})
    np.testing.assert_array_equal(again["arr_0"], first["arr_0"])
    one = sampled(trained, tmp_path / "c", fields | {"sampling.condition_images": str(tmp_path / "files" / "1.png")})
    np.testing.assert_array_equal(one["conditions"], first["conditions"][[1, 1, 1, 1]])
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no images in"):
        sampled(trained, tmp_path / "d", {"sampling.condition_images": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"cannot read the image .*nothing.png"):
        sampled(trained, tmp_path / "d", {"sampling.condition_images": str(tmp_path / "nothing.png")})


def test_several_samples_of_each_condition(trained, tmp_path):
    found = sampled(trained, tmp_path / "a", {"sampling.num_images": 5, "sampling.condition_samples": 2})
    single = sampled(trained, tmp_path / "b", {"sampling.num_images": 3})
    np.testing.assert_array_equal(found["conditions"], single["conditions"][[0, 0, 1, 1, 2]])
    assert (found["arr_0"][0] != found["arr_0"][1]).any()


def test_python_gives_the_same_images(trained, tmp_path):
    expected = sampled(trained, tmp_path / "a", {"sampling.label": 3, "sampling.num_images": 3})
    run = ddpm_jax.load(trained)
    assert run.condition.shape == (2, 2, 1)
    found = run.sample(3, label=3, condition=expected["conditions"])
    np.testing.assert_array_equal(found.images, expected["arr_0"])
    np.testing.assert_array_equal(run.sample(3, label=3).images, expected["arr_0"])
    trajectory = run.trajectory(3, steps=2, label=3, condition=expected["conditions"])
    np.testing.assert_array_equal(trajectory.images, expected["arr_0"])
    x_t = np.zeros((3, 8, 8, 1), np.float32)
    eps = [run.denoise(x_t, 5, label=3, condition=c).eps for c in (expected["conditions"], expected["conditions"][::-1])]
    assert np.abs(eps[0] - eps[1]).max() > 0
    images = held_out(read_config(trained))["image"][:2]
    bits = [
        run.bits_per_dim(images, label=3, vlb_num_timesteps=4, condition=condition).mean
        for condition in (None, np.asarray(run.condition.of_images(images)), np.zeros((2, 2, 2, 1), np.uint8))
    ]
    assert bits[0] == bits[1] != bits[2]
    for call, message in (
        (lambda: run.sample(2, condition=expected["conditions"]), "condition has 3 images, of 1 samples each"),
        (lambda: run.sample(1, condition=images[:1]), "condition has dtype uint8 and shape .* must be uint8"),
        (lambda: run.denoise(x_t, 5, label=3), "condition is missing"),
        (lambda: run.invert(images), "inpaint, image_to_image, interpolate and invert do not"),
        (lambda: run.image_to_image(images, label=3), "inpaint, image_to_image, interpolate and invert do not"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            call()


def test_evaluation(trained, tmp_path):
    """PSNR is that of the generated images and of the enlarged conditions against the originals; bits/dim has conditions."""
    metrics = ("psnr", "frechet", "bits_per_dim")
    fields = {"metrics": metrics, "features": "pixels", "num_images": 70, "num_heldout_images": 3, "vlb_num_timesteps": 4}
    config = read_config(trained, {f"evaluation.{name}": value for name, value in fields.items()})
    rows = [result.row | result.details for result in evaluate.evaluate(config, str(trained), str(tmp_path)).results()]
    (scored,) = [row for row in rows if "psnr" in row]
    found = sampled(trained, tmp_path / "images_of_sample", {"sampling.num_images": 70})
    originals = sampling_inputs(read_config(trained, {"sampling.num_images": 70})).given.originals
    assert scored["psnr"] == pytest.approx(psnr(found["arr_0"], originals).mean())
    assert scored["psnr"] > 3
    assert scored["bicubic psnr"] > scored["psnr"]  # after three steps
    assert scored["consistency"] > 0
    assert scored["provenance"]["psnr"]["ddpm_jax"]
    assert scored["conditions"] == "digits test"
    assert any(row.get("frechet") and row["images"] == "generated" for row in rows)
    (likelihood,) = [row for row in rows if "bits/dim" in row]
    assert "p(x | condition image)" in " ".join(likelihood["notes"])
    table = (tmp_path / "table.md").read_text()
    assert "bicubic psnr" in table
    assert (tmp_path / "step_3.json").exists()


def test_evaluation_of_psnr_alone(trained, tmp_path):
    config = read_config(trained, {"evaluation.metrics": ("psnr",), "evaluation.num_images": 5})
    (result,) = evaluate.evaluate(config, str(trained), str(tmp_path)).results()
    assert result.row["count"] == 5


def test_figures(trained, tmp_path):
    assert visualize.run(read_config(trained, {"visualize.num_stages": 5}), str(trained), output=str(tmp_path)) == 0
    assert (tmp_path / "reverse.png").exists()


def test_changes_of_the_condition_are_refused(trained, tiny_config):
    for fields in (
        {"data.condition": "", "data.condition_noise": 0.0},
        {"data.downsample.factor": 2},
        {"data.downsample.method": "area"},
        {"data.condition_noise": 0.4},
    ):
        with pytest.raises(ConflictError, match=r"different config, which a resume cannot change.*data\."):
            train.run(tiny_config(TRAINED | fields | {"train.num_steps": 4}), str(trained))


def test_other_modes_are_refused(trained):
    with pytest.raises(UsageError, match="only sample, visualize and evaluate support models with condition images"):
        inpaint.run(read_config(trained), str(trained))


def test_a_pipeline_of_diffusers_has_no_condition(trained, tmp_path):
    message = r"config.export.format is 'diffusers', whose pipeline has no condition images .* choose safetensors, stablehlo or"
    with pytest.raises(UsageError, match=message):
        export.run(read_config(trained, {"export.format": "diffusers"}), str(trained), output=str(tmp_path))
    assert export.run(read_config(trained, {"export.format": "safetensors"}), str(trained), output=str(tmp_path)) == 0


def test_exported_programs_take_the_condition(trained, tmp_path, monkeypatch):
    """The code of their README, with condition images and levels of its own, generates the images of --mode=sample."""
    fields = {"sampling.num_images": 3, "sampling.label": 3, "sampling.guidance_scale": 2.0, "sampling.num_steps": 4}
    wanted = sampled(trained, tmp_path / "samples", fields)
    config = read_config(trained, fields | {"export.format": "stablehlo", "export.platforms": ("cpu",)})
    assert export.run(config, str(trained), output=str(tmp_path / "out")) == 0
    monkeypatch.chdir(tmp_path / "out")
    code, found = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0], {}
    default = "jnp.full((n, 2, 2, 1), 128, jnp.uint8)"
    exec(code.replace(default, f"jnp.array({wanted['conditions'].tolist()}, jnp.uint8)"), found)
    difference = np.abs(found["images"].astype(int) - wanted["arr_0"].astype(int))
    assert wanted["arr_0"].std() > 20
    assert difference.max() <= 1
    exec(code, found)
    assert np.abs(found["images"].astype(int) - wanted["arr_0"].astype(int)).max() > 1
    names = [
        entry["name"] for entry in json.loads((tmp_path / "out" / "programs.json").read_text())["sampler.bin"]["arguments"]
    ]
    assert names == ["noise", "keys", "condition", "labels", "noise_level"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.downsample.factor": 3}, r"config.data.downsample.factor is 3: it must be 2 or more and divide .* 8x8"),
        ({"data.condition": "blur"}, r"config.data.condition is 'blur': choose one of .*downsample, gray"),
        ({"data.condition": "gray"}, r"the condition gray needs color images"),
        ({"data.condition": "", "data.condition_noise": 0.1}, r"config.data.condition_noise is set, but"),
        (
            {"data.condition": "", "sampling.condition_images": "x", "data.condition_noise": 0.0},
            r"condition_images is set, but",
        ),
        ({"sampling.condition_noise": 0.6}, r"config.sampling.condition_noise is 0.6: .* which is 0.5"),
        ({"data.condition_noise": 1.0}, r"config.data.condition_noise is 1.0: it must be at least 0 and below 1"),
        ({"sampling.condition_samples": 0}, r"config.sampling.condition_samples is 0"),
        ({"model.name": "unet", "model.unet.cond_resize": "cubic"}, r"config.model.unet.cond_resize is 'cubic'"),
        ({"data.condition": "pairs"}, r"`condition_dir` is empty"),
    ],
)
def test_invalid_fields(tiny_config, tmp_path, fields, message):
    with pytest.raises((UsageError, InvalidArgumentError), match=message):
        train.run(tiny_config(TRAINED | fields), str(tmp_path / "run"))


def test_psnr_needs_originals(trained):
    config = read_config(trained, {"sampling.condition_images": "x", "evaluation.metrics": ("psnr",)})
    with pytest.raises(UsageError, match=r"leave out config.sampling.condition_images"):
        evaluate.evaluate(config, str(trained), "")


def test_pairs(tiny_config, tmp_path, capsys):
    """Edges -> photographs: trained on a folder, with its partners held out too, and sampled from files."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 4)):
        for kind, levels in (("images", (0, 256)), ("edges", (0, 100))):
            (tmp_path / kind / split).mkdir(parents=True)
            for index in range(count):
                image = generator.integers(*levels, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / kind / split / f"{index}.png")
    fields = {
        "data.name": "image_folder",
        "data.data_dir": str(tmp_path / "images"),
        "data.channels": 3,
        "data.random_flip": True,
        "data.condition": "pairs",
        "data.pairs.condition_dir": str(tmp_path / "edges"),
        "data.pairs.condition_channels": 1,
        "train.num_steps": 2,
        "train.sample_every": 1,
    }
    run = tmp_path / "run"
    assert train.run(tiny_config(fields), str(run)) == 0
    assert (run / "samples" / "step_00000002.png").exists()
    found = sampled(run, tmp_path / "a", {"sampling.num_images": 4})
    edges = [np.asarray(Image.open(tmp_path / "edges" / "test" / f"{index}.png").convert("L")) for index in range(4)]
    assert sorted(map(np.ndarray.tobytes, found["conditions"][..., 0])) == sorted(map(np.ndarray.tobytes, edges))
    config = read_config(run, {"evaluation.metrics": ("psnr", "bits_per_dim"), "evaluation.vlb_num_timesteps": 4})
    config.evaluation.num_images = 4
    rows = [result.row for result in evaluate.evaluate(config, str(run), str(tmp_path / "eval")).results()]
    assert {"condition psnr", "psnr"} <= set(rows[0]) | set(rows[1])
    loaded = ddpm_jax.load(run)
    with pytest.raises(InvalidArgumentError, match="condition is missing"):
        loaded.bits_per_dim(np.zeros((1, 8, 8, 3), np.uint8), vlb_num_timesteps=4)
    (tmp_path / "edges" / "train" / "3.png").unlink()
    with pytest.raises(InvalidDataError, match=r"1 of the 9 images in .*images have no condition image .*: train/3.png"):
        train.run(tiny_config(fields | {"train.num_steps": 3}), str(run))


def test_pairs_are_mirrored_together(tiny_config):
    config = tiny_config({"data.condition": "pairs", "data.condition_noise": 0.0})
    cond_fn = condition_config.training_cond_fn(build.build_condition(config))
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    flip = np.array([True, False, True, False])[:, None, None, None]
    found = cond_fn({"image": images}, None, flip, None)["image"]
    np.testing.assert_array_equal(np.round((np.asarray(found) + 1) * 127.5), np.where(flip, images[:, :, ::-1], images))
