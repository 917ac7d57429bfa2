"""Images to start from: files are read as by the command line, errors are one line, and no data set is downloaded."""

import re
import types

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data_config
from ddpm_jax.app.start_images import ConditionImages, StartImages
from ddpm_jax.cli import common
from ddpm_jax.configs import digits
from ddpm_jax.data import load, tfds
from ddpm_jax.data.condition import make_condition
from ddpm_jax.diffusion.pixels import UINT8, PixelFormat
from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError
from ddpm_jax.user_messages import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def config_of(channels=3, **fields):
    config = digits.get_config()
    config.update_from_flattened_dict({"data.channels": channels, "data.background": "blue"} | fields)
    return config


def images_of(channels=3, pixel_format=UINT8, **fields):
    return StartImages(config_of(channels, **fields), run_of(channels, pixel_format), ())


def run_of(channels, pixel_format=UINT8):
    return types.SimpleNamespace(image_shape=(8, 8, channels), pixel_format=pixel_format)


def alpha():
    alpha = np.zeros((12, 20, 1), np.uint8)
    alpha[:, 10:] = 255
    return Image.fromarray(np.concatenate([PHOTO, alpha], axis=2))


def palette():
    """The first of the colors is transparent."""
    image = Image.fromarray(PHOTO).quantize(16)
    image.info["transparency"] = 0
    return image


def exif():
    image = Image.fromarray(PHOTO)
    image.getexif()[274] = 6  # turned by 90 degrees
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("alpha.png", alpha),
        ("palette.png", palette),
        ("one.png", lambda: Image.fromarray(PHOTO[:1, :1])),
        ("long.png", lambda: Image.new("RGB", (20_000, 2), "red")),
        ("cmyk.jpg", lambda: Image.fromarray(PHOTO).convert("CMYK")),
        ("deep.png", lambda: Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 16)),
        ("exif.jpg", exif),
        ("plain.tif", lambda: Image.fromarray(PHOTO)),
    ],
)
def test_files_are_read_as_by_the_command_line(tmp_path, name, make, channels):
    image, path = make(), str(tmp_path / name)
    image.save(path, exif=image.getexif())
    array = images_of(channels).of_upload(path)
    assert array.shape == (8, 8, channels)
    np.testing.assert_array_equal(array, common.read_original(config_of(channels), path))
    if name == "alpha.png" and channels == 3:
        np.testing.assert_array_equal(array[:, :3], np.broadcast_to([0, 0, 255], (8, 3, 3)))  # data.background
    if name == "deep.png":
        assert array.max() > 200  # of the range of the file, not of 16 bits


def test_the_first_image_of_an_animation_is_read(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (20, 12), "red")])
    Image.fromarray(PHOTO).save(tmp_path / "b.gif")
    np.testing.assert_array_equal(*(images_of().of_upload(str(tmp_path / name)) for name in ("a.gif", "b.gif")))


def test_pictures_of_an_editor_are_read_as_files(tmp_path):
    picture = alpha()
    picture.save(tmp_path / "a.png")
    expected = images_of().of_upload(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(images_of().of_upload(np.asarray(picture)), expected)
    floats = images_of(pixel_format=PixelFormat("float32", 0.0, 2.0)).of_upload(np.asarray(picture))
    np.testing.assert_allclose(floats, expected * (2 / 255), rtol=1e-5, atol=1e-6)


def test_errors_name_the_file_and_not_its_folder(tmp_path):
    (tmp_path / "not.png").write_text("hello")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    Image.fromarray(PHOTO).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    for name, why in (
        ("not.png", "not an image of a format that is read: use PNG or JPEG$"),
        ("photo.heic", "not an image of a format that is read: use PNG or JPEG$"),
        ("half.jpg", "truncated"),
        ("large.png", "more than 178,956,970 pixels"),
        ("none.png", ""),
    ):
        with pytest.raises(UserError, match=f"^cannot read the image {name}: .*{why}") as caught:
            images_of().of_upload(str(tmp_path / name))
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="the image is missing"):
        images_of().of_upload(None)
    with pytest.raises(InvalidArgumentError, match="4 channels: use those of its data set"):
        images_of(4).of_upload(PHOTO)


def test_no_data_set_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_prepare", None)
    images = images_of(**{"data.name": "cifar10", "data.data_dir": str(tmp_path)})
    for call in (images.require_data, lambda: images.of_data("train", 0)):
        with pytest.raises(UnavailableError, match=r"^the data set cifar10 is not on this machine: upload an image$"):
            call()
    assert not load.needs_download("digits", "")
    assert not load.needs_download("my_parts:discs", "")
    assert not load.needs_download("cifar10", "gs://bucket/tfds")


def test_a_split_is_loaded_once(monkeypatch):
    found, loaded = data_config.load_source, []
    monkeypatch.setattr(data_config, "load_source", lambda config: loaded.append(config.data.split) or found(config))
    images = images_of(1)
    for index in range(3):
        assert images.of_data("test", index)[0].shape == (8, 8, 1)
    images.of_data("train", 0)
    assert loaded == ["test", "train"]


def test_condition_images(tmp_path):
    make = make_condition("downsample", (8, 8, 1), max_noise=0.0, factor=2)
    images = ConditionImages(config_of(1, **{"data.condition": "downsample"}), run_of(1), (), make)
    array, name = images.of_data("test", 2)
    original = images_of(1).of_data("test", 2)[0]
    np.testing.assert_array_equal(array, np.asarray(make.of_images(original[None]))[0])
    assert (array.shape, name) == ((4, 4, 1), "")
    Image.fromarray(array[..., 0]).save(tmp_path / "small.png")
    np.testing.assert_array_equal(images.of_upload(str(tmp_path / "small.png")), array)
    assert images.shown(array).shape == (384, 384, 3)
    with pytest.raises(UserError, match=re.escape("cannot read the image a.png: ")):
        images.of_upload(str(tmp_path / "a.png"))
