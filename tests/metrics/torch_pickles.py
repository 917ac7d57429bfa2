"""Writes files of torch.save without PyTorch: valid ones, and ones that it would never write."""

import collections
import io
import pickle
import struct
import zipfile

from ddpm_jax.metrics import torch_state_dict

KINDS = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
}


class Named:
    """Pickled as a global of another module, like PyTorch's classes and functions."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Called:
    """Pickled as a function called with arguments."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Named(module, name), arguments


class Stored(tuple):
    """Pickled as a persistent id."""

    __slots__ = ()


class TorchPickler(pickle._Pickler):
    """Pickles in protocol 2, as PyTorch does, without PyTorch."""

    def persistent_id(self, thing):
        return tuple(thing) if isinstance(thing, Stored) else None

    def save(self, thing, *arguments, **options):
        if isinstance(thing, Named):
            self.write(pickle.GLOBAL + f"{thing.module}\n{thing.name}\n".encode())
        elif isinstance(thing, Called):
            self.save(thing.function)
            self.save(thing.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(thing, *arguments, **options)


def pickled(*things):
    stream = io.BytesIO()
    for thing in things:
        TorchPickler(stream, 2).dump(thing)
    return stream.getvalue()


def storage(array, key, length=None, kind=None, view=()):
    kind = kind or KINDS[array.dtype.name]
    return Stored(("storage", Named("torch", kind), key, "cpu", array.size if length is None else length, *view))


def tensor(stored, array, offset=0, shape=None, strides=None):
    strides = tuple(s // array.itemsize for s in array.strides) if strides is None else strides
    shape = array.shape if shape is None else shape
    hooks = Called("collections", "OrderedDict")
    return Called("torch._utils", "_rebuild_tensor_v2", stored, offset, shape, strides, False, hooks)


def state_of(arrays):
    return collections.OrderedDict((name, tensor(storage(a, str(i)), a)) for i, (name, a) in enumerate(arrays.items()))


def zipped(state, arrays=(), root="archive/", **entries):
    """The bytes of a file of PyTorch 1.6 or later."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{root}data.pkl", pickled(state))
        archive.writestr(f"{root}byteorder", entries.pop("byteorder", "little"))
        for i, array in enumerate(arrays):
            archive.writestr(f"{root}data/{i}", array.tobytes())
        for name, content in entries.items():
            archive.writestr(root + name, content)
    return stream.getvalue()


def legacy(state, arrays=(), keys=None, magic=torch_state_dict.MAGIC_NUMBER, machine=None):
    """The bytes of a file of older PyTorch, and of `_use_new_zipfile_serialization=False`."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}} if machine is None else machine
    keys = [str(i) for i in range(len(arrays))] if keys is None else keys
    head = pickled(magic, 1001, machine, state, keys)
    return head + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays)
