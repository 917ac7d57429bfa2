"""The manifest of a folder: which files are read again, and that a set is always that of the present files."""

import os

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import array_folder, first_reading, folder_manifest, local_copy
from ddpm_jax.data.image_folder import load_image_folder
from ddpm_jax.data.image_pairs import load_pairs
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

COUNT = 12
AN_HOUR = 3600


def write(file, seed, mode="RGB"):
    """A file that was written an hour ago."""
    random = np.random.default_rng(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    if mode == "RGB":
        Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(file)
    else:
        Image.fromarray(random.integers(0, 4000, (6, 6), dtype=np.uint16)).save(file)
    age(file)


def age(file, seconds=AN_HOUR):
    before = file.stat().st_mtime - seconds
    os.utime(file, (before, before))


@pytest.fixture
def photos(tmp_path):
    for index in range(COUNT):
        write(tmp_path / "photos" / ("cats", "dogs")[index % 2] / f"{index:02d}.png", index)
    return tmp_path / "photos"


@pytest.fixture
def read_files(monkeypatch):
    """Paths of the files that were read, which is also what decides about their number."""
    found = []
    read = first_reading.FirstReading._read

    def recorded(self, index, levels):
        found.append(self._paths[index])
        read(self, index, levels)

    monkeypatch.setattr(first_reading.FirstReading, "_read", recorded)
    return found


@pytest.fixture
def load(tmp_path, photos, read_files):
    """Loads the folder, and returns the source and the files that were read."""

    def load(folder=photos, **options):
        read_files.clear()
        options = {"image_size": 4, "channels": 3, "in_memory": False, "cache_dir": str(tmp_path / "cache")} | options
        return load_image_folder(str(folder), **options), sorted(read_files)

    return load


def fresh(folder, **options):
    """The same set without a manifest."""
    return load_image_folder(str(folder), image_size=4, channels=3, in_memory=True, **options)


def test_a_second_start_reads_no_file(load, photos, tmp_path, log_lines):
    first, read = load()
    assert len(read) == COUNT
    assert [entry.parent.name for entry in (tmp_path / "cache").rglob("*.npz")] == ["manifests"]
    second, read = load()
    assert read == []
    assert f"{photos}: 12 files have not changed since they were checked" in " ".join(log_lines)
    for source in (first, second):
        assert source.fingerprint == fresh(photos).fingerprint
        assert (list(source.files), source.class_names, source.value_range) == (list(first.files), ("cats", "dogs"), ())
        np.testing.assert_array_equal(source.batch(np.arange(COUNT))["image"], fresh(photos).batch(np.arange(COUNT))["image"])


def changed(file):
    write(file, 100)


def changed_with_the_old_time(file):
    """As by `touch -r`: only the time of the last change of status, which no program can set, differs."""
    before = file.stat()
    write(file, 102)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(file):
    """Another file under this name, with the time of the first."""
    before = file.stat()
    write(file.with_suffix(".tmp.png"), 101)
    os.replace(file.with_suffix(".tmp.png"), file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [changed, changed_with_the_old_time, replaced])
def test_a_changed_file_is_read_again(load, photos, change):
    first, _ = load()
    change(photos / "cats" / "04.png")
    second, read = load()
    assert read == ["cats/04.png"]
    assert second.fingerprint == fresh(photos).fingerprint != first.fingerprint


def test_new_removed_and_renamed_files(load, photos):
    load()
    write(photos / "birds" / "a.png", 50)
    (photos / "cats" / "00.png").unlink()
    (photos / "dogs" / "01.png").rename(photos / "dogs" / "99.png")
    source, read = load()
    assert read == ["birds/a.png", "dogs/99.png"]
    assert source.class_names == ("birds", "cats", "dogs")
    assert source.fingerprint == fresh(photos).fingerprint
    assert load()[1] == []


def test_splits_and_slices_share_the_manifest(load, photos):
    load(split="train[:50%]")
    source, read = load(split="train")
    assert len(read) == COUNT // 2
    assert source.fingerprint == fresh(photos).fingerprint
    for split in ("train[50%:]", "train[:50%]", "train"):
        source, read = load(split=split)
        assert read == []
        assert source.fingerprint == fresh(photos, split=split).fingerprint


def test_folders_of_splits_share_the_manifest(load, photos, tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "splits" / split / "a.png", 1)
        write(tmp_path / "splits" / split / f"{split}.png", 2)
    for split in ("train", "test"):
        load(tmp_path / "splits", split=split)
    for split in ("train", "test", "all"):
        source, read = load(tmp_path / "splits", split=split)
        assert read == []
        assert source.fingerprint == fresh(tmp_path / "splits", split=split).fingerprint


def test_other_settings_have_another_manifest(load):
    load()
    assert len(load(image_size=3)[1]) == COUNT
    assert len(load(background="black")[1]) == COUNT
    assert load()[1] == []


def test_a_file_written_at_the_time_of_the_reading_is_read_again(load, photos):
    age(photos / "cats" / "02.png", -AN_HOUR)  # now
    assert len(load()[1]) == COUNT
    assert load()[1] == ["cats/02.png"]
    age(photos / "cats" / "02.png")
    assert load()[1] == ["cats/02.png"]
    assert load()[1] == []


def test_broken_files_are_read_at_every_start(load, photos):
    (photos / "cats" / "00.png").write_bytes(b"no image")
    age(photos / "cats" / "00.png")
    with pytest.raises(InvalidDataError, match=r"cats/00\.png \(not an image\)"):
        load()
    source, read = load(on_decode_error="skip")
    assert read == ["cats/00.png"]  # the others are known, although the first start failed
    assert len(source) == COUNT - 1
    assert source.fingerprint == fresh(photos, on_decode_error="skip").fingerprint
    write(photos / "cats" / "00.png", 3)
    source, read = load()
    assert read == ["cats/00.png"]
    assert len(source) == COUNT


def test_deep_gray_files(load, tmp_path, log_lines):
    folder = tmp_path / "deep"
    for index in range(3):
        write(folder / f"{index}.png", index, "I;16")
    write(folder / "3.png", 3)
    first, read = load(folder)
    assert first.value_range == (0.0, 4095.0)
    assert len(read) == 3 + 4  # those of more than 8 bits twice
    second, read = load(folder)
    assert read == []
    assert (second.value_range, second.fingerprint) == (first.value_range, first.fingerprint)
    assert sum("gray files of more than 8 bits" in line for line in log_lines) == 2
    np.testing.assert_array_equal(second.batch(np.arange(4))["image"], first.batch(np.arange(4))["image"])
    assert len(load(folder, levels=(0, 8000))[1]) == 3  # another range: their levels are computed again
    assert load(folder, levels=(0, 8000))[1] == []


def test_condition_images_have_a_manifest(load, photos, tmp_path, read_files):
    source, _ = load()
    for expected in (COUNT, 0):
        read_files.clear()
        pairs = load_pairs(source, str(photos), image_size=4, channels=1, in_memory=False, cache_dir=str(tmp_path / "cache"))
        assert len(read_files) == expected
        assert len(pairs) == COUNT


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_manifest_is_made_again(load, tmp_path, damage, log_lines):
    load()
    (file,) = (tmp_path / "cache" / "manifests").glob("*.npz")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert len(load()[1]) == COUNT
    assert f"{file} is damaged" in " ".join(log_lines)
    assert load()[1] == []


def test_a_manifest_of_another_format_is_not_read(load, monkeypatch):
    load()
    monkeypatch.setattr(folder_manifest, "FORMAT", 2)
    assert len(load()[1]) == COUNT


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, None) for name in ("format", *folder_manifest._ARRAYS)),
        ("format", [1, 1]),
        ("names", np.zeros(3, np.uint8)),
        ("states", np.zeros((COUNT - 1, 3), np.int64)),
        ("digests", np.zeros((COUNT, 31), np.uint8)),
        ("extremes", np.zeros(COUNT, np.uint8)),
        ("deep", np.zeros(1, np.int64)),
        ("levels", np.array(0.0)),
        ("states", np.zeros((COUNT, 3), "U4")),
    ],
)
def test_a_manifest_with_other_arrays_is_made_again(load, tmp_path, name, damage, log_lines):
    """A valid archive, in which an array is missing or has another shape or type."""
    load()
    (file,) = (tmp_path / "cache" / "manifests").glob("*.npz")
    with np.load(file) as content:
        arrays = dict(content)
    del arrays[name]
    np.savez(file, **arrays, **({} if damage is None else {name: damage}))
    assert len(load()[1]) == COUNT
    assert f"{file} is damaged" in " ".join(log_lines)
    assert load()[1] == []


