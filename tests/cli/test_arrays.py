"""Images that are not 8-bit RGB: uint16 and floats, of any number of channels, in training, sampling and evaluation."""

import json

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import config_validation, data_config, evaluation_config
from ddpm_jax.cli import common, compute_stats, evaluate, image_to_image, inpaint, interpolate, sample, train, visualize
from ddpm_jax.configs import digits
from ddpm_jax.data.source import ArraySource
from ddpm_jax.diffusion import pixels
from ddpm_jax.user_messages import UsageError, UserError

NETWORK = "tests.small_network:Small"
SHAPE = (8, 16, 5)


def float_images():
    return np.random.default_rng(0).uniform(-3, 5, (12, 8, 16, 2)).astype(np.float32)


def own_set(split, *, levels=()):
    """A data set of the user's own: floats."""
    images = float_images()
    return ArraySource(images, name="own", split=split, value_range=levels)


@pytest.fixture
def array_config(tmp_path, tiny_config):
    """Fields -> a tiny config of 12 arrays uint16 [8, 16, 5]."""
    rng = np.random.default_rng(0)
    (tmp_path / "arrays").mkdir()
    for index in range(12):
        np.save(tmp_path / "arrays" / f"{index}.npy", rng.integers(0, 4096, SHAPE, dtype=np.uint16))

    def make(fields=None):
        config = tiny_config()
        config.data.update(name="array_folder", data_dir=str(tmp_path / "arrays"), image_size=SHAPE[:2], channels=5)
        config.data.update(dtype="uint16", value_range=(0.0, 4095.0), num_classes=0, split="train[:8]")
        config.train.update(num_steps=2, sample_every=2)
        config.evaluation.update(features="pixels_16", num_images=8, heldout_split="train[8:]", vlb_num_timesteps=4)
        config.evaluation.update(metrics=("frechet", "bits_per_dim"), hutchinson_samples=1)
        config.edit.update(num_images=2, samples_per_image=1, mask="right", resampling=1, num_frames=3)
        config.visualize.update(num_images=2, num_stages=5)
        config.update_from_flattened_dict(fields or {})
        return config

    return make


def arrays_of(run, mode):
    """Content of images.npz of the only output folder of a mode, and the modes and sizes of its PNG files."""
    (file,) = run.glob(f"samples/{mode}*/images.npz")
    found = {}
    for png in sorted(file.parent.glob("**/*.png")):
        with Image.open(png) as picture:
            found[str(png.relative_to(file.parent))] = picture.mode
    with np.load(file) as arrays:
        return dict(arrays), found


def check_edits(run, config, originals, mode):
    """The modes that start from images keep the type and the known pixels of `originals`; their pictures have a `mode`."""
    assert inpaint.run(config, str(run)) == 0
    arrays, pictures = arrays_of(run, "inpaint")
    np.testing.assert_array_equal(arrays["originals"], originals)
    assert arrays["images"].dtype == originals.dtype
    np.testing.assert_array_equal(arrays["images"][:, 0, :, :8], originals[:, :, :8])
    assert not np.array_equal(arrays["images"][:, 0, :, 8:], originals[:, :, 8:])
    assert pictures == {"inpaint.png": mode}
    for name, edit in (("image_to_image", image_to_image), ("interpolate", interpolate)):
        assert edit.run(config, str(run)) == 0
        arrays, pictures = arrays_of(run, name)
        assert arrays["images"].dtype == originals.dtype
        assert pictures == {f"{name}.png": mode}


