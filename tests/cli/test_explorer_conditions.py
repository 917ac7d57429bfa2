"""--mode=visualize with format html for networks with condition images, which take the place of classes in recorded chains."""

import base64
import io
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import build, data_config, explorer_identity, explorer_rows, explorer_sizes, sampling_conditions
from ddpm_jax.cli import sample, visualize
from ddpm_jax.data.condition import Condition, batch_conditions
from ddpm_jax.user_messages import UsageError
from tests.cli.conftest import set_fields
from tests.cli.explorer_page import data_of

NETWORK = "tests.small_network:Small"
TRAINED = {
    "data.condition": "downsample",
    "data.condition_noise": 0.5,
    "model.class_conditional": True,
    "model.label_dropout": 0.1,
    "train.checkpoint_every": 6,
    "optimizer.learning_rate": 0.05,
    "optimizer.warmup_steps": 0,
}
FIELDS = TRAINED | {
    "visualize.format": "html",
    "visualize.page_images": 3,
    "visualize.samplers": ("ddim",),
    "visualize.num_steps": (2, 5),
    "visualize.num_terms": 2,
}
OPTIONS = {
    "sampling.condition_noise": 0.3,
    "sampling.guidance_scale": 2.0,
    "sampling.guidance_interval": (0.0, 0.5),
    "sampling.spacing": "trailing",
    "sampling.ddim.eta": 0.5,
    "diffusion.clip_denoised": False,
}  # that differ from the config of the run


def page_data(trained, config, folder):
    assert visualize.run(config, str(trained), output=str(folder)) == 0
    return data_of(folder / "explorer.html")


def png_of(row):
    """The bytes of the file of a row of the recorded chains."""
    start, _, text = row["picture"].partition(",")
    assert start == "data:image/png;base64"
    return base64.b64decode(text)


def pixels_of(row):
    pixels = np.asarray(Image.open(io.BytesIO(png_of(row))))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def first_images(config):
    return data_config.load_source(config).batch(np.arange(3))


def test_chains_are_those_of_mode_sample_with_the_file_of_the_page(trained, tiny_config, tmp_path):
    """And with the flags of the page: class, noise of the condition image, and other options; one level."""
    data, batch = page_data(trained, tiny_config(FIELDS | OPTIONS), tmp_path / "page"), first_images(tiny_config(FIELDS))
    assert data["rows"]["kind"] == "condition image"
    rows, chain = data["rows"]["list"], data["chains"][1]
    assert [row["name"] for row in rows] == [f"image {i}, class {k}" for i, k in enumerate(batch["label"], 1)]
    assert (chain["rows"], chain["seeds"], chain["x_t"].shape) == (3, [0, 1], (6, 6, 8, 8, 1))
    wanted = batch_conditions(build.build_condition(tiny_config(FIELDS)), batch)
    np.testing.assert_array_equal(np.stack([pixels_of(row) for row in rows]), wanted)
    flags = dict(flag.removeprefix("--config.").split("=") for flag in shlex.split(chain["flags"]))
    assert flags == {name: str(value).replace(" ", "") for name, value in OPTIONS.items()}
    assert "gives no condition image" in data["noNetwork"]
    assert data["facts"]["table"]["Condition images"] == "downsample, 2×2×1, with noise of level 0.3"

    row = rows[2]
    assert row["flags"] == f" --config.sampling.condition_images=condition_3.png --config.sampling.label={batch['label'][2]}"
    (tmp_path / row["file"]).write_bytes(png_of(row))
    fields = {"sampling.condition_images": str(tmp_path / row["file"]), "sampling.label": int(batch["label"][2])}
    fields |= OPTIONS | {"sampling.num_images": 1, "sampling.num_steps": 5, "sampling.seed": 1}
    assert sample.run(tiny_config(TRAINED | fields), str(trained), output=str(tmp_path / "sample")) == 0
    with np.load(tmp_path / "sample" / "images.npz") as arrays:
        image = arrays["arr_0"][0].astype(int)
    np.testing.assert_allclose(chain["x_t"][5, -1], image, atol=1)
    others = chain["x_t"][[2, 3, 4], -1].astype(int)
    assert (np.abs(others - image).max(axis=(1, 2, 3)) > 1).all()


def test_the_bound_is_that_of_each_image_with_its_condition(trained, tiny_config, tmp_path):
    """All terms give the bits per dimension of `Run.bits_per_dim`."""
    config = tiny_config(FIELDS | {"visualize.num_terms": 0, "visualize.num_steps": (2,), "visualize.num_seeds": 1})
    bound, batch = page_data(trained, config, tmp_path)["bound"], first_images(config)
    run = ddpm_jax.load(trained)
    wanted = run.bits_per_dim(batch["image"], label=batch["label"].tolist())
    assert bound["total"] == pytest.approx(wanted.mean, rel=1e-4)
    black = run.bits_per_dim(batch["image"], label=batch["label"].tolist(), condition=np.zeros((3, 2, 2, 1), np.uint8))
    assert black.mean != pytest.approx(wanted.mean, rel=1e-3)


