"""Paths on this machine and in a bucket."""

import io
import pathlib
import sys
import zipfile

import aiohttp
import numpy as np
import pytest

from ddpm_jax.runtime import atomic, checksums, npz, object_path, paths, storage, workdir
from ddpm_jax.runtime.errors import FileAccessError, UnavailableError, error_line
from ddpm_jax.runtime.object_path import ObjectPath


def test_a_local_name_is_a_pathlib_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert type(storage.path("~/a")) is type(tmp_path)
    assert storage.path("~/a") == tmp_path / "a"
    assert storage.path("a/../b") == tmp_path / "b"
    assert storage.as_path("a") == pathlib.Path("a")
    for name, remote in (("a", False), ("a:b", False), ("gs://bucket/a", True), ("s3://bucket/a", True)):
        assert storage.is_remote(name) == remote


def test_paths_in_a_bucket():
    folder = object_path.ObjectPath("gs://bucket/a")
    assert str(folder / "b") == f"{folder}/b" == "gs://bucket/a/b"
    assert (folder / "b.npz").stem == "b"
    assert (folder / "b").parent == folder
    assert (folder / "b" / "c").relative_to(folder).as_posix() == "b/c"
    for same in (folder.absolute(), folder.expanduser(), storage.as_path("gs://bucket/a")):
        assert same == folder
        assert isinstance(same, ObjectPath)


@pytest.mark.parametrize("name", ["s3://bucket/x", "https://host/x", "gs://"])
def test_other_stores_end_in_one_line(name):
    with pytest.raises(FileAccessError, match=name):
        storage.path(name)


@pytest.mark.parametrize("name", ["gs://bucket/runs/../x", "gs://bucket/./x", "gs://bucket/.."])
def test_a_name_with_dots_is_refused(name):
    with pytest.raises(FileAccessError, match="write the name of the folder without it"):
        storage.path(name)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UnavailableError, match=r"gs://bucket/x needs .* pip install gcsfs"):
        storage.path("gs://bucket/x")


def test_objects_have_the_methods_of_files(bucket, tmp_path):
    remote, local = storage.path(bucket), tmp_path / "run"
    for folder in (remote, local):
        assert not folder.exists()
        assert not folder.is_dir()
        storage.make_folder(folder)
        storage.make_folder(folder / "inner")
        atomic.write_atomically(folder / "a.txt", "é\n")
        with atomic.open_atomic(folder / "inner" / "b.bin") as out:
            out.write(b"first")
            out.seek(0)
            out.write(b"F")
        assert folder.is_dir()
        assert (folder / "a.txt").is_file()
        assert not (folder / "a.txt").is_dir()
        assert (folder / "a.txt").read_text(encoding="utf-8") == "é\n"
        assert (folder / "inner" / "b.bin").read_bytes() == b"First"
        assert (folder / "a.txt").stat().st_size == 3
        assert (folder / "a.txt").stat().st_mtime > 1.7e9
        assert sorted(file.name for file in folder.iterdir()) == ["a.txt", "inner"]
        assert [file.name for file in folder.glob("*.txt")] == ["a.txt"]
        assert [file.name for file in folder.glob("*/")] == ["inner"]
        assert [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()] == ["a.txt", "inner/b.bin"]
        with (folder / "a.txt").open("rb") as file:
            file.seek(-1, 2)
            assert file.read() == b"\n"
        with pytest.raises(FileNotFoundError):
            (folder / "none").read_bytes()
        with pytest.raises(FileNotFoundError):
            (folder / "none").unlink()
        (folder / "none").unlink(missing_ok=True)
        storage.move_folder(folder / "inner", folder / "moved")
        assert not (folder / "inner").exists()
        assert (folder / "moved" / "b.bin").read_bytes() == b"First"
        storage.check_writable(folder)
        assert sorted(file.name for file in folder.iterdir()) == ["a.txt", "moved"]


def test_a_failed_write_leaves_no_object(bucket):
    file = storage.path(bucket) / "f"
    atomic.write_atomically(file, "old")

    def fail():
        with atomic.open_atomic(file) as out:
            out.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert file.read_bytes() == b"old"


def test_large_objects_are_streamed(bucket, monkeypatch):
    monkeypatch.setattr(object_path, "WHOLE_BYTES", 1000)
    content = np.random.default_rng(0).bytes(700_001)
    file = storage.path(bucket) / "large"
    with atomic.open_atomic(file) as out:
        out.write(content)
    assert file.read_bytes() == content
    with file.open("rb") as data:
        data.seek(-10, 2)
        assert data.read() == content[-10:]
        data.seek(0)
        assert data.read() == content


def test_archives_in_a_bucket(bucket):
    file = storage.path(bucket) / "images.npz"
    images = np.arange(2 * 3 * 3 * 1, dtype=np.uint8).reshape(2, 3, 3, 1)
    npz.write(file, {"arr_0": images})
    assert npz.shape_of(file, "arr_0") == images.shape
    assert np.array_equal(np.concatenate(list(npz.rows(file, "arr_0", 1))), images)
    with storage.local_copy(file) as copy, np.load(copy) as arrays:
        assert np.array_equal(arrays["arr_0"], images)
    assert not copy.exists()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "a")
    (file.parent / "a.zip").write_bytes(packed.getvalue())
    with storage.open_zip(file.parent / "a.zip") as archive:
        assert archive.read("a.txt") == b"a"


