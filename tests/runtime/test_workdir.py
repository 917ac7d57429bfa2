import os

import pytest

from ddpm_jax.runtime import workdir
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError


def test_a_new_folder_is_created_empty(tmp_path):
    assert workdir.make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []


def test_relative_folders_and_home_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir.make_folder("runs/../one") == tmp_path / "one"
    assert workdir.make_folder("~/one") == tmp_path / "one"
    assert workdir.checkpoint_folder("one") == tmp_path / "one" / "checkpoints"
    assert workdir.sample_folder("one") == tmp_path / "one" / "samples"
    assert workdir.evaluation_folder("one") == tmp_path / "one" / "eval"


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileAccessError, match=r"contains no run.*`workdir`"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"model": ', b"[1]", b"\xff\xfe"])
def test_a_broken_config_is_an_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InvalidDataError, match=r"config\.json is damaged") as error:
        workdir.read_config(tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == content


def test_a_file_with_the_name_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileAccessError, match="cannot make the workdir"):
            workdir.make_folder(place)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root can write everywhere, so the mode of the folder has no effect
    with pytest.raises(FileAccessError, match="cannot write into the workdir"):
        workdir.make_folder(tmp_path)


@pytest.mark.parametrize("place", ["s3://bucket/run", ""])
def test_paths_that_are_not_folders(place):
    with pytest.raises(FileAccessError, match="workdir"):
        workdir.make_folder(place)
