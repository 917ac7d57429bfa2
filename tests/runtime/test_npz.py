"""Archives written and read row by row equal NumPy's."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from ddpm_jax.runtime import npz

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)


def chunks(array, size):
    return (array[i : i + size] for i in range(0, len(array), size))


def test_the_file_equals_numpys(tmp_path):
    labels = np.arange(23, dtype=np.int32)
    npz.write(tmp_path / "a.npz", {"images": npz.Rows(IMAGES.shape, IMAGES.dtype, chunks(IMAGES, 5)), "labels": labels})
    np.savez(tmp_path / "b.npz", images=IMAGES, labels=labels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert npz.shape_of(tmp_path / "b.npz", "images") == IMAGES.shape
    for size in (1, 7, 100):
        read = list(npz.rows(tmp_path / "b.npz", "images", size))
        assert max(len(part) for part in read) <= size
        np.testing.assert_array_equal(np.concatenate(read), IMAGES)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arr_0_can_be_streamed(tmp_path, compression):
    """As guided-diffusion's evaluator reads images: a header of version 1.0 or 2.0, no Fortran order, then C-ordered bytes.

    Files with such images that other programs compressed are read in the same way.
    """
    file = tmp_path / "a.npz"
    npz.write(file, {"arr_0": npz.Rows(IMAGES.shape, IMAGES.dtype, chunks(IMAGES, 5)), "labels": np.arange(23)})
    if compression:
        np.savez_compressed(file, IMAGES)
    with zipfile.ZipFile(file) as archive, archive.open("arr_0.npy") as member:
        assert archive.getinfo("arr_0.npy").compress_type == compression
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
        assert (shape, fortran_order, dtype) == ((23, 4, 4, 3), False, np.uint8)
        for first in range(0, 23, 8):
            count = min(8, 23 - first)
            batch = np.frombuffer(member.read(count * 48), np.uint8).reshape(count, 4, 4, 3)
            np.testing.assert_array_equal(batch, IMAGES[first : first + count])
        assert not member.read(1)
    np.testing.assert_array_equal(np.concatenate(list(npz.rows(file, "arr_0", 7))), IMAGES)


def test_a_failed_write_leaves_no_file(tmp_path):
    for wrong in (chunks(IMAGES[:-1], 5), chunks(IMAGES[:, :2], 5), chunks(IMAGES.astype(float), 5)):
        with pytest.raises(ValueError, match="is declared"):
            npz.write(tmp_path / "a.npz", {"images": npz.Rows(IMAGES.shape, IMAGES.dtype, wrong)})
    assert not list(tmp_path.iterdir())
    assert npz.shape_of(tmp_path / "a.npz", "images") is None
    (tmp_path / "a.npz").write_bytes(b"torn")
    assert npz.shape_of(tmp_path / "a.npz", "images") is None


def test_memory_is_limited_to_a_chunk(tmp_path):
    """An array of 64 MiB in chunks of 1 MiB: under 4 MiB at any time, to write it and to read it."""
    chunk = np.zeros((16, 256, 256), np.uint8)
    tracemalloc.start()
    try:
        npz.write(tmp_path / "a.npz", {"x": npz.Rows((1024, 256, 256), chunk.dtype, (chunk.copy() for _ in range(64)))})
        assert sum(len(part) for part in npz.rows(tmp_path / "a.npz", "x", 16)) == 1024
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
