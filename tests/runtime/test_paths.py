"""Paths given by users."""

import os
import pathlib
import tempfile

import pytest

from ddpm_jax.runtime import paths
from ddpm_jax.runtime.errors import FileAccessError


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.expand("~/runs/x") == tmp_path / "runs" / "x"
    assert paths.expand("a/../b") == pathlib.Path.cwd() / "b"
    assert paths.output_path("~/out", "") == tmp_path / "out"
    assert paths.output_path("", "~/default") == tmp_path / "default"
    with pytest.raises(FileAccessError, match="no home folder ~no_such_user; write the full path"):
        paths.expand("~no_such_user/x")


@pytest.mark.parametrize("address", ["s3://bucket/x", "https://host/x", "file:///x"])
def test_a_url_is_not_an_output(address):
    with pytest.raises(FileAccessError, match=f"^`output={address}` is not a path on this machine"):
        paths.output_path(address, "")


def test_an_impossible_folder_is_an_immediate_error(tmp_path, monkeypatch):
    paths.make_output_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")

    def rejected(call, *words):
        with pytest.raises(FileAccessError, match="choose another `output`") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words)

    rejected(lambda: paths.make_output_folder(tmp_path / "file"), "it is a file")
    rejected(lambda: paths.make_output_folder(tmp_path / "file" / "below"), "not a directory")

    def denied(*args, **kwargs):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", denied)  # tests may run as root, which can write everywhere
    rejected(lambda: paths.make_output_folder(tmp_path / "a"), "permission denied")
