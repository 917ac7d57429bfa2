"""Zip archives of images: nothing is extracted, and a hostile or damaged archive is an error of one line."""

import io
import pathlib
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import image_zip
from ddpm_jax.data.decode import ImageDecodeError
from ddpm_jax.data.image_zip import ImageZip
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError


def png(seed=0):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def make(tmp_path):
    """(name -> bytes) -> path of an archive, two folders below tmp_path."""
    file = tmp_path / "sets" / "zips" / "a.zip"
    file.parent.mkdir(parents=True)

    def write(members, compression=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return str(file)

    return write


def test_images_at_any_depth_in_order_of_their_names(make):
    others = dict.fromkeys(("notes.txt", ".hidden.png", "a/.hidden/b.png", "__MACOSX/z.png", "b/"), b"x")
    archive = ImageZip(make({"z.PNG": png(0), "b/c/d.png": png(1)} | others))
    assert archive.names == ["b/c/d.png", "z.PNG"]
    assert [archive.content(index) for index in range(2)] == [png(1), png(0)]


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
def test_names_that_point_outside_are_refused_and_nothing_is_written(make, tmp_path, name):
    file = make({"good.png": png(), name: png()})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InvalidDataError, match="points outside of it") as raised:
        ImageZip(file)
    assert "\n" not in str(raised.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_member_that_declares_too_many_bytes_is_refused_before_it_is_read(make, tmp_path, monkeypatch):
    file = make({"bomb.png": b"\0" * 100_000})
    monkeypatch.setattr(image_zip, "MOST_BYTES", 99_999)
    with pytest.raises(InvalidDataError, match=r"bomb\.png declares 100,000 bytes.*zip bomb"):
        ImageZip(file)
    monkeypatch.undo()
    content = pathlib.Path(file).read_bytes()
    forged = content.replace(struct.pack("<I", 100_000), struct.pack("<I", 0xFFFFFFF0))
    pathlib.Path(file).write_bytes(forged)
    with pytest.raises(InvalidDataError, match="declares 4,294,967,280 bytes"):
        ImageZip(file)


def test_a_member_that_declares_fewer_bytes_than_it_has_is_broken(make, tmp_path):
    file = make({"liar.png": b"\0" * 100_000})
    forged = (tmp_path / "sets" / "zips" / "a.zip").read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 100))
    pathlib.Path(file).write_bytes(forged)
    with pytest.raises(ImageDecodeError, match="damaged"):
        ImageZip(file).content(0)


def test_a_truncated_archive_and_other_files(make, tmp_path):
    file = make({"a.png": png()}, zipfile.ZIP_STORED)
    content = pathlib.Path(file).read_bytes()
    for wrong in (content[: len(content) // 2], b"no archive", b""):
        (tmp_path / "sets" / "zips" / "a.zip").write_bytes(wrong)
        with pytest.raises(InvalidDataError, match="truncated, damaged or not a zip archive"):
            ImageZip(file)
    with pytest.raises(FileAccessError, match="no such file"):
        ImageZip(str(tmp_path / "nowhere.zip"))


@pytest.mark.parametrize(("flag", "reason"), [(1, "encrypted"), (0, "damaged")])
def test_an_unreadable_member_is_a_broken_image(make, tmp_path, flag, reason):
    file = make({"a.png": png(), "b.png": png(1)}, zipfile.ZIP_STORED)
    content = bytearray((tmp_path / "sets" / "zips" / "a.zip").read_bytes())
    if flag:  # the flag of an encrypted member, in its own header and in the directory
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
    else:
        content[content.index(b"IDAT") + 6] ^= 0xFF  # the checksum of the member is wrong
    (tmp_path / "sets" / "zips" / "a.zip").write_bytes(content)
    archive = ImageZip(file)
    with pytest.raises(ImageDecodeError, match=reason):
        archive.content(0)
    assert archive.content(1) == png(1)