def test_a_page_of_held_out_images(trained, tiny_config, tmp_path):
    """config.sampling.condition_split names the split of all real images of the page."""
    few = {"visualize.num_steps": (2,), "visualize.num_seeds": 1, "visualize.page_images": 2}
    data = page_data(trained, tiny_config(FIELDS | few | {"sampling.condition_split": "test"}), tmp_path)
    test = tiny_config({"data.split": "test"})
    np.testing.assert_array_equal(data["images"], data_config.load_source(test).batch(np.arange(2))["image"])
    assert data["bound"]["split"] == "test"
    with pytest.raises(UsageError, match=r"config\.sampling\.condition_split names 'none'"):
        visualize.run(tiny_config(FIELDS | {"sampling.condition_split": "none"}), str(trained))


def two_channels(images):
    return jnp.concatenate([images, 255 - images], axis=-1)


def test_rows_of_each_kind(tiny_config):
    """Pairs and gray images without classes; channels that no file has give no command; at most 20 rows."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (32, 8, 8, 3), np.uint8)
    plain = {"model.class_conditional": False, "model.label_dropout": 0.0, "data.channels": 3, "data.condition_noise": 0.0}

    def rows(batch, names=(), **fields):
        config = tiny_config(FIELDS | plain | {f"data.{name}": value for name, value in fields.items()})
        found = explorer_rows.find_rows(config, batch, names)
        return explorer_rows.rows_of_page(found)["list"], explorer_rows.first_image_cond(config, found, (0, 1), count=2)

    found, cond = rows({"image": images}, condition="gray")
    assert (len(found), found[0]["name"], cond["image"].shape) == (20, "image 1", (4, 8, 8, 1))
    assert found[1]["flags"] == " --config.sampling.condition_images=condition_2.png"
    pairs = {"image": images[:2], "condition": images[2:4], "label": np.array([1, 5])}
    found, cond = rows(pairs, ("cat", "dog"), condition="pairs")
    assert [row["name"] for row in found] == ["image 1, class dog", "image 2, class 5"]
    np.testing.assert_array_equal(pixels_of(found[1]), images[3])
    assert sorted(cond) == ["image"]
    found, cond = rows({"image": images[:2, ..., :1]}, channels=1, condition="tests.cli.test_explorer_conditions:two_channels")
    assert (found[0]["flags"], cond["image"].shape) == (None, (4, 8, 8, 2))
    np.testing.assert_array_equal(pixels_of(found[0]), images[0, ..., :1])


def test_the_identity_has_the_condition_images(tiny_config):
    batch = {"image": np.arange(192, dtype=np.uint8).reshape(3, 8, 8, 1), "label": np.arange(3)}

    def identity(**changes):
        config = set_fields(tiny_config(FIELDS), {name.replace("__", "."): value for name, value in changes.items()})
        return explorer_identity.identity_of(config, {"w": jnp.zeros(3)}, 6, batch, "")[1]

    plain = identity()
    assert identity(sampling__condition_samples=3) == plain
    assert plain["condition"] == {"name": "downsample", "max_noise": 0.5, "options": {"factor": 4, "method": "bicubic"}}
    for changes in (
        {"data__downsample__factor": 2},
        {"data__downsample__method": "area"},
        {"data__condition_noise": 0.6},
        {"sampling__condition_noise": 0.1},
    ):
        assert identity(**changes) != plain
    first = plain["conditions_sha256"]
    batch["image"] = batch["image"][::-1]
    assert identity()["conditions_sha256"] != first


def test_condition_images_count_in_the_page(tiny_config):
    config = tiny_config(FIELDS | {"data.image_size": 64, "data.channels": 3, "visualize.page_images": 32})
    assert explorer_sizes.num_page_images(config) == 24
    config.data.condition = "gray"
    assert explorer_sizes.num_page_images(config) == 22


def test_condition_images_of_ones_own_are_refused(trained, tiny_config):
    with pytest.raises(
        UsageError, match=r"condition_images is set, but a page has .* of its real images: add --config.sampling.cond"
    ):
        visualize.run(tiny_config(FIELDS | {"sampling.condition_images": "small.png"}), str(trained))


def test_condition_images_of_rectangles_are_read_from_files(tiny_config, tmp_path):
    image = np.arange(8, dtype=np.uint8).reshape(2, 4, 1)
    Image.fromarray(image[..., 0]).save(tmp_path / "a.png")
    config = tiny_config({"sampling.condition_images": str(tmp_path / "a.png")})
    found = sampling_conditions.read_conditions(config, Condition("custom", (2, 4, 1), lambda images: images), 2)
    np.testing.assert_array_equal(found.images, np.stack([image, image]))