def test_a_growing_object_is_written_at_intervals_and_on_request(bucket, emulator):
    file = storage.path(bucket) / "metrics.jsonl"
    file.write_bytes(b"0\n")
    growing = storage.open_growing(file)
    growing.write("1\n")
    growing.flush()
    assert file.read_bytes() == b"0\n1\n"
    growing.write("2\n")
    growing.flush()  # too early
    assert file.read_bytes() == b"0\n1\n"
    storage.sync(growing)
    assert file.read_bytes() == b"0\n1\n2\n"
    growing.write("3\n")
    with emulator.failing(403), pytest.raises(PermissionError):
        storage.sync(growing)
    growing.close()
    assert file.read_bytes() == b"0\n1\n2\n3\n"


def test_a_failed_interval_write_is_made_up_for(bucket, emulator, log_lines):
    file = storage.path(bucket) / "metrics.jsonl"
    growing = storage.open_growing(file)
    growing.write("1\n")
    with emulator.failing(403):
        growing.flush()
    assert "cannot write" in log_lines[-1]
    assert "the next write contains all of it" in log_lines[-1]
    growing.write("2\n")
    growing.close()
    assert file.read_bytes() == b"1\n2\n"


def test_of_two_that_create_an_object_one_succeeds(bucket):
    file = storage.path(bucket) / "lock"
    assert storage.create(file, b"a")
    assert not storage.create(file, b"b")
    assert storage.create(file, b"a")  # the first answer was lost
    assert file.read_bytes() == b"a"


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "no permission"), (403, "no permission"), (400, "the store does not answer as it should")]
)
def test_errors_have_one_line(bucket, emulator, status, reason):
    file = storage.path(bucket) / "f"
    calls = (
        lambda: file.read_bytes(),
        lambda: file.write_bytes(b""),
        lambda: list(file.rglob("*")),
        lambda: file.exists(),
        lambda: storage.create(file, b""),
    )
    with emulator.failing(status):
        for call in calls:
            with pytest.raises(OSError, match=reason) as caught:
                call()
            assert reason in error_line(caught.value)
    with emulator.failing(403), pytest.raises(FileAccessError, match=r"cannot write to gs://.*: no permission"):
        paths.make_output_folder(file.parent)


def test_a_store_that_cannot_be_reached():
    for error in (aiohttp.ClientConnectionError("no route"), TimeoutError(), ConnectionResetError(104, "reset")):
        with pytest.raises(OSError, match="the store cannot be reached"), object_path.store_errors(ObjectPath("gs://bucket/x")):
            raise error


def test_an_object_is_no_folder(bucket):
    file = storage.path(bucket) / "config.json"
    file.write_text("{}")
    for folder, reason in ((file, "it is a file"), (file / "a" / "b", "not a directory")):
        with pytest.raises(FileAccessError, match=f"cannot write to {folder}: {reason}; choose another `output`"):
            paths.make_output_folder(folder)
        with pytest.raises(FileAccessError, match=f"cannot make the workdir {folder}: {reason}; choose another `workdir`"):
            workdir.make_folder(folder)
    assert [each.name for each in file.parent.rglob("*")] == ["config.json"]
    paths.make_output_folder(storage.path("gs://bucket"))


def test_a_missing_bucket_is_named(emulator):
    with pytest.raises(OSError, match="there is no bucket gs://missing"):
        (storage.path("gs://missing/run") / "f").write_bytes(b"")
    assert not storage.path("gs://missing/run").exists()


def test_requests_are_repeated_after_passing_failures(bucket, emulator):
    file, failures = storage.path(bucket) / "f", [503, 429]
    emulator.fault = lambda method, path: failures.pop() if failures and method == "POST" else None
    try:
        file.write_bytes(b"a")
    finally:
        emulator.fault = lambda method, path: None
    assert not failures
    assert file.read_bytes() == b"a"


def test_checksums_of_objects_are_those_of_the_store(bucket, emulator):
    folder = storage.path(bucket) / "10"
    (folder / "params" / "a").write_bytes(b"weights")
    (folder / "params" / "b").write_bytes(b"more")
    (folder / "opt" / "c").write_bytes(b"moments")
    checksums.write_sums(folder)
    before = len(emulator.requests)
    checksums.check_sums(folder, ["params", "opt"])
    assert not [path for _, path in emulator.requests[before:] if "params/a?alt=media" in path]  # nothing is downloaded
    (folder / "params" / "a").write_bytes(b"Weights")
    with pytest.raises(ValueError, match="params/a has changed"):
        checksums.check_sums(folder, ["params"])
    checksums.check_sums(folder, ["opt"])
    (folder / "params" / "a").write_bytes(b"short")
    with pytest.raises(ValueError, match="params/a has 5 of 7 bytes"):
        checksums.check_sums(folder, ["params"])
    (folder / "params" / "a").unlink()
    with pytest.raises(ValueError, match="params/a is missing"):
        checksums.check_sums(folder, ["params"])


def test_a_checkpoint_that_was_copied_from_a_bucket_is_read(bucket, tmp_path):
    remote, local = storage.path(bucket) / "10", tmp_path / "10"
    (remote / "params" / "a").write_bytes(b"weights")
    checksums.write_sums(remote)
    (local / "params").mkdir(parents=True)
    for name in ("params/a", checksums.SUMS):
        (local / name).write_bytes((remote / name).read_bytes())
    checksums.check_sums(local, ["params"])
    (local / "params" / "a").write_bytes(b"short")
    with pytest.raises(ValueError, match="params/a has 5 of 7 bytes"):
        checksums.check_sums(local, ["params"])
    storage.upload_folder(local, remote)
    assert (remote / "params" / "a").read_bytes() == b"short"
