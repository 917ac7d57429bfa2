"""Atomic file writes."""

import os

import pytest

from ddpm_jax.runtime import atomic
from ddpm_jax.runtime.errors import FileAccessError


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "f"
    atomic.write_atomically(file, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileAccessError, match=r"cannot write .*: no space left on device"):
        atomic.write_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_failed_context_keeps_the_old_file_and_raises_its_error(tmp_path, kind, shared):
    file = tmp_path / "f"
    file.write_bytes(b"old")

    def fail():
        with atomic.open_atomic(file, shared=shared) as out:
            out.write(b"new")
            assert sorted(os.listdir(tmp_path)) == [f".f.{os.getpid()}.tmp" if shared else ".f.tmp", "f"]
            raise kind

    with pytest.raises(kind):
        fail()
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("sync", [True, False])
def test_the_new_content_replaces_the_old_and_is_synced_on_request(tmp_path, monkeypatch, sync):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file = tmp_path / "f"
    file.write_bytes(b"old")
    with atomic.open_atomic(file, sync=sync) as out:
        out.write(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    assert len(synced) == sync


def test_text_is_utf_8(tmp_path):
    atomic.write_atomically(tmp_path / "f", "é")
    assert (tmp_path / "f").read_bytes() == "é".encode()


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileAccessError, match=r"cannot write .*f: no such file or directory$"):
        atomic.write_atomically(tmp_path / "nothing" / "f", "x")


def test_a_leftover_of_a_kill_is_overwritten(tmp_path):
    (tmp_path / ".f.tmp").write_bytes(b"a part of an earlier attempt")
    with atomic.open_atomic(tmp_path / "f") as out:
        out.write(b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]
