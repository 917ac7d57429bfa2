"""The parameters of a network as one safetensors file, with what is known of them in its metadata.

An array has the path of its parameter in the tree, joined by "/": `down0_block0/conv1/kernel`. Kernels of convolutions are
[h, w, in, out], of linear layers [in, out]; norms have `scale` and `bias`. All are float32.

The metadata of a safetensors file is a dictionary of strings:

    format           "ddpm_jax weights 1"
    config           JSON: the config of the run
    step, params     the step of the checkpoint; which parameters, such as "ema"
    weights_sha256   `sha256_of` the arrays
    class_names      JSON: the names of label 0, 1, ...; [] if there are none
    version          the version of this program
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

import ddpm_jax
from ddpm_jax.interop import array_table
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line

NAME = "weights.safetensors"
FORMAT = "ddpm_jax weights 1"


class Weights(NamedTuple):
    """Parameters, and what is known of them.

    Attributes:
      params: nested dictionaries of float32 NumPy arrays.
      step: optimizer steps of their training.
      name: which parameters of the run, such as "ema".
      sha256: `sha256_of(params)`.
      config: the config of the run, nested dictionaries.
      class_names: the names of label 0, 1, ...; () if there are none.
      source: the file or folder that they are from, absolute.
    """

    params: dict[str, Any]
    step: int
    name: str
    sha256: str
    config: dict[str, Any]
    class_names: tuple[str, ...]
    source: str


def sha256_of(params: Mapping[str, Any]) -> str:
    """A fingerprint of the parameters, the same as `training.load_params.params_sha256` of a replicated tree."""
    found = hashlib.sha256()
    for _, array in sorted(array_table.flatten(params).items(), key=lambda item: item[0].split("/")):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def write(file: pathlib.Path, weights: Weights) -> None:
    """Write the file, atomically.

    Raises:
      OSError: it cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "config": json.dumps(weights.config),
        "step": str(weights.step),
        "params": weights.name,
        "weights_sha256": weights.sha256,
        "class_names": json.dumps(list(weights.class_names)),
        "version": ddpm_jax.__version__,
    }
    # safetensors writes the buffer of an array as it is, whatever its strides.
    arrays = {path: np.ascontiguousarray(array) for path, array in array_table.flatten(weights.params).items()}
    with open_atomic(file) as out:
        out.write(safetensors.numpy.save(arrays, metadata))


def read(file: pathlib.Path) -> Weights:
    """The weights in a file of `write`.

    Raises:
      FileAccessError: it cannot be read.
      InvalidDataError: it is damaged, or not a file of `write`.
    """
    try:
        with storage.local_copy(file) as local, safetensors.safe_open(local, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InvalidDataError(
                    f"{file} is a safetensors file without the metadata of --mode=export, so it is unknown which network its "
                    "arrays belong to"
                )
            arrays = {path: stored.get_tensor(path) for path in stored.keys()}  # noqa: SIM118
        other = sorted(path for path, array in arrays.items() if array.dtype != np.float32)
        if other:
            raise InvalidDataError(f"{file}: {other[0]} is {arrays[other[0]].dtype}: it must be float32")
        weights = Weights(
            params=array_table.unflatten(arrays),
            step=int(metadata["step"]),
            name=metadata["params"],
            sha256=metadata["weights_sha256"],
            config=dict(json.loads(metadata["config"])),
            class_names=tuple(json.loads(metadata["class_names"])),
            source=str(file),
        )
    except OSError as error:
        raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error
    except InvalidDataError:
        raise
    except (safetensors.SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
        raise InvalidDataError(f"{file} is damaged ({error_line(error)}): export the weights again") from error
    if sha256_of(weights.params) != weights.sha256:
        raise InvalidDataError(f"{file} has changed since it was written: export the weights again")
    return weights