def test_a_cache_that_is_a_file_is_one_warning(load, tmp_path, log_lines):
    (tmp_path / "cache").write_text("a file")
    assert len(load()[1]) == COUNT
    (line,) = [line for line in log_lines if line.startswith("warning")]
    assert "cannot write" in line
    assert "set `cache_dir` to another folder: every start reads every file again" in line


def test_a_cache_that_cannot_be_written_is_one_warning(load, monkeypatch, log_lines):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_manifest, "open_atomic", full)
    assert len(load()[1]) == COUNT
    (line,) = [line for line in log_lines if line.startswith("warning")]
    assert "no space left on device; set `cache_dir` to another folder: the next start reads every file again" in line


@pytest.fixture
def stop_at(monkeypatch, read_files):
    """Ctrl-C when a number of files are read, or none."""
    read, limit = first_reading.FirstReading._read, [None]

    def interrupted(self, index, levels):
        if len(read_files) == limit[0]:
            raise KeyboardInterrupt
        read(self, index, levels)

    monkeypatch.setattr(first_reading.FirstReading, "_read", interrupted)
    monkeypatch.setattr(first_reading, "CHUNK", 1)
    return lambda number: limit.__setitem__(0, number)


def test_a_reading_that_was_stopped_continues(load, photos, stop_at, log_lines):
    stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        load(num_threads=1)
    assert log_lines[-1] == f"{photos}: 7 of 12 files are checked: the next start continues"
    stop_at(None)
    source, read = load(num_threads=1)
    assert len(read) == COUNT - 7
    assert source.fingerprint == fresh(photos).fingerprint


