"""Prepared sets: the same images, labels and slices as their folder, interrupted and damaged ones, and other targets."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import identity, prepare, prepared
from ddpm_jax.data.image_folder import load_image_folder
from ddpm_jax.data.prepare_target import Settings
from ddpm_jax.data.source import ImageSource, NoSuchSplit
from ddpm_jax.runtime.errors import ConflictError, FileAccessError, InvalidArgumentError, InvalidDataError
from tests.conftest import REPOSITORY

SIZE = (8, 12)
SETTINGS = Settings(SIZE)


@pytest.fixture
def photographs(tmp_path):
    """23 images in two classes, in two splits: JPEG, PNG with transparency, gray."""
    rng = np.random.default_rng(0)
    for index in range(23):
        where = tmp_path / "photos" / ("train" if index % 5 else "test") / ("10", "9")[index % 2]
        where.mkdir(parents=True, exist_ok=True)
        shape = (10 + index, 30 - index, (3, 4, 3)[index % 3])
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        image.save(where / f"{index}.{('jpg', 'png', 'jpg')[index % 3]}")
    return tmp_path / "photos"


def everything(source):
    return source.batch(np.arange(len(source)))


def run(folder, target, settings=SETTINGS, **options):
    return prepare.prepare(str(folder), str(target), settings, **options)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("split", ["train", "test", "all", "train[:40%]", "train[40%:]", "test[:2]+train[3:9]"])
def test_a_prepared_set_is_its_folder(tmp_path, photographs, split, in_memory, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_BYTES", 5 * 8 * 12 * 3)  # several shards
    run(photographs, tmp_path / "set")
    ours = prepared.load_prepared(split, folder=str(tmp_path / "set"), in_memory=in_memory)
    folder = load_image_folder(str(photographs), image_size=SIZE, channels=3, split=split)
    assert isinstance(ours, ImageSource)
    assert (ours.image_shape, ours.num_classes, ours.class_names) == ((8, 12, 3), 2, ("9", "10"))
    assert (ours.name, ours.split, len(ours)) == (str(tmp_path / "set"), split, len(folder))
    expected = everything(folder)
    for name, array in everything(ours).items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == expected[name].dtype
    rows = np.array([3, 0, 3])
    np.testing.assert_array_equal(ours.batch(rows)["image"], expected["image"][rows])
    ours.batch(rows)["image"][:] = 0  # belongs to the caller
    np.testing.assert_array_equal(ours.batch(rows)["image"], expected["image"][rows])
    with pytest.raises(IndexError):
        ours.batch(np.array([len(ours)]))


def test_settings_reach_the_images(tmp_path, photographs):
    images = {}
    for name, settings in {
        "white": Settings(8),
        "black": Settings(8, background="black"),
        "gray": Settings(8, channels=1),
        "adm": Settings(8, crop="adm"),
    }.items():
        about = run(photographs, tmp_path / name, settings)
        assert about["image_shape"] == [8, 8, settings.channels]
        images[name] = everything(prepared.load_prepared("train", folder=str(tmp_path / name)))["image"]
    for name in ("black", "adm"):
        assert np.any(images["white"] != images[name])
    folder = load_image_folder(str(photographs), image_size=8, channels=1)
    np.testing.assert_array_equal(images["gray"], everything(folder)["image"])


def test_one_range_for_gray_files_of_16_bits(tmp_path):
    (tmp_path / "deep").mkdir()
    for index, level in enumerate((100, 1000, 4000)):
        Image.fromarray(np.full((9, 9), level, np.uint16)).save(tmp_path / "deep" / f"{index}.png")
    run(tmp_path / "deep", tmp_path / "set", Settings(4, channels=1))
    source = prepared.load_prepared("train", folder=str(tmp_path / "set"))
    assert source.value_range == (0, 4095)
    np.testing.assert_array_equal(everything(source)["image"][:, 0, 0, 0], [6, 62, 249])
    run(tmp_path / "deep", tmp_path / "wide", Settings(4, channels=1, levels=(0, 8000)))
    assert prepared.load_prepared("train", folder=str(tmp_path / "wide")).value_range == (0, 8000)


def test_the_fingerprint_depends_on_images_labels_and_split(tmp_path, photographs):
    run(photographs, tmp_path / "a")
    run(photographs, tmp_path / "copy")
    run(photographs, tmp_path / "gray", Settings(SIZE, channels=1))
    found = {
        (name, split): identity.identity_of(prepared.load_prepared(split, folder=str(tmp_path / name)))
        for name in ("a", "copy", "gray")
        for split in ("train", "train[:5]", "test")
    }
    prints = {key: about["fingerprint"] for key, about in found.items()}
    assert prints["a", "train"] == prints["copy", "train"]
    assert len({prints[key] for key in prints if key[0] != "copy"}) == 6
    description = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert description["splits"]["train"]["fingerprint"] == prints["a", "train"]
    assert (
        description["splits"]["train"]["class_counts"]
        == np.bincount(everything(prepared.load_prepared("train", folder=str(tmp_path / "a")))["label"]).tolist()
    )
    images, labels = np.zeros((2, 16), np.uint8), np.array([0, 1])
    assert prepared.fingerprint(images, labels) != prepared.fingerprint(images, labels[::-1])


KILLED = """
    import os, signal, sys
    from ddpm_jax.data import prepare
    from ddpm_jax.data.prepare_target import Settings

    prepare.SHARD_BYTES = 4 * 8 * 12 * 3
    def report(done, total):
        if done == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    prepare.prepare(sys.argv[1], sys.argv[2], Settings((8, 12)), report=report)
