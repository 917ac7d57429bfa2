"""The reader of safetensors files, against the format's own library, and with damaged and hostile files."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from ddpm_jax.interop.safetensors_file import read_safetensors
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def written(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_arrays_of_the_library(tmp_path):
    wanted = {"a": ARRAY, "b": ARRAY.astype(np.float64), "c": ARRAY.astype(np.float16), "d": np.arange(3), "e": np.float32(2)}
    wanted["e"] = np.array(2, np.float32)
    safetensors.numpy.save_file(wanted, tmp_path / "file", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "file")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(np.asarray(found[name]), array, strict=True)


@pytest.mark.parametrize(("kind", "size"), [("F8_E4M3", 6), ("F8_E5M2", 6), ("U16", 12), ("C64", 48)])
def test_other_types_of_the_format_are_not_called_damaged(tmp_path, kind, size):
    (tmp_path / "file").write_bytes(written({"a": entry(kind, offsets=(0, size))}, bytes(size)))
    with pytest.raises(
        InvalidDataError, match=f"file: arrays of the type {kind} are not supported: convert them to F32"
    ) as error:
        read_safetensors(tmp_path / "file")
    assert "damaged" not in str(error.value)


def test_bfloat16_becomes_float32(tmp_path):
    values = np.array([1.0, -2.5, 3e38], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    (tmp_path / "file").write_bytes(written({"a": entry("BF16", (3,), (0, 6))}, upper.tobytes()))
    found = np.asarray(read_safetensors(tmp_path / "file")["a"])
    np.testing.assert_allclose(found, values, rtol=2**-7)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or damaged"),
        (written({}, length=2**60), "its header would have 1,152,921,504,606,846,976 bytes of 2"),
        (written({}, length=3), "its header would have 3 bytes of 2"),
        (written(b"{" * 100_000), "its header is not that of a safetensors file"),
        (written(b'{"a": 1' + b"0" * 5000 + b"}"), "its header is not that of a safetensors file"),
        (written([1]), "it is not an object"),
        (written(b'{"a": {}, "a": {}}'), "a name occurs twice"),
        (written({"a": 5}), "its header is not that of a safetensors file"),
        (written({"a": {"dtype": "F32"}}), "its header is not that of a safetensors file"),
        (written({"a": entry("f32")}, bytes(24)), "'f32' is not a type"),
        (written({"a": entry(["F32"])}, bytes(24)), "its header is not that of a safetensors file"),
        (written({"a": entry(shape=(2, -3))}, bytes(24)), "not a list of non-negative integers"),
        (written({"a": entry(shape=(2, 10**30))}, bytes(24)), "does not match its shape"),
        (written({"a": entry(offsets=(0, 20))}, bytes(20)), "does not match its shape"),
        (written({"a": entry()}, bytes(23)), "it has 23 bytes of data instead of 24"),
        (written({"a": entry()}, bytes(25)), "it has 25 bytes of data instead of 24"),
        (written({"a": entry(), "b": entry()}, bytes(48)), "does not begin where the one before it ends"),
        (written({"a": entry(), "b": entry(offsets=(28, 52))}, bytes(52)), "does not begin where the one before it ends"),
    ],
)
def test_damaged_files_are_rejected(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidDataError, match="file is") as error:
        read_safetensors(tmp_path / "file")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_missing_file(tmp_path):
    with pytest.raises(FileAccessError, match="cannot read the weights"):
        read_safetensors(tmp_path / "file")
