"""Reads the arrays of a file of PyTorch's `torch.save`, without PyTorch and without executing code from the file.

Such a file is a pickle, and a pickle is a program: an ordinary reader calls any function that it names. This reader accepts
only the ordered dictionary, the two functions that rebuild a tensor, and the storage types, and maps them to functions of
this file. Any other name is an error before anything is called.

Both layouts are supported. Zip (PyTorch 1.6 and later): `NAME/data.pkl` and one entry `NAME/data/KEY` for each storage.
Legacy: five pickles (magic number, version, machine, the dictionary, the keys of the storages), then each storage as its
number of elements (int64) and its raw elements, little endian. The usual file of Inception weights is legacy.
"""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line, os_errors

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_BYTES = 2**34  # largest accepted file; the largest published U-Net has 2.2 GB
MAX_SHARED = 4  # how many times the tensors may use the memory of their storages
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


def read_torch_file(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict, by name, each in its own memory.

    Raises:
      FileAccessError: the file cannot be read.
      InvalidDataError: the file is truncated or damaged, was not written by `torch.save`, holds anything but a flat
        dictionary of tensors, or names anything that a state dict does not need. Nothing in it was executed.
    """
    with os_errors(f"cannot read the weights {file}"):
        if file.stat().st_size > MAX_BYTES:
            raise InvalidDataError(f"{file} has {file.stat().st_size / 2**30:,.1f} GiB: too large for weights")
        stream = file.open("rb")
    try:
        with stream:
            start = stream.read(2)
            stream.seek(0)
            if not start:
                raise InvalidDataError(f"the weights file {file} is empty: download it again")
            return _checked(_read_zip(stream) if start == b"PK" else _read_legacy(stream))
    except (FileAccessError, InvalidDataError):
        raise
    except _InvalidFile as error:
        raise InvalidDataError(f"{file} {error}") from error
    except Exception as error:  # an invalid pickle can raise any exception
        raise InvalidDataError(f"{file} is truncated or damaged ({error_line(error, kind=True)}): download it again") from error


class _InvalidFile(Exception):
    """An invalid file. The message continues after the file's name."""


class _StateDict(dict):
    """Replaces OrderedDict. PyTorch sets layer versions as its attribute; here no attribute can be set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Called by a pickle with attributes to set; ignored."""


class _Opaque:
    """An object that a pickle may contain but not modify."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise _InvalidFile(
            "modifies a built-in object: nothing in it was executed; download the weights from a source that you trust"
        )


class _Call(_Opaque):
    """A function that a pickle may call."""

    __slots__ = ("function",)

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _StorageType(_Opaque):
    """The element type of a storage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str):
        self.dtype = dtype


class _Storage(_Opaque):
    """Memory of one or more tensors. Zip files provide its data immediately, legacy files at their end."""

    __slots__ = ("data", "dtype", "length")

    def __init__(self, dtype: str, length: int, data: np.ndarray | None = None):
        self.dtype, self.length, self.data = np.dtype(dtype), length, data