"""


def test_a_killed_preparation_continues(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_BYTES", 4 * 8 * 12 * 3)
    target = tmp_path / "set"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(photographs), str(target), "10"]
    killed = subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(FileAccessError, match="unfinished set: run the command that prepares it again"):
        prepared.load_prepared("train", folder=str(target))
    kept = {file.name: file.stat().st_mtime_ns for file in target.glob("*.array_record")}
    assert len(kept) == 3  # 4 and 1 images of test, 4 of train; the next shard was not finished
    calls = []
    run(photographs, target, report=lambda done, total: calls.append((done, total)))
    assert calls[0] == (9, 23)
    assert calls[-1] == (23, 23)
    assert {name: (target / name).stat().st_mtime_ns for name in kept} == kept
    run(photographs, tmp_path / "whole")
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert sorted(file.name for file in target.iterdir()) == names  # nothing temporary is left
    for name in names:
        if name not in ("train.npz", "test.npz"):  # which contain the time
            assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for split in ("train", "test"):
        ours, whole = (prepared.load_prepared(split, folder=str(where)) for where in (target, tmp_path / "whole"))
        assert ours.fingerprint == whole.fingerprint
        np.testing.assert_array_equal(everything(ours)["label"], everything(whole)["label"])


def test_broken_files_are_listed_and_left_out_only_if_asked_for(tmp_path, photographs):
    broken = sorted((photographs / "train" / "9").iterdir())[:2]
    for file in broken:
        file.write_bytes(file.read_bytes()[:-40])
    target = tmp_path / "set"
    with pytest.raises(InvalidDataError, match=r"2 of 18 images in .* cannot be read: train/9/.*`on_decode_error='skip'`"):
        run(photographs, target)
    assert not (target / "dataset.json").exists()
    assert [line.split("\t")[0] for line in (target / "broken.txt").read_text().splitlines()] == [
        f"train/9/{file.name}" for file in broken
    ]
    shards = {file: file.stat().st_mtime_ns for file in target.glob("*.array_record")}
    about = run(photographs, target, on_decode_error="skip")
    assert {file: file.stat().st_mtime_ns for file in shards} == shards  # they are not written again
    assert (about["broken"], about["splits"]["train"]["count"]) == (2, 16)
    expected = load_image_folder(str(photographs), image_size=SIZE, channels=3, on_decode_error="skip")
    source = prepared.load_prepared("train", folder=str(target))
    for name, array in everything(source).items():
        np.testing.assert_array_equal(array, everything(expected)[name])
    for file in (photographs / "test" / "9").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InvalidDataError, match="can be read"):
        run(photographs, tmp_path / "other", on_decode_error="skip")


def test_other_contents_are_never_overwritten(tmp_path, photographs):
    target = tmp_path / "set"
    first = run(photographs, target)
    assert run(photographs, target) == first  # the same set: nothing to do
    files = {file.name: file.read_bytes() for file in target.iterdir()}
    with pytest.raises(ConflictError, match=r"image_size: \[8, 12\] there, \[8, 8\] here\): choose another `to`"):
        run(photographs, target, Settings(8))
    os.utime(next((photographs / "train" / "9").iterdir()), ns=(0, 0))
    with pytest.raises(ConflictError, match=r"another prepared set \(the images have changed"):
        run(photographs, target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == files
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ConflictError, match=r"is not empty \(thesis\.tex"):
        run(photographs, tmp_path / "other")
    (target / "dataset.json").unlink()
    (target / "preparing.json").write_text(json.dumps({"plan": {"files": 1}, "value_range": []}))
    with pytest.raises(ConflictError, match="unfinished set of other images or settings"):
        run(photographs, target)


def test_one_process_at_a_time(tmp_path, photographs):
    import fcntl

    (tmp_path / "set").mkdir()
    with open(tmp_path / "set" / ".prepare.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="another process prepares"):
            run(photographs, tmp_path / "set")
    run(photographs, tmp_path / "set")


def test_damaged_sets(tmp_path, photographs):
    target = tmp_path / "set"
    run(photographs, target)

    def error(kind, match):
        with pytest.raises(kind, match=match):
            everything(prepared.load_prepared("train", folder=str(target), in_memory=False))

    def damage(name, content):
        good = (target / name).read_bytes()
        (target / name).write_bytes(content(good))
        return good

    for name, content, kind, match in (
        ("train-00000.array_record", lambda good: good[:-1], InvalidDataError, "has .* bytes, not"),
        ("train-00000.array_record", lambda good: bytes(len(good)), InvalidDataError, "a record in .* cannot be read"),
        ("train.npz", lambda good: good[:50], InvalidDataError, "train.npz is damaged"),
        ("dataset.json", lambda good: b"{", InvalidDataError, "dataset.json is damaged"),
        ("dataset.json", lambda good: good.replace(b'"class_names"', b'"names"'), InvalidDataError, "dataset.json is damaged"),
        ("dataset.json", lambda good: good.replace(b'"format": 1', b'"format": 9'), InvalidDataError, "format 9"),
    ):
        good = damage(name, content)
        error(kind, match)
        (target / name).write_bytes(good)
    with pytest.raises(NoSuchSplit, match="its splits are test, train, all"):
        prepared.load_prepared("holdout", folder=str(target))
    (target / "train-00000.array_record").unlink()
    error(FileAccessError, "array_record is missing")
    with pytest.raises(FileAccessError, match=r"no prepared set .*ddpm-jax prepare --from=PHOTOS"):
        prepared.load_prepared("train", folder=str(photographs))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (Settings(8, channels=2), "`channels` is 2"),
        (Settings(8, crop="left"), "`crop` is 'left': choose one of center, adm"),
        (Settings(0), "`image_size` is 0"),
        (Settings(8, background="nothing"), "`background`"),
    ],
)
def test_invalid_settings(tmp_path, photographs, settings, match):
    with pytest.raises(InvalidArgumentError, match=match):
        run(photographs, tmp_path / "set", settings)
    assert not (tmp_path / "set").exists()
