"""Folders of arrays: types, shapes and ranges as they are in the files, and the files that are refused."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.array_folder import load_array_folder
from ddpm_jax.data.source import ImageSource
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError

SHAPE = (4, 6, 5)


def load(folder, **options):
    return load_array_folder(str(folder), **{"image_size": SHAPE[:2], "channels": 5, "array_dtype": "uint16"} | options)


def everything(source):
    return source.batch(np.arange(len(source)))


@pytest.fixture
def scans(tmp_path):
    """(folder, arrays): 10 arrays uint16 [4, 6, 5] in two classes, as .npy and .npz."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 65536, (10, *SHAPE), dtype=np.uint16)
    for index, array in enumerate(arrays):
        where = tmp_path / "scans" / ("a" if index < 5 else "b")
        where.mkdir(parents=True, exist_ok=True)
        if index % 2:
            np.savez(where / f"{index}.npz", image=array, mask=np.zeros(3))
        else:
            np.save(where / f"{index}.npy", array)
    return tmp_path / "scans", arrays


@pytest.mark.parametrize("in_memory", [True, False])
def test_arrays_are_read_as_they_are(scans, in_memory):
    folder, arrays = scans
    source = load(folder, in_memory=in_memory, levels=(0, 4095))
    assert isinstance(source, ImageSource)
    assert (source.image_shape, source.dtype, source.value_range) == (SHAPE, "uint16", (0, 4095))
    assert (source.num_classes, source.class_names) == (2, ("a", "b"))
    batch = everything(source)
    assert batch["image"].dtype == np.uint16
    np.testing.assert_array_equal(batch["image"], arrays)
    np.testing.assert_array_equal(batch["label"], np.repeat([0, 1], 5))
    parts = [load(folder, in_memory=in_memory, split=split) for split in ("train[:60%]", "train[60%:]")]
    assert sum(map(len, parts)) == 10
    assert len({part.fingerprint for part in (source, *parts)}) == 3


def test_other_types_and_files(tmp_path):
    for name, array in {
        "float": np.linspace(-1, 1, 24, dtype=np.float64).reshape(4, 6),
        "bytes": np.arange(24, dtype=np.uint8).reshape(4, 6),
        "big": np.arange(24, dtype=">u2").reshape(4, 6),
    }.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", array)
        dtype = {"float": "float32", "bytes": "uint8", "big": "uint16"}[name]
        found = everything(load(tmp_path / name, channels=1, array_dtype=dtype))["image"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[0, ..., 0], array.astype(dtype))
    (tmp_path / "tif").mkdir()
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "tif" / "x.tif")
    assert everything(load(tmp_path / "tif", channels=1))["image"].max() == 40_000


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 6, 4), np.uint16), "shape 4x6x4, not 4x6x5"),
        (np.zeros((6, 4, 5), np.uint16), "shape 6x4x5, not 4x6x5"),
        (np.zeros(SHAPE, np.uint8), "type uint8, not uint16 .`array_dtype`."),
        (np.zeros(SHAPE, np.int16), "type int16"),
        (np.array([{}]), "not an array of numbers that NumPy wrote"),
    ],
)
def test_unreadable_files_are_named_or_skipped(scans, array, reason):
    folder, _ = scans
    np.save(folder / "a" / "bad.npy", array)
    with pytest.raises(InvalidDataError, match=rf"1 of 11 images .*a/bad\.npy \({reason}"):
        load(folder)
    assert len(load(folder, on_decode_error="skip")) == 10
    assert len(load(folder, on_decode_error="skip", in_memory=False)) == 10
    (folder / "a" / "bad.npy").write_bytes(b"not an array")
    with pytest.raises(InvalidDataError, match=r"1 of 11 images .*bad\.npy \(not an array of numbers"):
        load(folder)


def test_floats_must_be_floats_and_finite(tmp_path):
    for name, array in (("0", np.zeros(SHAPE)), ("1", np.full(SHAPE, np.nan)), ("2", np.zeros(SHAPE, np.uint16))):
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(InvalidDataError, match=r"1\.npy \(values that are not finite\), 2\.npy \(type uint16, not float32"):
        load(tmp_path, array_dtype="float32")


def test_invalid_arguments(scans, tmp_path):
    folder, _ = scans
    with pytest.raises(InvalidArgumentError, match="always have the range"):
        load(folder, array_dtype="uint8", levels=(0, 100))
    with pytest.raises(InvalidArgumentError, match="`array_dtype` is 'int8'"):
        load(folder, array_dtype="int8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidDataError, match="no arrays in"):
        load(tmp_path / "empty")
