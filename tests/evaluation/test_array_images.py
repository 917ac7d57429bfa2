"""Images in NumPy files: read in order and in any batches; damaged, forged and hostile files are errors of one line."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from ddpm_jax.evaluation import array_images
from ddpm_jax.evaluation.array_images import ArrayImages
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_batches_are_the_images_in_order_and_again(tmp_path, save, monkeypatch):
    monkeypatch.setattr(array_images, "SKIP_BYTES", 100)
    file = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(file, IMAGES)
    held = ArrayImages(file)
    assert held.shape == IMAGES.shape
    assert len(held) == 7
    for batch in (3, 7, 1):
        parts = [held.read(np.arange(first, min(first + batch, 7))) for first in range(0, 7, batch)]
        np.testing.assert_array_equal(np.concatenate(parts), IMAGES)
    np.testing.assert_array_equal(held.read_all(), IMAGES)
    for first in (0, 5, 2, 6):  # back and forth
        np.testing.assert_array_equal(held.read(np.arange(first, 7)), IMAGES[first:])


def test_the_array_is_found_by_its_name_or_as_the_only_one(tmp_path):
    other = np.zeros((2, 3), np.float32)
    for arrays in ({"arr_0": IMAGES, "labels": other}, {"images": IMAGES, "x_t": other}, {"anything": IMAGES}):
        np.savez(tmp_path / "a.npz", **arrays)
        np.testing.assert_array_equal(ArrayImages(tmp_path / "a.npz").read(np.arange(7)), IMAGES)
    np.savez(tmp_path / "a.npz", first=IMAGES, second=IMAGES)
    with pytest.raises(InvalidDataError, match="holds first, second: the images must be arr_0, images, or the only array"):
        ArrayImages(tmp_path / "a.npz")
    np.savez(tmp_path / "gray.npz", IMAGES[..., 0])
    assert ArrayImages(tmp_path / "gray.npz").shape == (7, 4, 5, 1)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (IMAGES.astype(np.float32) / 255, "float32 .*images must be uint8, 0..255"),
        (IMAGES.transpose(0, 3, 1, 2).copy(), r"uint8 \[7, 3, 4, 5\]: images must be \[N, H, W, C\]"),
        (IMAGES[:0], "there must be an image"),
        (np.asfortranarray(IMAGES), "Fortran order"),
        (np.zeros(3, np.uint8), r"uint8 \[3\]: images must be"),
    ],
)
def test_other_arrays_are_refused_with_a_remedy(tmp_path, array, match):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(InvalidDataError, match=match):
        ArrayImages(tmp_path / "a.npz")


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_objects_are_refused_and_not_executed(tmp_path):
    target = tmp_path / "written"
    array = np.array([Hostile(str(target))], object)
    np.savez(tmp_path / "a.npz", array)
    np.save(tmp_path / "a.npy", array)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(InvalidDataError, match="holds pickled objects, which could execute code"):
            ArrayImages(tmp_path / name)
    assert not target.exists()
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Hostile(str(target))))
    with pytest.raises(InvalidDataError, match="not an array of numbers"):
        ArrayImages(tmp_path / "a.npy")
    assert not target.exists()


def forged(shape, size=100):
    """The bytes of an array that declares another shape than it has."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue() + b"\0" * size


def test_a_header_that_declares_more_than_the_file_has_allocates_nothing(tmp_path):
    for shape in ((10**12, 8, 8, 3), (4, 8, 8, 3), (10**12, 5000, 5000, 3), (2**62, 2**62, 1, 1)):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("arr_0.npy", forged(shape))
        (tmp_path / "a.npy").write_bytes(forged(shape))
        for name in ("a.npz", "a.npy"):
            with pytest.raises(InvalidDataError, match=r"truncated or forged|at most") as raised:
                ArrayImages(tmp_path / name)
            assert "\n" not in str(raised.value)


def test_a_forged_size_of_the_member_ends_at_the_first_missing_image(tmp_path):
    shape = (10**6, 8, 8, 3)
    content = forged(shape, size=1000)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", content)
    declared = len(content) - 1000 + int(np.prod(shape))
    raw = (tmp_path / "a.npz").read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", declared))
    (tmp_path / "a.npz").write_bytes(raw)
    held = ArrayImages(tmp_path / "a.npz")
    with pytest.raises(InvalidDataError, match="is truncated or damaged"):
        held.read(np.arange(64))


def test_truncated_and_damaged_files_are_errors(tmp_path):
    np.savez(tmp_path / "a.npz", IMAGES)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidDataError, match="truncated or damaged"):
        ArrayImages(tmp_path / "a.npz")
    changed = bytearray(content)
    changed[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(changed)
    with pytest.raises(InvalidDataError, match="truncated or damaged: Bad CRC-32"):
        ArrayImages(tmp_path / "a.npz").read(np.arange(7))
    with pytest.raises(FileAccessError, match="does not exist"):
        ArrayImages(tmp_path / "nowhere.npz")