class _Tensor(_Opaque):
    """A tensor, converted to an array once the storages are loaded."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.storage.dtype)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        # Tensors of a network do not repeat memory: one that did could claim any size.
        if last >= self.storage.length or math.prod(self.shape) > self.storage.length:
            raise _InvalidFile("is damaged: a tensor reaches beyond its storage; download it again")
        strides = [stride * self.storage.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(self.storage.data[self.offset :], self.shape, strides, writeable=False).copy()


class _Unpickler(pickle.Unpickler):
    """Accepts the names of a state dict and rejects all others."""

    def __init__(self, stream: BinaryIO, find_storage: Any):
        super().__init__(stream)
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Call(_rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Call(_rebuild_parameter)
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module == "torch" and name.endswith("Storage"):
            raise _InvalidFile(f"holds numbers of the type {name[:40]}: save them as float32")
        raise _InvalidFile(
            f"imports {f'{module}.{name}'[:80]!r}, which weights do not need: nothing in it was executed; do not open it "
            "elsewhere, download the weights from a source that you trust"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
            raise _InvalidFile("holds more than arrays (a whole module?): save its state_dict() instead")
        _, kind, key, _, length, *view = pid
        if not isinstance(key, str) or type(length) is not int or length < 0:
            raise _InvalidFile("is damaged: a storage without key or length; download it again")
        if view and view[0] is not None:
            raise _InvalidFile("holds views of storages: save it again with a newer PyTorch")
        return self._find_storage(key, kind.dtype, length)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """PyTorch's `_rebuild_tensor_v2`; the arguments after the strides (gradient, hooks) are ignored."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
        raise _InvalidFile("is damaged: a tensor without storage or shape; download it again")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _read_zip(stream: BinaryIO) -> Any:
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        size = stream.seek(0, io.SEEK_END)
        if sum(info.file_size for info in archive.infolist()) > size:  # torch.save does not compress
            raise _InvalidFile("is a compressed zip archive: save it with torch.save")
        if any("/code/" in name for name in names):
            raise _InvalidFile("is a TorchScript program, not a state dict: download the .pth file instead")
        roots = [name.removesuffix("data.pkl") for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _InvalidFile("is a zip archive, but not one of torch.save")
        (root,) = roots
        if f"{root}byteorder" in names and _entry(archive, f"{root}byteorder", 16) != b"little":
            raise _InvalidFile("was saved on a big-endian machine: save it again on another")
        storages: dict[str, _Storage] = {}

        def find_storage(key: str, dtype: str, length: int) -> _Storage:
            if key not in storages:
                size = length * np.dtype(dtype).itemsize
                if f"{root}data/{key}" not in names:
                    raise _InvalidFile(f"is damaged: its storage {key[:40]!r} is missing; download it again")
                raw = _entry(archive, f"{root}data/{key}", size)
                if len(raw) != size:
                    raise EOFError(f"a storage of {len(raw):,} instead of {size:,} bytes")
                storages[key] = _Storage(dtype, length, np.frombuffer(raw, dtype))
            return _same(storages[key], dtype, length)

        return _Unpickler(io.BytesIO(_entry(archive, f"{root}data.pkl", 2**26)), find_storage).load()


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """An entry of at most `most` bytes: a small archive can unpack to any size."""
    if archive.getinfo(name).file_size > most:
        raise _InvalidFile(f"is damaged: its entry {name[:40]!r} is larger than declared; download it again")
    return archive.read(name)


def _read_legacy(stream: BinaryIO) -> Any:
    if stream.read(1) != pickle.PROTO:  # the first byte of every pickle of torch.save
        raise _InvalidFile("is not a file of torch.save: download the .pth file")
    file_size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    storages: dict[str, _Storage] = {}

    def find_storage(key: str, dtype: str, length: int) -> _Storage:
        return _same(storages.setdefault(key, _Storage(dtype, length)), dtype, length)

    def load() -> Any:
        return _Unpickler(stream, find_storage).load()

    try:
        magic = load()
    except (_InvalidFile, EOFError):
        raise
    except Exception as error:
        raise _InvalidFile("is not a file of torch.save: download the .pth file") from error
    if type(magic) is not int or magic != MAGIC_NUMBER:
        raise _InvalidFile("is a pickle, but not one of torch.save: download the .pth file")
    version, machine, state, keys = load(), load(), load(), load()
    if version != PROTOCOL_VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _InvalidFile(
            "was saved by another version of torch.save or on a big-endian machine: save it again with a newer PyTorch"
        )
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise _InvalidFile("is damaged: it does not hold the storages of its tensors; download it again")
    for key in keys:
        storage = storages[key]
        length = int.from_bytes(stream.read(8), "little")
        size = storage.length * storage.dtype.itemsize
        if stream.tell() + size > file_size:
            raise EOFError(f"it ends after {file_size:,} bytes, in the middle of the weights")
        if length != storage.length:
            raise _InvalidFile("is damaged: the length of a storage does not match its tensors; download it again")
        storage.data = np.frombuffer(stream.read(size), storage.dtype)
    return state


def _same(storage: _Storage, dtype: str, length: int) -> _Storage:
    if storage.dtype != np.dtype(dtype) or storage.length != length:
        raise _InvalidFile("is damaged: two tensors disagree about their storage; download it again")
    return storage


def _checked(state: Any) -> dict[str, np.ndarray]:
    """Validates that `state` is a flat dictionary of tensors and converts it to arrays."""
    if not isinstance(state, dict) or not state:
        raise _InvalidFile("holds no dictionary of tensors: save a network's state_dict()")
    wrong = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, _Tensor)]
    if wrong:
        raise _InvalidFile(
            f"is not a flat dictionary of tensors ({str(wrong[0])[:40]!r} is something else): save a state_dict()"
        )
    unused = MAX_SHARED * sum({id(tensor.storage): tensor.storage.length for tensor in state.values()}.values())
    arrays = {}
    for name, tensor in state.items():
        arrays[name] = tensor.array()
        unused -= arrays[name].size
        if unused < 0:
            raise _InvalidFile("is damaged: its tensors repeat their storages; download it again")
    return arrays
