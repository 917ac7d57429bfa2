"""Folders of images: listing, conversion, and errors about broken files."""

import os
import pathlib
import time
import types

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import user_messages
from ddpm_jax.configs import defaults
from ddpm_jax.data import decode
from ddpm_jax.data.first_reading import FirstReading
from ddpm_jax.data.folder_listing import EXTENSIONS, class_prefixes
from ddpm_jax.data.image_folder import load_image_folder
from ddpm_jax.data.source import ArraySource, ImageSource, LazySource, center_crop_and_resize
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, InvalidDataError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def load(folder, **options):
    """The source, 8x8 RGB by default."""
    return load_image_folder(str(folder), **{"image_size": 8, "channels": 3, **options})


def everything(source):
    return source.batch(np.arange(len(source)))


def error_of(kind, folder, **options):
    """The error line of a failed load."""
    with pytest.raises(kind) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return as_user_reads(str(caught.value))


def as_user_reads(message):
    """The line as the command line prints it."""
    return user_messages.name_fields(message, defaults.get_config().to_dict())


def save(path, image=NOISE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)
    return path


def flat(level, size=8):
    return np.full((size, size, 3), level, np.uint8)


def not_warnings(lines):
    """The log lines without the warnings about flat images."""
    return [line for line in lines if not line.startswith("warning: ")]


def levels(source):
    """The levels of a set of flat images."""
    return everything(source)["image"][:, 0, 0, 0].tolist()


# Listing.


def test_files_are_found_in_the_order_of_their_paths(tmp_path, log_lines):
    for level, name in reversed(list(enumerate(["B.PNG", "a.Jpeg", "c.x.tiff", "d.WebP", "ä.png"]))):
        save(tmp_path / name, flat(level * 50))
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".thumbnails" / "e.png")
    (tmp_path / "notes.txt").write_text("a note")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # reading it would block
    source = load(tmp_path)
    np.testing.assert_allclose(levels(source), [0, 50, 100, 150, 200], atol=1)  # JPEG and WebP may differ by a level
    assert isinstance(source, ImageSource)
    assert (source.name, source.split, source.num_classes) == (str(tmp_path), "train", 0)
    assert everything(source).keys() == {"image"}
    assert not_warnings(log_lines) == [
        f"{tmp_path}: ignored files, by extension: .txt 1; only {', '.join(EXTENSIONS)} are read",
        f"{tmp_path}: 5 images without classes",
    ]


@pytest.mark.parametrize("in_memory", [True, False])
def test_subfolders_are_classes(tmp_path, in_memory, log_lines):
    where = ["zebra/1.png", "Ant/3.png", "ant/deep/er/2.png", "ant/1.png", "mole.png/x.png"]
    for level, name in enumerate(where):
        save(tmp_path / name, flat(level))
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").touch()
    source = load(tmp_path, in_memory=in_memory)
    batch = everything(source)
    assert [where[level] for level in levels(source)] == sorted(where)
    assert batch["label"].dtype == np.int32
    assert batch["label"].tolist() == [0, 1, 1, 2, 3]
    assert source.num_classes == 4
    assert (
        not_warnings(log_lines)[-1] == f"{tmp_path}: 5 images in 4 classes: 0 Ant (1), 1 ant (2), 2 mole.png (1), 3 zebra (1)"
    )


def test_links_are_followed_but_not_in_cycles(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", flat(7))
    folder = tmp_path / "mine"
    save(folder / "a" / "1.png", flat(3))
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "again").symlink_to(folder)
    assert levels(load(folder)) == [3, 7]


