"""Reads files of reference statistics, images or features of this program and other tools, as arrays with uniform names.

    | file | written by | arrays |
    |---|---|---|
    | .npz with mu, sigma | this program, pytorch-fid, clean-fid, EDM | mu, sigma; ours also features, mu_s, provenance ... |
    | .npz with arr_0 and perhaps mu, sigma, mu_s, sigma_s, arr_1 | guided-diffusion | images, labels; the statistics |
    | .npz with arr_0, labels; before: images, labels | --mode=sample | images, labels |
    | .npy | any tool | images uint8 [N, H, W, C], or features [N, D] |
    | .pkl with fid: mu, sigma | EDM2 | mu, sigma |
    | .pkl with raw_mean, raw_cov, num_items | StyleGAN2-ADA, StyleGAN3 | mu, sigma, count; features, if stored |

A pickle can execute arbitrary code. Only dictionaries, lists, numbers and arrays are unpickled.
"""

import pathlib
import pickle
import zipfile
from typing import Any, BinaryIO

import numpy as np

from ddpm_jax.runtime.errors import InvalidDataError

# Arrays of our own files. mu_s and sigma_s are of the spatial features (sFID), named as by guided-diffusion.
NAMES = ("mu", "sigma", "mu_s", "sigma_s", "features", "provenance")
MAKE = "write mu [D] and sigma [D, D] with numpy.savez, or create the file with --mode=compute_stats"
# The globals that a pickle of arrays needs.
ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


def read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a file in one of the formats above: some of mu, sigma, mu_s, sigma_s, features, images, labels, count,
    provenance.

    Raises:
      FileNotFoundError: the file does not exist.
      InvalidDataError: the file is damaged or has another format.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(6)
            opened.seek(0)
            if start[:2] == b"PK":
                return _from_npz(file, opened)
            if start == b"\x93NUMPY":
                return _from_one_array(file, np.load(opened, allow_pickle=False))
            if start[:1] == b"\x80":
                return _from_pickle(file, opened)
    except (FileNotFoundError, InvalidDataError):
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise InvalidDataError(f"{file} is damaged or holds no arrays ({type(error).__name__}): create it again") from error
    raise InvalidDataError(f"{file} is damaged or holds no arrays: {MAKE}")


def _from_npz(file: pathlib.Path, opened: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(opened) as archive:
        members = archive.namelist()
    if any(name.endswith("data.pkl") for name in members):
        raise InvalidDataError(f"{file} is a PyTorch file: load it there, and {MAKE}")
    opened.seek(0)
    with np.load(opened, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in NAMES if name in arrays}
        images = next((name for name in ("images", "arr_0") if name in arrays), None)
        if images and arrays[images].ndim > 1:
            found = _from_one_array(file, arrays[images]) | found
            labels = next((arrays[name] for name in ("labels", "arr_1") if name in arrays), None)
            if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) == len(arrays[images]):
                found["labels"] = labels
        elif not found:
            listed = ", ".join(f"{name} {list(arrays[name].shape)}" for name in arrays.files[:6])
            raise InvalidDataError(f"{file} holds no mu and no sigma, but {listed or 'nothing'}: {MAKE}")
    return found


def _from_one_array(file: pathlib.Path, array: np.ndarray) -> dict[str, np.ndarray]:
    what = f"{file} holds one array, {array.dtype} {list(array.shape)}"
    if array.ndim == 4 and array.dtype == np.uint8 and array.shape[3] in (1, 3):
        return {"images": array}
    if array.ndim == 4 and array.dtype == np.uint8:
        raise InvalidDataError(f"{what}: images must be [N, H, W, C] with C 1 or 3, transpose it with numpy")
    if array.ndim == 4:
        raise InvalidDataError(f"{what}: images must be uint8, 0..255, convert it with numpy")
    if array.ndim == 2 and array.dtype.kind == "f":
        return {"features": array}
    raise InvalidDataError(f"{what}: it must be images uint8 [N, H, W, C] or features [N, D] of some float type")


def _from_pickle(file: pathlib.Path, opened: BinaryIO) -> dict[str, np.ndarray]:
    held = _ArraysOnly(file, opened).load()
    if isinstance(held, np.ndarray):
        return _from_one_array(file, held)
    if not isinstance(held, dict):
        raise InvalidDataError(f"{file} is a pickle of {type(held).__name__}: {MAKE}")
    if isinstance(held.get("fid"), dict):
        held = held["fid"]
    if "mu" in held and "sigma" in held:
        return {name: np.asarray(held[name]) for name in ("mu", "sigma")}
    if held.get("raw_mean") is not None and held.get("num_items"):
        count = int(held["num_items"])
        mean = np.asarray(held["raw_mean"], np.float64) / count
        covariance = np.asarray(held["raw_cov"], np.float64) / count - np.outer(mean, mean)
        return {"mu": mean, "sigma": covariance, "count": np.int64(count)}
    if held.get("all_features"):
        return {"features": np.concatenate([np.asarray(part) for part in held["all_features"]])}
    raise InvalidDataError(
        f"{file} is a pickle with {', '.join(map(str, list(held)[:6])) or 'nothing'}, no mu and sigma: {MAKE}"
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers and arrays only; executes nothing else."""

    def __init__(self, file: pathlib.Path, opened: BinaryIO):
        super().__init__(opened)
        self._path = file

    def find_class(self, module: str, name: str) -> Any:
        """The allowed globals only."""
        if (module, name) not in ALLOWED:
            raise InvalidDataError(
                f"{self._path} is a pickle of more than arrays ({module}.{name}), which could execute arbitrary code: "
                f"load it with the tool that wrote it, and {MAKE}"
            )
        return super().find_class(module, name)