def test_a_reading_of_deep_files_that_was_stopped_continues(load, tmp_path, stop_at):
    """New deep files of a set whose range is known: only after the second reading are their levels."""
    folder = tmp_path / "deep"
    for index in range(3):
        write(folder / f"{index}.png", index, "I;16")
    load(folder, num_threads=1)
    for index in range(3, 6):
        write(folder / f"{index}.png", index, "I;16")
    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        load(folder, num_threads=1)
    stop_at(None)
    source, read = load(folder, num_threads=1)
    assert read == sorted(["5.png"] + [f"{index}.png" for index in range(6)])
    assert (source.value_range, source.fingerprint) == (fresh(folder).value_range, fresh(folder).fingerprint)
    assert load(folder)[1] == []


def test_the_manifest_is_saved_while_files_are_read(load, monkeypatch, stop_at):
    """As a kill would leave it."""
    monkeypatch.setattr(first_reading, "SAVE_S", -1.0)
    monkeypatch.setattr("ddpm_jax.data.source.AHEAD", 1)
    known, save = [], folder_manifest.FolderManifest.save

    def recorded(self, **options):
        save(self, **options)
        known.append(int((self._load()["states"][:, 0] >= 0).sum()))

    monkeypatch.setattr(folder_manifest.FolderManifest, "save", recorded)
    load(num_threads=1)
    assert len(known) == COUNT + 1
    assert all(found > number for number, found in enumerate(known[:-1]))  # the thread continues to read
    assert known[-1] == COUNT