def test_memory_or_disk(tmp_path, monkeypatch):
    """Both kinds of source have the same content; "auto" chooses by size."""
    for index in range(40):
        save(tmp_path / str(index % 3) / f"{index}.png", RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    (tmp_path / "1" / "broken.png").touch()
    options = {"on_decode_error": "skip", "num_threads": 3}
    eager, lazy = (load(tmp_path, in_memory=in_memory, **options) for in_memory in (True, False))
    assert (type(eager), type(lazy)) == (ArraySource, LazySource)
    assert len(eager) == len(lazy) == 40
    for name, array in everything(eager).items():
        np.testing.assert_array_equal(everything(lazy)[name], array)
    size = 41 * 8 * 8 * 3
    for limit, kind in ((size, ArraySource), (size - 1, LazySource)):
        monkeypatch.setattr("ddpm_jax.data.source.MEMORY_LIMIT", limit)
        assert type(load(tmp_path, **options)) is kind


def test_home_is_expanded_and_relative_paths_work(tmp_path, monkeypatch):
    save(tmp_path / "mine" / "1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load("~/mine").name == load("mine").name == str(tmp_path / "mine")


def test_links_to_themselves_are_no_folders(tmp_path):
    save(tmp_path / "cats" / "1.png")
    (tmp_path / "cats" / "loop").symlink_to("loop")
    (tmp_path / "cats" / "2.png").symlink_to("2.png")
    with pytest.raises(InvalidDataError, match=r"1 of 2 images in .* cannot be read: cats/2\.png \(too many levels"):
        load(tmp_path)
    assert load(tmp_path, on_decode_error="skip").files == ("cats/1.png",)


def test_names_that_are_not_utf_8(tmp_path, monkeypatch):
    save(tmp_path / "cats" / "1.png")
    os.rename(tmp_path / "cats" / "1.png", os.fsencode(tmp_path) + b"/cats/\xff1.png")
    os.rename(tmp_path / "cats", os.fsencode(tmp_path) + b"/ca\xe9ts")
    save(tmp_path / "dogs" / "1.png")
    for _ in range(2):
        source = load(tmp_path, in_memory=False, cache_dir=str(tmp_path / "cache"))
        assert source.class_names == ("ca\udce9ts", "dogs")
        assert len(everything(source)["image"]) == 2


def test_a_class_folder_without_images_is_no_class(tmp_path):
    save(tmp_path / "cats" / "1.png")
    (tmp_path / "dogs").mkdir()
    assert load(tmp_path).class_names == ("cats",)


def test_progress_is_logged_for_a_large_folder(tmp_path, monkeypatch, log_lines):
    for index in range(40):
        save(tmp_path / f"{index}.png")
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr("ddpm_jax.data.source.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    for in_memory, word in ((True, "read"), (False, "checked")):
        log_lines.clear()
        load(tmp_path, in_memory=in_memory, num_threads=1)
        numbers = ("16 / 40 images (40%)", "32 / 40 images (80%)", "40 / 40 images (100%)")
        assert [line.partition(" · ")[0] for line in log_lines[:3]] == [f"{tmp_path}: {word} {each}" for each in numbers]
        assert log_lines[0].endswith(" · 0.80 images/s · 0:30 left")


# Conversion; tests/data/test_decode.py covers all file types.


@pytest.mark.parametrize("shape", [(8, 8), (40, 24), (24, 41), (5, 3), (1, 9), (300, 200)])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_sizes_are_cropped_and_resized_as_in_every_set(tmp_path, shape, channels):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    save(tmp_path / "x.png", image)
    batch = everything(load(tmp_path, channels=channels))
    np.testing.assert_array_equal(batch["image"], center_crop_and_resize(image, 8, channels)[None])


def test_background(tmp_path):
    save(tmp_path / "x.png", np.zeros((8, 8, 4), np.uint8))
    for options, color in (
        ({}, (255, 255, 255)),
        ({"background": "black"}, (0, 0, 0)),
        ({"background": "#f80"}, (255, 136, 0)),
        ({"background": "Tomato"}, (255, 99, 71)),
    ):
        assert everything(load(tmp_path, **options))["image"][0, 4, 4].tolist() == list(color)
    for wrong in ("wite", "", "#12345", "#11223344"):
        message = error_of(InvalidArgumentError, tmp_path, background=wrong)
        assert f"config.data.background is {wrong!r}" in message
        assert "#rrggbb" in message


# Broken files.


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def cut_png(path):
    cut(save(path))


def cut_jpeg(path):
    cut(save(path, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), format="JPEG"))


def cut_webp(path):
    cut(save(path, format="WEBP"))


def cut_gif(path):
    cut(save(path, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), format="GIF"))


def flipped_bits(path):
    save(path, format="PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def text(path):
    path.write_text("no image")


def postscript(path):
    """Pillow would execute it with Ghostscript."""
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def bomb(path):
    Image.new("1", (14_000, 14_000)).save(path)  # 25 kB


def lost_link(path):
    path.symlink_to(path.parent / "gone")


def not_a_number(path):
    save(path, np.full((8, 8), np.nan, np.float32), format="TIFF")


BREAKERS = {
    cut_png: "truncated",
    cut_jpeg: "truncated",
    cut_webp: "decoder",
    cut_gif: "truncated",
    flipped_bits: "broken",
    pathlib.Path.touch: "empty file",
    text: "not an image",
    postscript: "not an image",
    bomb: "more than 178,956,970 pixels",
    lost_link: "no such file",
    not_a_number: "nan",
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda breaker: breaker.__name__)
def test_a_broken_file_is_an_error_or_skipped(tmp_path, breaker, in_memory, log_lines):
    for level, name in enumerate(["a", "c"]):
        save(tmp_path / f"{name}.png", flat(level))
    breaker(tmp_path / "b.png")
    message = error_of(InvalidDataError, tmp_path, in_memory=in_memory)
    assert message.startswith(f"1 of 3 images in {tmp_path} cannot be read: b.png (")
    assert message.endswith("; repair or remove them, or train without them: --config.data.on_decode_error=skip")
    assert BREAKERS[breaker] in message
    # Another cache: on a slow machine the error may come long enough after the files were written.
    source = load(tmp_path, in_memory=in_memory, on_decode_error="skip", cache_dir=str(tmp_path / ".cache"))
    assert levels(source) == [0, 1]
    reason = message.split("b.png (")[1].split(");")[0]
    assert log_lines[0] == f"{tmp_path}: skipped 1 broken of 3 images: b.png ({reason})"
    assert not_warnings(log_lines)[1:] == [f"{tmp_path}: 2 images without classes"]


def test_many_broken_files_are_counted_and_the_first_named(tmp_path, monkeypatch, log_lines):
    def slow_at_first(self, index, levels, read=FirstReading._read):
        time.sleep(0.2 if index == 0 else 0)  # other threads read their files sooner
        return read(self, index, levels)

    monkeypatch.setattr(FirstReading, "_read", slow_at_first)
    for index in range(30):
        save(tmp_path / f"{index % 2}" / f"{index:02}.png", flat(index))
        if index >= 5:
            (tmp_path / f"{index % 2}" / f"{index:02}.png").write_bytes(b"")
    message = error_of(InvalidDataError, tmp_path, num_threads=2)
    assert message.startswith(f"25 of 30 images in {tmp_path} cannot be read: 0/06.png (empty file), 0/08.png")
    assert message.count("empty file") == 5
    assert " and 20 more; " in message
    source = load(tmp_path, on_decode_error="skip")
    assert levels(source) == [0, 2, 4, 1, 3]  # label, image and order stay consistent
    assert everything(source)["label"].tolist() == [0, 0, 0, 1, 1]
    assert log_lines[0].count("empty file") == 20
    assert log_lines[0].endswith(" and 5 more")


def test_no_readable_image(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save(tmp_path / name).write_bytes(b"")
    for on_decode_error in ("error", "skip"):
        message = error_of(InvalidDataError, tmp_path, on_decode_error=on_decode_error)
        assert message.startswith(f"none of the 3 images in {tmp_path} can be read: a/1.png (empty file), ")
    save(tmp_path / "b" / "1.png")
    assert f"no image of class a in {tmp_path} can be read" in error_of(InvalidDataError, tmp_path, on_decode_error="skip")


def test_a_file_that_breaks_later_is_named(tmp_path):
    save(tmp_path / "a.png")
    source = load(tmp_path, in_memory=False)
    (tmp_path / "a.png").unlink()
    match = r"^a\.png in .* can no longer be read \(no such file or directory\): put it back, or resume .*='skip'`$"
    with pytest.raises(InvalidDataError, match=match):
        everything(source)


def test_a_large_photograph_is_not_a_decompression_bomb(tmp_path, monkeypatch):
    """Between one and two times its limit Pillow only warns, and here warnings are errors."""
    save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    assert len(load(tmp_path)) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    assert "more than 62 pixels" in error_of(InvalidDataError, tmp_path)


def test_lack_of_memory_is_not_a_broken_file(tmp_path, monkeypatch):
    def exhausted(*args, **options):
        raise MemoryError

    save(tmp_path / "a.png")
    monkeypatch.setattr(decode.Image, "open", exhausted)
    with pytest.raises(MemoryError):
        load(tmp_path, on_decode_error="skip")


# Other user errors.


def test_no_such_folder(tmp_path):
    missing = tmp_path / "my phtos"
    assert error_of(FileAccessError, missing) == f"there is no folder {missing}: check config.data.data_dir"
    assert f"{save(tmp_path / 'x.png')} is a file" in error_of(FileAccessError, tmp_path / "x.png")
    assert "--config.data.data_dir=PATH" in error_of(InvalidArgumentError, "")


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def deny(where):
        raise PermissionError(13, "Permission denied", where)

    monkeypatch.setattr(os, "scandir", deny)  # root, which tests may run as, can list every folder
    assert error_of(FileAccessError, tmp_path) == f"cannot list {tmp_path}: permission denied"


def test_no_images(tmp_path):
    (tmp_path / "a").mkdir()
    message = error_of(InvalidDataError, tmp_path)
    assert message == f"no images in {tmp_path}: searched it and its subfolders for {', '.join(EXTENSIONS)}"
    for name in ("1.heic", "2.HEIC", "a/README"):
        (tmp_path / name).touch()
    assert error_of(InvalidDataError, tmp_path) == f"{message}, and found only .heic 2, no extension 1"


def test_images_both_at_the_top_and_in_subfolders(tmp_path):
    for name in ("1.png", "2.png", "cats/1.png", "dogs/1.png"):
        save(tmp_path / name)
    message = error_of(InvalidDataError, tmp_path)
    assert f"{tmp_path} holds images both at its top (1.png and 1 more) and in subfolders (cats, dogs)" in message


def test_a_line_break_in_a_name_does_not_break_the_line(tmp_path):
    (tmp_path / "a\nb.png").touch()
    save(tmp_path / "c.png")
    assert "a?b.png (empty file)" in error_of(InvalidDataError, tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "test"}, "no split 'test' (config.data.split"),
        ({"split": "train[:x]"}, "no split 'train[:x]'"),
        ({"on_decode_error": "ignore"}, "data.on_decode_error is 'ignore': choose one of error, skip"),
        ({"channels": 4}, "channels is 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_options(tmp_path, options, expected):
    save(tmp_path / "a.png")
    assert expected in error_of(InvalidArgumentError, tmp_path, **options)
    assert load(tmp_path, split="all").split == "all"


# Photographs.


@pytest.fixture
def photographs(real_data, tmp_path):
    """A folder with a subfolder per class, 64x64: real flowers, or synthetic landscapes."""
    if real_data is not None:
        return real_data / "flowers64"
    for index in range(20):
        picture = Image.effect_mandelbrot((64, 64), (-2 + index / 20, -1.5, 1 - index / 20, 1.5), 40)
        picture = Image.merge("RGB", [picture, picture.rotate(90), picture.rotate(180)])
        save(tmp_path / f"class{index % 4}" / f"{index}.png", picture)
    return tmp_path


def test_photographs(photographs):
    files = sorted(file.relative_to(photographs).as_posix() for file in photographs.rglob("*.png"))
    names = sorted({file.split("/")[0] for file in files})
    full, half = load(photographs, image_size=64), load(photographs, image_size=32, in_memory=False, num_threads=2)
    assert len(full) == len(half) == len(files) >= 20
    assert full.num_classes == len(names) >= 4
    chosen = np.random.default_rng(0).permutation(len(files))[:20]
    batch, smaller = full.batch(chosen), half.batch(chosen)
    for row, index in enumerate(chosen):
        with Image.open(photographs / files[index]) as picture:
            np.testing.assert_array_equal(batch["image"][row], np.asarray(picture))
        assert names[batch["label"][row]] == files[index].split("/")[0]
    np.testing.assert_array_equal(smaller["label"], batch["label"])
    # Shrinking keeps the mean of each channel: bicubic weights add up to 1, except at the borders.
    means, expected = smaller["image"].mean((1, 2)), batch["image"].mean((1, 2))
    np.testing.assert_allclose(means, expected, atol=1.5)


# Splits and classes.


@pytest.fixture
def split_folder(tmp_path):
    """train/ and val/, each with the classes 2 and 10; ten and three images of each, all different."""
    for where, count in (("train", 10), ("val", 3)):
        for label in (2, 10):
            for index in range(count):
                save(tmp_path / where / str(label) / f"{index}.png", flat(100 * (label == 10) + 50 * (where == "val") + index))
    return tmp_path


def test_folders_of_numbers_are_labeled_in_the_order_of_the_numbers(tmp_path):
    for name in ("0", "1", "2", "10"):
        save(tmp_path / name / "a.png", flat(int(name)))
    source = load(tmp_path)
    assert source.class_names == ("0", "1", "2", "10")
    batch = everything(source)
    assert {int(name): label for name, label in zip(batch["image"][:, 0, 0, 0], batch["label"], strict=True)} == {
        0: 0,
        1: 1,
        2: 2,
        10: 3,
    }
    save(tmp_path / "x" / "a.png", flat(99))  # one name is not a number: sorted as strings
    assert load(tmp_path).class_names == ("0", "1", "10", "2", "x")


def test_folders_train_and_val_are_splits_with_the_same_classes(split_folder):
    train, held_out = load(split_folder), load(split_folder, split="val")
    assert (len(train), len(held_out), len(load(split_folder, split="all"))) == (20, 6, 26)
    assert train.class_names == held_out.class_names == ("2", "10")
    for source in (train, held_out, load(split_folder, split="all")):
        batch = everything(source)
        assert ((batch["image"][:, 0, 0, 0] >= 100) == (batch["label"] == 1)).all()
    assert levels(load(split_folder, split="validation")) == levels(held_out)  # a synonym
    assert "so its splits" not in error_of(InvalidArgumentError, split_folder, split="test")
    assert "its folders, are train, val, all" in error_of(InvalidArgumentError, split_folder, split="test")
    save(split_folder / "val" / "11" / "a.png")
    assert "has the class 11, which" in error_of(InvalidDataError, split_folder)


def test_train_and_test_with_other_folders_are_classes(tmp_path):
    for name in ("train", "test", "bus"):
        save(tmp_path / name / "a.png")
    assert load(tmp_path).class_names == ("bus", "test", "train")


@pytest.mark.parametrize("in_memory", [True, False])
def test_slices_of_a_folder_are_disjoint_and_have_all_classes(tmp_path, in_memory):
    for label, (name, count) in enumerate([("cat", 30), ("dog", 10)]):
        for index in range(count):
            save(tmp_path / name / f"{index}.png", flat(100 * label + index))
    slices = [load(tmp_path, split=split, in_memory=in_memory) for split in ("train[:90%]", "train[90%:]", "train[:8]")]
    seen = [levels(source) for source in slices]
    assert sorted(seen[0] + seen[1]) == sorted(levels(load(tmp_path)))
    assert [len(part) for part in seen] == [36, 4, 8]
    counts = [np.bincount(everything(source)["label"], minlength=2).tolist() for source in slices]
    assert counts == [[27, 9], [3, 1], [6, 2]]  # in proportion
    assert sorted(levels(load(tmp_path, split="train[:8]+train[90%:]"))) == sorted(seen[2] + seen[1])
    assert "is empty" in error_of(InvalidArgumentError, tmp_path, split="train[40:]")


def test_prefixes_of_names_are_explained(tmp_path):
    for name in ("cat_001", "cat_002", "cat_003", "dog_01", "dog_02", "dog_03"):
        save(tmp_path / f"{name}.png")
    source = load(tmp_path)
    assert source.num_classes == 0
    assert "(cat/ for the files cat..., and so on): file names do not define classes" in class_prefixes(source)


# Identity.


def test_a_fingerprint_is_of_paths_and_contents(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        for index in range(3):
            save(folder / f"{index}.png", flat(index))
    fingerprint = load(one).fingerprint
    assert len(fingerprint) == 64
    assert load(other, in_memory=False, image_size=4).fingerprint == fingerprint  # a copy, read lazily
    (other / "2.png").rename(other / "3.png")
    assert load(other).fingerprint != fingerprint
    (other / "3.png").rename(other / "2.png")
    assert load(other).fingerprint == fingerprint
    save(other / "2.png", flat(7))
    changed = load(other).fingerprint
    assert changed != fingerprint
    (other / "4.png").touch()
    assert load(other, on_decode_error="skip").fingerprint == changed  # skipped files are not part of it
    assert load(other, on_decode_error="skip", split="train[:2]").fingerprint not in (fingerprint, changed)


# Levels of deep gray files.


def deep(path, low, high, kind=np.uint16):
    return save(path, np.linspace(low, high, 64).reshape(8, 8).astype(kind))


@pytest.mark.parametrize("in_memory", [True, False])
def test_deep_files_share_one_range_that_is_reported(tmp_path, in_memory, log_lines):
    deep(tmp_path / "a.png", 0, 4000)
    deep(tmp_path / "b.png", 0, 2000)
    save(tmp_path / "c.png", flat(200))  # 8 bits: always 0..255
    source = load(tmp_path, channels=1, in_memory=in_memory)
    assert source.value_range == (0.0, 4095.0)
    highest = everything(source)["image"].max(axis=(1, 2, 3)).tolist()
    assert highest == [round(4000 / 4095 * 255), round(2000 / 4095 * 255), 200]
    assert any("2 gray files of more than 8 bits, levels 0 to 4000: 0 becomes black, 4095 white" in line for line in log_lines)
    given = load(tmp_path, channels=1, in_memory=in_memory, levels=(0, 2000))
    assert everything(given)["image"].max(axis=(1, 2, 3)).tolist() == [255, 255, 200]
    assert any("1 of them have levels outside the range, which are clipped" in line for line in log_lines)


def test_a_small_overshoot_darkens_nothing(tmp_path):
    deep(tmp_path / "a.tif", 0, 1.0, np.float32)
    deep(tmp_path / "b.tif", -0.004, 1.004, np.float32)
    source = load(tmp_path, channels=1)
    assert source.value_range == (0.0, 1.0)
    first, second = everything(source)["image"]
    assert np.abs(first.astype(int) - second).max() <= 2  # .008 of the range between them


def test_levels_that_fit_no_standard_range_name_the_field(tmp_path):
    deep(tmp_path / "a.tif", -1000, 3000, np.int32)
    message = error_of(InvalidArgumentError, tmp_path)
    assert "--config.data.value_range='(-1000,3000)'" in message
    source = load(tmp_path, channels=1, levels=(-1000, 3000))
    assert (everything(source)["image"].min(), everything(source)["image"].max()) == (0, 255)


def test_a_set_that_uses_little_of_its_range_is_a_warning(tmp_path, log_lines):
    def warnings_of(**images):
        folder = tmp_path / "-".join(images)
        log_lines.clear()
        for name, (low, high) in images.items():
            deep(folder / f"{name}.png", low, high, np.uint8)
        load(folder, channels=1)
        return [line for line in log_lines if line.startswith("warning: ")]

    assert warnings_of(good=(0, 255)) == []
    assert "1 of 2 images have one level only" in warnings_of(good=(0, 255), flat=(9, 9))[0]
    assert "1 of 2 images are nearly black" in warnings_of(good=(0, 255), dark=(0, 12))[0]
    assert "1 of 2 images are nearly white" in warnings_of(good=(0, 255), light=(243, 255))[0]
    assert "1 of 2 images use under 1/16" in warnings_of(good=(0, 255), gray=(100, 112))[0]
    assert "all 1 images use the levels 100 to 112" in warnings_of(gray2=(100, 112))[0]
    assert "every pixel of all 1 images has the level 9" in warnings_of(flat2=(9, 9))[0]
    assert "value_range" not in "".join(warnings_of(gray3=(100, 112)))  # which has no effect on 8-bit files
    assert "all 2 files are the same image" in warnings_of(one=(0, 255), two=(0, 255))[0]


def test_a_deep_set_that_uses_little_of_its_range_names_a_better_range(tmp_path, log_lines):
    deep(tmp_path / "a.png", 20_000, 20_500)
    load(tmp_path, channels=1)
    assert "all 1 images use the levels 78 to 80 of 0..255, under 1/16 of the range" in log_lines[-1]
    assert "--config.data.value_range='(20000,20500)'" in as_user_reads(log_lines[-1])
    assert everything(load(tmp_path, channels=1, levels=(20_000, 20_500)))["image"].max() == 255


def test_floats_of_12_bits_are_not_taken_for_16_bits(tmp_path):
    deep(tmp_path / "a.tif", 0, 4000, np.float32)
    assert load(tmp_path, channels=1).value_range == (0.0, 4095.0)
    deep(tmp_path / "b.tif", 0, 4000, np.int32)  # integers and floats of the same range
    assert load(tmp_path, channels=1).value_range == (0.0, 4095.0)
    deep(tmp_path / "c.tif", 0, 60_000, np.int32)
    assert "no single range fits" in error_of(InvalidArgumentError, tmp_path, channels=1)


def test_a_split_without_the_classes_of_train_is_named(tmp_path):
    for name in ("train/cat/1", "train/dog/1", "test/1"):
        save(tmp_path / f"{name}.png", flat(3))
    message = error_of(InvalidDataError, tmp_path)
    assert f"{tmp_path}/test has no class folders, but {tmp_path}/train has (cat, dog)" in message


def test_a_folder_of_splits_has_the_fingerprints_of_its_splits(tmp_path, log_lines):
    """The summary names the splits; a fingerprint uses the paths within the split."""
    for name in ("train", "test"):
        for index in range(3):
            save(tmp_path / name / f"{index}.png", flat(10 * index))
    source = load(tmp_path)
    assert f"{tmp_path}: 3 images (split train; the folders test, train are splits) without classes" in log_lines
    assert load(tmp_path / "train").fingerprint == load(tmp_path, split="test").fingerprint == source.fingerprint
