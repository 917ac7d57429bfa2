"""Data sets in a bucket: the same images as on this machine, read from it or copied once."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import load, local_copy, prepare
from ddpm_jax.data.decode import open_image, to_uint8
from ddpm_jax.data.prepare_target import Settings
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, InvalidDataError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddpm_jax" / "data"


@pytest.fixture
def photos(tmp_path, bucket):
    """The same 9 images in two classes in a local folder and in the bucket, and a file that is not an image."""
    folder = tmp_path / "photos"
    for index in range(9):
        file = folder / ("cats", "dogs")[index % 2] / f"{index} #.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (9, 10, 3), dtype=np.uint8)).save(file)
    (folder / "notes.txt").write_text("")
    (folder / ".hidden.png").write_text("")
    storage.upload_folder(folder, storage.path(bucket))
    return folder


def read(name, data_dir, split="train", **options):
    source = load.load_source(name, split, **{"image_size": 8, "channels": 3, "data_dir": str(data_dir)} | options)
    return source, source.batch(np.arange(len(source)))


def assert_same(one, other):
    (first, images), (second, expected) = one, other
    assert np.array_equal(images["image"], expected["image"])
    assert np.array_equal(images["label"], expected["label"])
    assert first.fingerprint == second.fingerprint
    assert first.class_names == second.class_names


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_image_folder_is_read_from_the_bucket(photos, bucket, in_memory):
    remote = read("image_folder", bucket, in_memory=in_memory)
    assert_same(remote, read("image_folder", photos, in_memory=in_memory))
    assert remote[0].name == bucket
    assert_same(read("image_folder", bucket, "train[:50%]"), read("image_folder", photos, "train[:50%]"))


def test_an_array_folder_is_read_from_the_bucket(tmp_path, bucket):
    folder = tmp_path / "scans"
    for index in range(4):
        (folder / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        np.save(folder / "ab"[index % 2] / f"{index}.npy", RNG.random((8, 8, 4), np.float32))
    storage.upload_folder(folder, storage.path(bucket))
    options = {"channels": 4, "array_dtype": "float32", "levels": (0, 1)}
    assert_same(read("array_folder", bucket, **options), read("array_folder", folder, **options))


def test_a_broken_file_is_named_and_a_failing_bucket_is_not_a_broken_file(photos, bucket, emulator):
    (storage.path(bucket) / "cats" / "bad.png").write_bytes(b"GIF")
    with pytest.raises(InvalidDataError, match=r"1 of 10 images in gs://.* cannot be read: cats/bad.png \(not an image\)"):
        read("image_folder", bucket)
    assert len(read("image_folder", bucket, on_decode_error="skip")[0]) == 9
    source, _ = read("image_folder", bucket, on_decode_error="skip", in_memory=False)
    with emulator.failing(403, "GET", "alt=media"):
        with pytest.raises(FileAccessError, match=r"cannot read gs://.*: no permission"):
            read("image_folder", bucket, on_decode_error="skip")
        with pytest.raises(FileAccessError, match=r"cannot read gs://.*: no permission"):
            source.batch(np.arange(2))
    (storage.path(bucket) / "cats" / "0 #.png").unlink()
    with pytest.raises(InvalidDataError, match="can no longer be read"):
        source.batch(np.arange(len(source)))


def test_a_missing_folder_and_one_image(photos, bucket):
    with pytest.raises(FileAccessError, match=f"there is no folder {bucket}/none: check"):
        read("image_folder", f"{bucket}/none")
    with pytest.raises(FileAccessError, match=f"there is no folder {bucket}/none: a prepared set is needed"):
        read("prepared", f"{bucket}/none")
    file = "dogs/1 #.png"
    images = [to_uint8(open_image(f"{folder}/{file}"), (0, 0, 0)) for folder in (bucket, photos)]
    assert np.array_equal(*images)


def test_a_prepared_set_is_copied_once(photos, bucket, cache, tmp_path, log_lines, emulator):
    target = tmp_path / "prepared"
    prepare.prepare(str(photos), str(target), Settings((8, 8)))
    storage.upload_folder(target, storage.path(bucket) / "set")
    place = f"{bucket}/set"
    expected = read("prepared", target)
    remote = read("prepared", place)
    assert_same(remote, expected)
    assert remote[0].name == place
    copy = cache / place.removeprefix("gs://")
    assert {file.name for file in copy.iterdir()} >= {"dataset.json", "train.npz"}
    assert f"{place}: copying" in " ".join(log_lines)

    def downloads(action):
        seen = len(emulator.requests)
        action()
        return [path for _, path in emulator.requests[seen:] if "alt=media" in path]

    assert downloads(lambda: assert_same(read("prepared", place), expected)) == []
    (copy / "train.npz").unlink()  # an interrupted copy
    (copy / "dataset.json").write_bytes((copy / "dataset.json").read_bytes()[:-1])
    assert len(downloads(lambda: assert_same(read("prepared", place), expected))) == 2
    changed = storage.path(place) / "train.npz"
    content = changed.read_bytes()
    changed.write_bytes(content)
    os.utime(copy / "train.npz", (1, 1))  # the object is newer, of the same size
    assert len(downloads(lambda: assert_same(read("prepared", place), expected))) == 1
    assert not list(cache.rglob("*.tmp"))


def test_a_set_is_not_prepared_in_a_bucket(photos, bucket, tmp_path):
    for folder, target in ((bucket, tmp_path / "set"), (photos, bucket)):
        with pytest.raises(InvalidArgumentError, match=r"^gs://.*: sets are prepared from a folder of this machine"):
            prepare.prepare(str(folder), str(target), Settings((8, 8)))


def test_a_failed_copy_leaves_no_part(photos, bucket, cache, emulator):
    with emulator.failing(403, "GET", "alt=media"), pytest.raises(FileAccessError, match=r"cannot copy gs://.*: no permission"):
        local_copy.of_folder(bucket, "a set")
    assert not [file for file in cache.rglob("*") if file.is_file()]
    folder = pathlib.Path(local_copy.of_folder(bucket, "a set", lambda name: name.startswith("cats")))
    assert sorted(file.name for file in folder.rglob("*.png")) == ["0 #.png", "2 #.png", "4 #.png", "6 #.png", "8 #.png"]


def test_a_set_that_is_larger_than_the_disk(photos, bucket, monkeypatch):
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda folder: _Disk)
    with pytest.raises(FileAccessError, match="are needed; set `cache_dir` to a larger disk"):
        local_copy.of_folder(bucket, "a set")


class _Disk:
    free = 10