def test_a_cache_that_cannot_be_written_is_known_before_a_long_reading(load, tmp_path, monkeypatch, log_lines, stop_at):
    monkeypatch.setattr(first_reading, "MANY", COUNT - 1)
    monkeypatch.setattr("ddpm_jax.data.source.AHEAD", 1)
    (tmp_path / "cache").symlink_to(tmp_path / "nothing" / "there")
    stop_at(3)
    with pytest.raises(KeyboardInterrupt):
        load(num_threads=1)
    assert [line.startswith("warning: cannot write") for line in log_lines] == [True, False]


def test_two_programs_that_read_a_folder_at_once_keep_what_both_found(photos, tmp_path):
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    manifests = [folder_manifest.FolderManifest(str(photos), paths, "", tmp_path / "cache") for _ in range(2)]
    for number, manifest in enumerate(manifests):
        manifest.facts.digests[number::3] = number + 1
        manifest.read[number::3] = True
        manifest.save()
    found = folder_manifest.FolderManifest(str(photos), paths, "", tmp_path / "cache")
    assert found.known.tolist() == [True, True, False] * 4
    assert found.facts.digests[:, 0].tolist() == [1, 2, 0] * 4


def test_files_of_killed_programs_are_removed(load, tmp_path):
    load()
    (file,) = (tmp_path / "cache" / "manifests").glob("*.npz")
    for name, seconds in (("1", 2 * folder_manifest.STALE_S), ("2", 0)):
        (file.parent / f".{file.name}.{name}.tmp").write_bytes(b"")
        age(file.parent / f".{file.name}.{name}.tmp", seconds)
    write(tmp_path / "photos" / "cats" / "new.png", 9)
    load()
    assert sorted(path.name for path in file.parent.iterdir()) == [f".{file.name}.2.tmp", file.name]


def test_a_folder_of_arrays_has_a_manifest(tmp_path, monkeypatch):
    folder, found = tmp_path / "scans", []
    for index in range(4):
        file = folder / ("a", "b")[index % 2] / f"{index}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full((4, 4), index, np.uint16))
        age(file)
    (folder / "b" / "broken.npy").write_bytes(b"no array")
    read_array = array_folder.read_array
    monkeypatch.setattr(array_folder, "read_array", lambda *given: found.append(given[0]) or read_array(*given))

    def load(**options):
        found.clear()
        options = {"in_memory": False, "cache_dir": str(tmp_path / "cache"), "on_decode_error": "skip"} | options
        source = array_folder.load_array_folder(str(folder), image_size=4, channels=1, array_dtype="uint16", **options)
        return source, sorted(os.path.basename(path) for path in found)

    assert load()[1] == ["0.npy", "1.npy", "2.npy", "3.npy", "broken.npy"]
    source, read = load()
    assert read == ["broken.npy"]
    assert source.fingerprint == load(in_memory=True)[0].fingerprint
    np.save(folder / "a" / "2.npy", np.full((4, 4), 7, np.uint16))
    age(folder / "a" / "2.npy")
    changed, read = load()
    assert read == ["2.npy", "broken.npy"]
    assert source.fingerprint != changed.fingerprint == load(in_memory=True)[0].fingerprint
    assert changed.batch(np.arange(4))["image"][:, 0, 0, 0].tolist() == [0, 7, 1, 3]


def test_a_set_in_memory_needs_no_manifest(load, tmp_path):
    assert len(load(in_memory=True)[1]) == COUNT
    assert not (tmp_path / "cache").exists()


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert local_copy.cache_folder("", "data") == tmp_path / "ddpm_jax" / "data"
    assert local_copy.cache_folder(str(tmp_path / "own"), "manifests") == tmp_path / "own" / "manifests"
    with pytest.raises(InvalidArgumentError, match="`cache_dir` is gs://b/c: name a folder of this machine"):
        local_copy.cache_folder("gs://b/c", "data")
