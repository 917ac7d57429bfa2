"""Sets of image files: sizes, gray levels of more than 8 bits, sets that do not fit into memory, and resizing."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import source
from ddpm_jax.data.prepare import prepare
from ddpm_jax.data.prepare_target import Settings
from ddpm_jax.evaluation import image_files, score_inputs
from ddpm_jax.evaluation.image_files import Reading
from ddpm_jax.evaluation.image_resize import Resize, resized
from ddpm_jax.evaluation.image_sets import open_set
from ddpm_jax.runtime.errors import ExpectedError

RNG = np.random.default_rng(0)


def read(images, batch=4):
    firsts = range(0, len(images), batch)
    return np.concatenate([images.batch(np.arange(i, min(i + batch, len(images))))["image"] for i in firsts])


def test_a_set_that_does_not_fit_into_memory_is_the_same(tmp_path, monkeypatch):
    pixels = RNG.integers(0, 256, (9, 5, 7, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"")
    kept = open_set(str(tmp_path), Reading(on_decode_error="skip"))
    monkeypatch.setattr(image_files, "fits_in_memory", lambda *_: False)
    again = open_set(str(tmp_path), Reading(on_decode_error="skip"))
    for images in (kept, again):
        assert images.image_shape == (5, 7, 3)
        assert images.broken == 1
        np.testing.assert_array_equal(read(images), np.delete(pixels, 3, axis=0))
    (tmp_path / "4.png").unlink()
    with pytest.raises(ExpectedError, match="can no longer be read"):
        read(again)


def test_deep_gray_files_share_one_range_of_levels(tmp_path):
    """12 bits: the darker file must not become as bright as the other one."""
    for name, most in (("a", 4000), ("b", 1000)):
        Image.fromarray(np.full((4, 4), most, np.uint16)).save(tmp_path / f"{name}.png")
    images = open_set(str(tmp_path), Reading())
    assert images.value_range == (0.0, 4095.0)
    assert read(images)[:, 0, 0, 0].tolist() == [round(4000 * 255 / 4095), round(1000 * 255 / 4095)]
    assert read(open_set(str(tmp_path), Reading(levels=(0, 4000))))[0].max() == 255


def test_a_square_is_resized_as_every_data_set(tmp_path):
    image = RNG.integers(0, 256, (30, 41, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized(image, (8, 8), "bicubic"), source.center_crop_and_resize(image, 8, 3))
    oblong = resized(image, (10, 20), "box")
    assert oblong.shape == (10, 20, 3)
    middle = Image.fromarray(image[5:25, :]).resize((20, 10), Image.Resampling.BOX)  # 20 rows of 41: 2 to 1
    assert abs(oblong.astype(int) - np.asarray(middle)).mean() < 8
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    for name in ("box", "bilinear", "hamming", "bicubic", "lanczos"):  # antialiased: no pattern is left
        small = resized(checks[..., None].astype(np.uint8), (8, 8), name)
        assert abs(small.astype(int) - 127).max() <= 2, name


def test_wrong_sets_are_errors_of_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "one.png")
    for name, match in (
        ("empty", "no images in"),
        ("nowhere", "does not exist: give a folder"),
        ("one.png", "is one image: give the folder"),
        ("text.txt", "not an array of numbers"),
    ):
        with pytest.raises(ExpectedError, match=match):
            open_set(str(tmp_path / name), Reading())
    (tmp_path / "empty" / "a.png").write_text("x")
    with pytest.raises(ExpectedError, match=r"none of the 1 images in .* can be read: a\.png \(not an image\)"):
        open_set(str(tmp_path / "empty"), Reading(on_decode_error="skip", resize=Resize("box")))
    with pytest.raises(ExpectedError, match="`on_decode_error` is 'ignore'"):
        open_set(str(tmp_path), Reading(on_decode_error="ignore"))


def test_what_an_input_is(tmp_path):
    images, mu, sigma = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3), np.eye(3)
    files = {
        "images": {"arr_0": images},
        "statistics": {"mu": mu, "sigma": sigma},
        "both": {"arr_0": images, "mu": mu, "sigma": sigma},  # as guided-diffusion's reference batches
        "features": {"features": np.zeros((5, 3))},
    }
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    np.save(tmp_path / "features.npy", np.zeros((5, 3), np.float32))
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "stats.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    kinds = {path.name: [score_inputs.resolve(str(path), is_reference=is_reference)[0] for is_reference in (False, True)]
             for path in tmp_path.iterdir()}  # fmt: skip
    assert kinds == {
        "images.npz": ["images", "images"],
        "statistics.npz": ["statistics", "statistics"],
        "both.npz": ["images", "statistics"],
        "features.npz": ["statistics", "statistics"],
        "features.npy": ["statistics", "statistics"],
        "images.npy": ["images", "images"],
        "stats.pkl": ["statistics", "statistics"],
        "cut.npz": ["images", "images"],  # opening it is the error
    }
    assert score_inputs.resolve("tfds:cifar10@test", is_reference=True) == ("images", "tfds:cifar10@test")


def test_a_prepared_set_is_scored_as_its_images(tmp_path):
    pixels = RNG.integers(0, 256, (7, 6, 9, 3), dtype=np.uint8)
    (tmp_path / "files").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "files" / f"{index}.png")
    prepare(str(tmp_path / "files"), str(tmp_path / "set"), Settings((6, 9)))
    images = open_set(str(tmp_path / "set"), Reading())
    assert (images.image_shape, images.resize) == ((6, 9, 3), "none")
    np.testing.assert_array_equal(read(images), pixels)
