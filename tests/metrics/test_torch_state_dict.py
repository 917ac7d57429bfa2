"""Files of torch.save: read correctly, or rejected with nothing executed.

PyTorch wrote some of them (tests/golden/torch_state_dict.py); `torch_pickles` writes the others.
"""

import io
import os
import pathlib
import pickle
import re
import zipfile

import numpy as np
import pytest
from torch_pickles import Called, Stored, legacy, pickled, state_of, storage, tensor, zipped

from ddpm_jax.metrics import torch_state_dict
from ddpm_jax.metrics.torch_state_dict import read_torch_file
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "torch_state_dict.npz"
RNG = np.random.default_rng(0)
STATE = {
    "conv.weight": RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "bn.count": np.array(7),
    "half": RNG.normal(size=5).astype(np.float16),
    "double": RNG.normal(size=(2, 3)),
    "bytes": np.arange(6, dtype=np.uint8),
    "empty": np.zeros((0, 3), np.float32),
}


LAYOUTS = {"zip": zipped, "legacy": legacy}


@pytest.fixture
def read(tmp_path):
    """Bytes -> the arrays in them."""

    def read_bytes(data):
        file = tmp_path / "weights.pth"
        file.write_bytes(data)
        return read_torch_file(file)

    return read_bytes


@pytest.fixture
def rejected(read):
    """(bytes, pattern): asserts a one-line error that names the file and matches."""

    def check(data, pattern):
        with pytest.raises(InvalidDataError, match=pattern) as caught:
            read(data)
        assert "\n" not in str(caught.value)
        assert "weights.pth" in str(caught.value)

    return check


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_type_of_tensor_round_trips(read, layout):
    got = read(LAYOUTS[layout](state_of(STATE), STATE.values()))
    assert list(got) == list(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype
        assert got[name].flags.writeable
        assert got[name].flags.aligned


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_pytorch_itself(read, rejected, layout):
    with np.load(GOLDEN) as golden:
        expected = {name.removeprefix("array "): golden[name] for name in golden.files if name.startswith("array ")}
        got = read(golden[f"{layout} of state"].tobytes())
        assert list(got) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
            assert got[name].dtype == array.dtype
        rejected(golden[f"{layout} of module"].tobytes(), r"'torch\.nn\.modules\.\w+\.\w+', which weights do not need")
        rejected(golden["zip of bfloat16"].tobytes(), "BFloat16Storage: save them as float32")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_parameters_and_shared_storages(read, layout):
    whole = np.arange(12, dtype=np.float32)
    shared = storage(whole, "0")
    middle = tensor(shared, whole, offset=2, shape=(2, 3), strides=(3, 1))
    state = {
        "whole": tensor(shared, whole),
        "transposed": tensor(shared, whole, shape=(3, 4), strides=(1, 3)),
        "parameter": Called("torch._utils", "_rebuild_parameter", middle, True, Called("collections", "OrderedDict")),
    }
    got = read(LAYOUTS[layout](state, [whole]))
    np.testing.assert_array_equal(got["transposed"], whole.reshape(4, 3).T)
    np.testing.assert_array_equal(got["parameter"], whole[2:8].reshape(2, 3))
    got["whole"][:] = 0  # each has its own memory
    assert got["parameter"][0, 0] == 2


# Programs that an ordinary unpickler would execute. Each would create a file.
def hostile(mark):
    command = f"touch {mark}"
    return {
        "calls a command": Called("os", "system", command),
        "calls a command of posix": Called("posix", "system", command),
        "evaluates": Called("builtins", "eval", f"open({str(mark)!r}, 'w')"),
        "evaluates, by its name in Python 2": Called("__builtin__", "eval", f"open({str(mark)!r}, 'w')"),
        "runs": Called("subprocess", "Popen", ("touch", str(mark))),
        "loads a module of torch": Called("torch.hub", "load", command),
        "loads with its own pickle": Called("torch.storage", "_load_from_bytes", b"x"),
        "reaches through a name with dots": Called("torch._utils", "os.system", command),
        "reaches through a storage": Called("torch", "FloatStorage.__class__", command),
        "hides in the hooks": Called("torch._utils", "_rebuild_parameter", Called("os", "system", command), True, None),
        "hides in a key": {Called("os", "system", command): 1},
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", hostile("x"))
def test_a_hostile_pickle_is_rejected_and_not_executed(rejected, tmp_path, layout, case):
    mark = tmp_path / "executed"
    program = hostile(mark)[case]
    if case == "calls a command":  # the check can fail: an ordinary reader does run it
        pickle.loads(pickled(program))
        assert mark.exists()
        mark.unlink()
    for state in (program, {"weight": program}):
        rejected(LAYOUTS[layout](state), "which weights do not need: nothing in it was executed")
    assert not mark.exists()


def test_hostile_from_the_first_byte(rejected, tmp_path):
    """Not from torch.save, and with the program instead of magic number, version, machine or keys."""
    mark = tmp_path / "executed"
    program = Called("os", "system", f"touch {mark}")
    rejected(pickled(program), "nothing in it was executed")
    for place in range(5):
        parts = [torch_state_dict.MAGIC_NUMBER, 1001, {"little_endian": True}, {}, []]
        parts[place] = program
        rejected(pickled(*parts), "nothing in it was executed")
    for old in (b"cos\nsystem\n(S'touch %b'\ntR.", b"(S'touch %b'\nios\nsystem\n."):
        program = old % os.fsencode(mark)
        rejected(program, r"is not a file of torch\.save")
        rejected(pickle.PROTO + b"\x02" + program, "nothing in it was executed")
    assert not mark.exists()


def test_a_pickle_cannot_modify_what_it_may_use(rejected):
    """BUILD, which sets attributes: on a function, a storage type, a class."""
    head = pickled(torch_state_dict.MAGIC_NUMBER, 1001, {"little_endian": True})
    changes = "modifies a built-in object: nothing in it was executed"
    for module, name, reason in (
        ("torch._utils", "_rebuild_tensor_v2", changes),
        ("torch", "FloatStorage", changes),
        ("collections", "OrderedDict", "is truncated or damaged"),
    ):
        program = f"c{module}\n{name}\n".encode() + b"}X\x08\x00\x00\x00functionK\x01sb."
        rejected(head + pickle.PROTO + b"\x02" + program, reason)


def test_truncated_files_are_rejected(rejected):
    arrays = {name: STATE[name] for name in ("conv.weight", "half")}
    for layout in LAYOUTS.values():
        data = layout(state_of(arrays), arrays.values())
        for length in {1, 2, 3, *range(4, len(data), 37), len(data) - 1}:
            rejected(data[:length], r"truncated or damaged|is not a file of torch\.save")
    rejected(b"", "is empty: download it again")


def test_a_changed_byte_of_a_zip_is_noticed(rejected):
    arrays = {"weight": np.arange(500, dtype=np.float32)}
    data = bytearray(zipped(state_of(arrays), arrays.values()))
    data[data.index(arrays["weight"].tobytes()) + 1000] ^= 1
    rejected(bytes(data), "truncated or damaged .*CRC")


def test_other_files_are_named_in_the_error(rejected, tmp_path):
    weight = np.ones(4, np.float32)
    good = state_of({"weight": weight})
    rejected(b"\x89PNG\r\n\x1a\n" + bytes(100), r"is not a file of torch\.save")
    rejected(b"<!DOCTYPE html><html>", r"is not a file of torch\.save")
    rejected(pickled({"weight": 1}), r"a pickle, but not one of torch\.save")
    stream = io.BytesIO()
    np.savez(stream, weight=weight)
    rejected(stream.getvalue(), r"is a zip archive, but not one of torch\.save")
    rejected(zipped(good, [weight], **{"code/net.py": "pass"}), "is a TorchScript program")
    rejected(zipped(good, [weight], byteorder="big"), "big-endian")
    rejected(legacy(good, [weight], machine={"little_endian": False}), "big-endian")
    rejected(zipped([1, 2]), "holds no dictionary of tensors")
    rejected(zipped({}), "holds no dictionary of tensors")
    rejected(zipped({"state_dict": good}, [weight]), r"not a flat dictionary of tensors \('state_dict' is something else\)")
    rejected(zipped({"epoch": 3} | good, [weight]), r"not a flat dictionary of tensors \('epoch'")
    rejected(zipped({3: tensor(storage(weight, "0"), weight)}, [weight]), r"not a flat dictionary of tensors \('3'")
    rejected(zipped(Called("net", "Net")), re.escape("imports 'net.Net', which weights do not need"))
    rejected(zipped({"weight": tensor(storage(weight, "0", kind="BFloat16Storage"), weight)}, [weight]), "save them as float32")
    rejected(zipped({"weight": Stored(("module", "Net", "file", "source"))}), "holds more than arrays")
    with pytest.raises(FileAccessError, match=r"cannot read the weights .*directory"):
        read_torch_file(tmp_path)


def test_tensors_beyond_their_storage_are_rejected(rejected):
    weight = np.arange(4, dtype=np.float32)
    stored = storage(weight, "0")
    beyond = {
        "too many": tensor(stored, weight, shape=(5,), strides=(1,)),
        "behind": tensor(stored, weight, offset=1),
        "repeated": tensor(stored, weight, shape=(10**9, 10**9), strides=(0, 0)),
        "strides": tensor(stored, weight, shape=(2, 2), strides=(3, 1)),
    }
    for name, claimed in beyond.items():
        for layout in LAYOUTS.values():
            rejected(layout({name: claimed}, [weight]), "a tensor reaches beyond its storage")
    for wrong in (
        tensor(stored, weight, offset=-1),
        tensor(stored, weight, shape=(-4,)),
        tensor(stored, weight, shape=(True,)),
        tensor(stored, weight, shape=(4, 1)),
        tensor("none", weight),
    ):
        rejected(zipped({"weight": wrong}, [weight]), "a tensor without storage or shape")
    for length in (-1, 1.5, True, "4"):
        rejected(zipped({"w": tensor(storage(weight, "0", length), weight)}, [weight]), "a storage without key or length")
    rejected(zipped({"w": tensor(storage(weight, "1"), weight)}, [weight]), "its storage '1' is missing")
    rejected(zipped({"w": tensor(storage(weight, "0", 3), weight)}, [weight]), "larger than declared")
    rejected(zipped({"w": tensor(storage(weight, "0", 5), weight)}, [weight]), "a storage of 16 instead of 20 bytes")
    both = {"a": tensor(stored, weight), "b": tensor(storage(weight, "0", kind="IntStorage"), weight)}
    for layout in LAYOUTS.values():
        rejected(layout(both, [weight]), "two tensors disagree about their storage")
    rejected(legacy({"w": tensor(stored, weight)}, [weight], keys=[]), "does not hold the storages")
    rejected(
        legacy({"w": tensor(storage(weight, "0", 3), weight)}, [weight]), "the length of a storage does not match its tensors"
    )
    rejected(legacy({"w": tensor(storage(weight, "0", view=(("1", 0, 4),)), weight)}, [weight]), "holds views of storages")


def test_files_that_would_need_far_more_memory_than_they_have_bytes_are_rejected(rejected):
    weight = np.arange(4, dtype=np.float32)
    stored = storage(weight, "0")
    many = {f"w{i}": tensor(stored, weight) for i in range(5)}
    for layout in LAYOUTS.values():
        rejected(layout(many, [weight]), "its tensors repeat their storages")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("data.pkl", "data/0"):
            archive.writestr(f"archive/{name}", bytes(10**6))
    rejected(content.getvalue(), "is a compressed zip archive")


def test_a_file_too_large_is_not_read(rejected, monkeypatch):
    monkeypatch.setattr(torch_state_dict, "MAX_BYTES", 100)
    rejected(zipped({}), "too large for weights")