def check_figures(run, config, originals, form):
    """images.npz has what the figures show; its first column are the images of the data, its last one the generated ones."""
    assert visualize.run(config, str(run)) == 0
    arrays, pictures = arrays_of(run, "visualize")
    assert pictures == dict.fromkeys(("chain.png", "forward.png", "reverse.png"), "RGB")
    np.testing.assert_array_equal(arrays["originals"], originals)
    tolerance = 1e-6 * (form.high - form.low) if form.dtype == "float32" else 0
    np.testing.assert_allclose(arrays["forward_x_t"][:, 0], originals, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(arrays["x_t"][:, -1], arrays["images"])
    assert arrays["forward_t"].tolist() == [-1, 24, 49, 74, 99]
    assert {arrays[name].dtype for name in ("x_t", "pred_xstart", "forward_x_t")} == {originals.dtype}


def test_sixteen_bits_and_five_channels(tmp_path, array_config):
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
    originals = np.stack([np.load(tmp_path / "arrays" / f"{index}.npy") for index in (0, 1)])
    files = tuple(str(tmp_path / "arrays" / f"{index}.npy") for index in (0, 1))
    config = array_config({"edit.images": files, "sampling.shown_channels": (3, 0, 4), "sampling.format": "png"})
    check_edits(run, config, originals, "RGB")
    form = pixels.PixelFormat("uint16", 0.0, 4095.0, (3, 0, 4))
    config.sampling.seed = 1
    assert sample.run(config, str(run)) == 0
    arrays, pictures = arrays_of(run, "step_2-ddim-4-seed_1")
    assert len(pictures) == 6
    with Image.open(next(run.glob("samples/*seed_1*/png-channels_3_0_4/00000004.png"))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), form.shown(arrays["arr_0"][4]))
    first = data_config.load_source(config).batch(np.arange(2))["image"]
    check_figures(run, config, first, form)
    trained = ddpm_jax.load(run)
    assert trained.sample(2).images.dtype == np.uint16
    bits = trained.bits_per_dim(originals, vlb_num_timesteps=4).mean
    assert 11 < bits < 40
    assert trained.image_to_image(originals, samples_per_image=1).images.shape == (2, 1, *SHAPE)
    with pytest.raises(ValueError, match=r"images has dtype uint8 .*: it must be uint16 \[N, 8, 16, 5\], levels 0\.\.4095"):
        trained.image_to_image(originals.astype(np.uint8))


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
    check_edits(run, config, float_images()[:2], "L")
    check_figures(run, config, float_images()[:2], pixels.PixelFormat("float32", -3.0, 5.0))
    trained = ddpm_jax.load(run)
    with pytest.raises(ValueError, match="discrete levels, which have probabilities, and these are float32"):
        trained.bits_per_dim(float_images())
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
        ({"data.channels": 4, "sampling.shown_channels": (0, 1)}, "give one or three channels of 0..3"),
        ({"data.channels": 4, "sampling.shown_channels": (4,)}, "give one or three channels of 0..3"),
    ],
)
def test_invalid_fields(fields, error):
    config = digits.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UsageError, match=error):
        config_validation.check_config(config)


def test_files_to_start_from(tmp_path):
    """Arrays of the data's type and shape are read as they are; pictures have 8 bits, which become the range of the data."""
    config = digits.get_config()
    config.data.update(image_size=(4, 6), channels=1, dtype="uint16", value_range=(100.0, 4195.0))
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 170 + 100
    for name, array in {"deep.png": deep, "deep.tif": deep, "picture.png": np.full((8, 12), 128, np.uint8)}.items():
        Image.fromarray(array).save(tmp_path / name)
    np.savez(tmp_path / "deep.npz", image=deep)
    for name in ("deep.png", "deep.tif", "deep.npz"):
        np.testing.assert_array_equal(common.read_original(config, str(tmp_path / name)), deep[..., None])
    picture = common.read_original(config, str(tmp_path / "picture.png"))
    np.testing.assert_array_equal(picture, np.full((4, 6, 1), round(100 + 128 / 255 * 4095), np.uint16))
    np.save(tmp_path / "bytes.npy", deep.astype(np.uint8))
    with pytest.raises(UserError, match=r"cannot read the image .*bytes.npy: type uint8, not uint16"):
        common.read_original(config, str(tmp_path / "bytes.npy"))
    config.data.channels = 5
    with pytest.raises(UserError, match=r"picture.png: shape 8x12x1, not 4x6x5"):
        common.read_original(config, str(tmp_path / "picture.png"))
    config.data.update(channels=1, dtype="uint8", value_range=())
    np.testing.assert_array_equal(common.read_original(config, str(tmp_path / "bytes.npy"))[..., 0], deep.astype(np.uint8))


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
