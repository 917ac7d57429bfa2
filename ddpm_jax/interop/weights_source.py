"""Finds weights of another program and recognizes by their content which program wrote them.

A folder is diffusers': that of a pipeline (model_index.json, unet/, scheduler/; in the first versions all files in one
folder) or of a network (config.json). A file is safetensors or torch.save's, with the array names of diffusers or of OpenAI's
programs; diffusers' config.json may be beside it. Only files of these names are opened, whatever a file names.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm_jax.data import local_copy
from ddpm_jax.interop import diffusers_layout, openai_layout, weights_file
from ddpm_jax.interop.array_table import Shapes, Table
from ddpm_jax.interop.safetensors_file import read_safetensors
from ddpm_jax.metrics.torch_state_dict import read_torch_file
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line, os_errors

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MAX_CONFIG = 2**20  # bytes of a JSON file
_MARKS = {
    "diffusers": ("conv_in.weight", "time_embedding.linear_1.weight"),
    "openai": ("input_blocks.0.0.weight", "out.2.weight"),
}


@dataclasses.dataclass
class WeightsSource:
    """Weights of another program.

    Attributes:
      kind: diffusers or openai, the layout of the arrays.
      file: the weights.
      state: name -> array or something that NumPy reads as one, with the names of today's versions of the program.
      network: diffusers' config.json; None if there is none.
      scheduler: diffusers' scheduler_config.json; None if there is none.
      files: the files of the last two and the weights, for errors and the record.
    """

    kind: str
    file: Path
    state: dict[str, Any]
    network: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    files: dict[str, Path] = dataclasses.field(default_factory=dict)

    def table(self, network: UNet, shapes: Shapes, *, new_attention_order: bool = False) -> Table:
        """The table of arrays for our network, as `openai_layout.table`."""
        if self.kind == "diffusers":
            return diffusers_layout.table(network, shapes)
        return openai_layout.table(network, shapes, new_attention_order=new_attention_order)

    def provenance(self) -> dict[str, Any]:
        """{"path", "layout", "sha256"} of the weights, JSON-compatible."""
        return {"path": str(self.file), "layout": self.kind, "sha256": sha256(self.file)}


def open_weights(path: Path) -> WeightsSource:
    """Open weights at `path`, a folder or a file.

    Raises:
      FileAccessError: there is no such path, or a file cannot be read.
      InvalidDataError: the path holds no weights of a known program, or a file is damaged. Nothing in it was executed.
    """
    if not path.exists():
        raise FileAccessError(f"no weights at {path}: there is no such file or folder")
    if path.is_dir() and ((path / weights_file.NAME).is_file() or (path / "checkpoints").is_dir()):
        raise _own(path)
    files: dict[str, Path] = {}
    if path.is_dir():
        files = _of_folder(path)
    else:
        files["weights"] = path
        if (config := path.parent / "config.json").is_file():
            files["network"] = config
            files |= _scheduler(path.parent)
    file = files["weights"]
    state = _read(file)
    kinds = [kind for kind, names in _MARKS.items() if all(name in state for name in names)]
    if "conv_in/kernel" in state:
        raise _own(file)
    if not kinds:
        raise InvalidDataError(
            f"{file} does not hold a U-Net of diffusers, improved-diffusion or guided-diffusion: "
            f"its arrays are {_listed(state)}"
        )
    if kinds[0] == "openai":
        return WeightsSource("openai", file, state, files={"weights": file})
    return WeightsSource(
        "diffusers",
        file,
        diffusers_layout.current_names(state),
        network=_read_json(files["network"]) if "network" in files else None,
        scheduler=_read_json(files["scheduler"]) if "scheduler" in files else None,
        files=files,
    )


def _own(path: Path) -> InvalidDataError:
    return InvalidDataError(
        f"{path} holds weights of this program, which are not imported: train with --config.train.init_from={path}"
    )


def _of_folder(folder: Path) -> dict[str, Path]:
    """The files of diffusers in a folder."""
    network = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    if not (network / "config.json").is_file():
        raise InvalidDataError(
            f"{folder} holds no weights of diffusers: there is no config.json in it or in its folder unet; "
            "of a .pt file, give the path of the file"
        )
    found = [network / name for name in WEIGHTS if (network / name).is_file()]
    if not found:
        raise InvalidDataError(f"{network} holds no weights: there is no {' or '.join(WEIGHTS)}")
    return {"weights": found[0], "network": network / "config.json"} | _scheduler(network)


def _scheduler(network: Path) -> dict[str, Path]:
    """The scheduler's config in the folder of the network, in its folder scheduler, or in the pipeline's folder."""
    for folder in (network, network / "scheduler", network.parent / "scheduler"):
        if (file := folder / "scheduler_config.json").is_file():
            return {"scheduler": file}
    return {}


def _read(file: Path) -> dict[str, Any]:
    if storage.is_remote(file):  # arrays are read when they are needed, from a file that can be mapped into memory
        folder = local_copy.of_folder(os.fspath(file.parent), "a file of weights", lambda name: name == file.name)
        file = Path(folder) / file.name
    with os_errors(f"cannot read the weights {file}"), file.open("rb") as stream:
        start = stream.read(9)
    return read_safetensors(file) if start[8:9] == b"{" and start[:2] != b"PK" else read_torch_file(file)


def _read_json(file: Path) -> dict[str, Any]:
    with os_errors(f"cannot read {file}"), file.open("rb") as stream:
        text = stream.read(MAX_CONFIG + 1)
    try:
        if len(text) > MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG:,} bytes")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise InvalidDataError(f"{file} is not a config in JSON: {error_line(error)}") from error
    return found


def sha256(file: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits.

    Raises:
      FileAccessError: the file cannot be read.
    """
    with os_errors(f"cannot read {file}"), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(repr(name)[:60] for name in names[:most]) or "none") + more
