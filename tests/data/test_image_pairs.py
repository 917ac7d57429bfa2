"""Pairs of images: partners are found by name, and missing, ambiguous and unsuitable ones are listed."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.image_folder import load_image_folder
from ddpm_jax.data.image_pairs import load_pairs
from ddpm_jax.data.source import ArraySource
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

NAMES = ("a.png", "b.png", "sub.1.png")


def write(folder, levels, mode="L", size=(4, 4)):
    folder.mkdir(parents=True, exist_ok=True)
    for name, level in levels.items():
        Image.new(mode, size, level).save(folder / name)


@pytest.fixture
def images(tmp_path):
    write(tmp_path / "images", {name: 10 * index for index, name in enumerate(NAMES, 1)})
    return tmp_path / "images"


def paired(images, folder, in_memory="auto", channels=1):
    source = load_image_folder(str(images), image_size=4, channels=1)
    return load_pairs(source, str(folder), image_size=4, channels=channels, in_memory=in_memory)


@pytest.mark.parametrize("in_memory", [True, False])
def test_partners_have_the_same_name_without_its_ending(images, tmp_path, in_memory):
    write(tmp_path / "edges", {"sub.1.bmp": 103, "b.png": 102, "a.jpg": 101, "unused.png": 1})
    source = paired(images, tmp_path / "edges", in_memory)
    batch = source.batch(np.array([2, 0]))
    assert batch["image"][:, 0, 0, 0].tolist() == [30, 10]
    assert batch["condition"].shape == (2, 4, 4, 1)
    assert batch["condition"][:, 0, 0, 0].tolist() == [103, 101]
    assert (len(source), source.split, source.image_shape[:2], source.num_classes) == (3, "train", (4, 4), 0)


def test_other_sizes_and_channels_are_converted(images, tmp_path):
    write(tmp_path / "edges", dict.fromkeys(NAMES, (200, 0, 0)), mode="RGB", size=(9, 7))
    assert paired(images, tmp_path / "edges", channels=3).batch(np.arange(1))["condition"][0, 0, 0].tolist() == [200, 0, 0]
    assert paired(images, tmp_path / "edges", channels=1).batch(np.arange(1))["condition"][0, 0, 0].tolist() == [60]


def test_the_fingerprint_includes_the_partners(images, tmp_path):
    write(tmp_path / "edges", dict.fromkeys(NAMES, 5))
    write(tmp_path / "others", dict.fromkeys(NAMES, 6))
    one, same, other = (paired(images, tmp_path / name).fingerprint for name in ("edges", "edges", "others"))
    assert one == same != other


def test_missing_partners_are_listed(images, tmp_path):
    write(tmp_path / "edges", {"b.png": 1})
    with pytest.raises(InvalidDataError, match=r"2 of the 3 images in .*images have no condition image .*: a.png, sub.1.png;"):
        paired(images, tmp_path / "edges")


def test_two_partners_are_listed(images, tmp_path):
    write(tmp_path / "edges", dict.fromkeys((*NAMES, "a.bmp"), 1))
    with pytest.raises(InvalidDataError, match=r"several files of the same name: a.bmp, a.png;"):
        paired(images, tmp_path / "edges")


def test_broken_and_deep_partners_are_listed(images, tmp_path):
    write(tmp_path / "edges", dict.fromkeys(NAMES, 1))
    (tmp_path / "edges" / "a.png").write_bytes(b"no image")
    with pytest.raises(InvalidDataError, match=r"1 of 3 condition images .* cannot be read: a.png"):
        paired(images, tmp_path / "edges")
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "edges" / "a.png")
    with pytest.raises(InvalidDataError, match="more than 8 bits, 1: convert"):
        paired(images, tmp_path / "edges")


def test_only_a_folder_has_pairs(images, tmp_path):
    digits = ArraySource(np.zeros((3, 4, 4, 1), np.uint8), name="digits", split="train")
    with pytest.raises(InvalidArgumentError, match=r"digits is not one: use data.name=image_folder"):
        load_pairs(digits, str(tmp_path), image_size=4, channels=1)
    with pytest.raises(InvalidArgumentError, match="`condition_dir` is empty"):
        load_pairs(load_image_folder(str(images), image_size=4, channels=1), "", image_size=4, channels=1)
