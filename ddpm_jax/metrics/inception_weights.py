"""The weights of the FID's Inception: found or downloaded, read without PyTorch, folded once, cached as safetensors.

They were trained by Google in 2015 and converted by the authors of pytorch-fid, whose file every PyTorch tool
reads. A convolution W without bias and the batch norm after it,

    y = (W * x - mean) / sqrt(var + 0.001) * scale + shift,

are one convolution with kernel W * scale / sqrt(var + 0.001) and bias shift - mean * scale / sqrt(var + 0.001), computed in
float64. The cache folder holds the folded weights under the hash of their source file.
"""

import functools
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from ddpm_jax.metrics import inception
from ddpm_jax.metrics.download import download
from ddpm_jax.metrics.torch_state_dict import read_torch_file
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, error_line, os_errors

logger = logging.getLogger(__name__)

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 95_628_359  # bytes
ALIASES = ("weights-inception-2015-12-05-6726825d.pth",)  # the same file as torch-fidelity names it
EPSILON = 0.001
FORMAT = "ddpm_jax inception 1"  # of the safetensors file; increment when its content changes


class InceptionWeights(NamedTuple):
    """Variables for `inception.apply`, and their source.

    Attributes:
      variables: {"params": ...}, NumPy float32.
      sha256: of the .pth file, 64 hexadecimal digits.
      file: the .pth file, or the converted file if only that exists.
    """

    variables: dict[str, Any]
    sha256: str
    file: str

    @property
    def published(self) -> bool:
        """Whether these are the weights of published numbers, byte for byte."""
        return self.sha256 == SHA256


def load_weights(path: str = "", *, progress: Callable[[int, str], Any] | None = None) -> InceptionWeights:
    """Loads the weights from `path`, from the usual cache folders, or by download.

    Without a path: the converted file in our cache folder, else NAME (or torch-fidelity's name for it) in
    $TORCH_HOME/hub/checkpoints, $XDG_CACHE_HOME/torch/hub/checkpoints, ~/.cache/torch/hub/checkpoints and our cache folder,
    else the download into it.

    Args:
      path: a .pth file of any hash, or a safetensors file written by this function.
      progress: for the download, see `download`.

    Raises:
      InvalidArgumentError: no file at `path`.
      InvalidDataError: the file is truncated, damaged, from another network, or holds more than arrays.
      UnavailableError: no file found and the download failed.
    """
    if path:
        file = Path(path).expanduser()
        if not file.is_file():
            raise InvalidArgumentError(
                f"no weights at {path}: give the file {NAME} from {URL}, or no path to find or download it"
            )
        return _read_converted(file) if file.suffix == ".safetensors" else _convert(file, _sha256(file))
    converted = converted_file(SHA256)
    if converted.is_file():
        try:
            return _read_converted(converted)
        except InvalidDataError as error:
            logger.warning(f"skipping: {error}")
    for file in _search_paths():
        if file.is_file():
            sha256 = _sha256(file)
            if sha256 == SHA256:
                return _convert(file, sha256)
            logger.warning(f"skipping: {file} is damaged, its SHA-256 is {sha256[:8]}.. instead of {SHA256[:8]}..")
    file = cache_folder() / NAME
    download(URL, file, sha256=SHA256, size=SIZE, title="Inception weights", progress=progress)
    return _convert(file, SHA256)


def cache_folder() -> Path:
    """The folder of the converted weights and the download: $XDG_CACHE_HOME/ddpm_jax/inception, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ddpm_jax" / "inception"


def converted_file(sha256: str) -> Path:
    """The path of the converted copy of the .pth file with that hash."""
    return cache_folder() / f"inception-{sha256}.safetensors"


def _search_paths() -> list[Path]:
    torch_home = os.environ.get("TORCH_HOME")
    caches = os.environ.get("XDG_CACHE_HOME"), "~/.cache"
    homes = [torch_home] if torch_home else []
    folders = [Path(home).expanduser() / "hub" / "checkpoints" for home in [*homes, *(f"{c}/torch" for c in caches if c)]]
    return [folder / name for folder in dict.fromkeys([*folders, cache_folder()]) for name in (NAME, *ALIASES)]


def _convert(file: Path, sha256: str) -> InceptionWeights:
    """Loads a .pth file, through its converted copy in the cache folder."""
    copy = converted_file(sha256)
    if copy.is_file():
        try:
            return _read_converted(copy)._replace(file=str(file))
        except InvalidDataError as error:
            logger.warning(f"regenerating: {error}")
    variables = from_state_dict(read_torch_file(file), str(file))
    tensors = flatten(variables)
    metadata = {"format": FORMAT, "source": file.name, "source_sha256": sha256, "crc32": json.dumps(_crc32(tensors))}
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(copy, shared=True) as out:
            out.write(safetensors.numpy.save(tensors, metadata))
    except OSError as error:  # an unwritable cache only costs the conversion on each run
        logger.warning(f"the converted Inception weights cannot be cached in {copy.parent}: {error_line(error)}")
    return InceptionWeights(variables, sha256, str(file))


def _read_converted(file: Path) -> InceptionWeights:
    """Reads a safetensors file written by `_convert`.

    Raises:
      InvalidDataError: the file has another format or has changed since.
    """
    remedy = f"remove it to regenerate it from {NAME}"
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InvalidDataError(f"{file} was not written by this program: give the file {NAME}")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InvalidDataError(f"the converted weights {file} cannot be read ({error_line(error)}): {remedy}") from error
    sound = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        name: (shape, np.float32) for name, shape in flatten(_shapes()).items()
    }
    if not sound or str(_crc32(tensors)) != metadata.get("crc32"):
        raise InvalidDataError(f"the converted weights {file} have changed since they were written: {remedy}")
    return InceptionWeights(_nested(tensors), metadata.get("source_sha256", ""), str(file))


def from_state_dict(state: dict[str, np.ndarray], title: str = "the state dict") -> dict[str, Any]:
    """Variables for `inception.apply` from the tensors of a PyTorch Inception, batch norms folded.

    Args:
      state: "Mixed_5b.branch1x1.conv.weight" [out, in, h, w], "...bn.weight", "...bn.bias", "...bn.running_mean",
        "...bn.running_var" [out] for each convolution, and "fc.weight" [1008, 2048]. Others (AuxLogits, fc.bias) are ignored.
      title: name of the state dict in errors.

    Raises:
      InvalidDataError: tensors of another network, or invalid values; names the first few.
    """
    shapes = state_dict_shapes()
    wrong = [
        f"{name} is missing" if name not in state else f"{name} is {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name not in state or state[name].shape != shape
    ]
    wrong = wrong or [f"{name} is not finite" for name in shapes if not np.isfinite(state[name]).all()]
    wrong = wrong or [f"{name} is negative" for name in shapes if name.endswith("running_var") and (state[name] < 0).any()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InvalidDataError(f"{title} is not the Inception of the FID ({', '.join(wrong[:3])}{more}): download {URL}")
    tensors = {}
    for name in flatten(_shapes()):
        layer, _, leaf = name.rpartition("/")
        if name == "fc":
            tensors[name] = state["fc.weight"].T.astype(np.float32)
            continue
        layer = layer.replace("/", ".")
        norm = {key: state[f"{layer}.bn.{key}"].astype(np.float64) for key in ("weight", "bias", "running_mean", "running_var")}
        factor = norm["weight"] / np.sqrt(norm["running_var"] + EPSILON)
        if leaf == "kernel":
            kernel = state[f"{layer}.conv.weight"].transpose(2, 3, 1, 0) * factor
            tensors[name] = np.ascontiguousarray(kernel, np.float32)
        else:
            tensors[name] = (norm["bias"] - norm["running_mean"] * factor).astype(np.float32)
    return _nested({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


@functools.cache
def state_dict_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `from_state_dict` needs."""
    shapes = {}
    for name, shape in flatten(_shapes()).items():
        layer, _, leaf = name.rpartition("/")
        layer = layer.replace("/", ".")
        if name == "fc":
            shapes["fc.weight"] = shape[::-1]
        elif leaf == "kernel":
            height, width, inputs, outputs = shape
            shapes[f"{layer}.conv.weight"] = (outputs, inputs, height, width)
        else:
            shapes |= {f"{layer}.bn.{key}": shape for key in ("weight", "bias", "running_mean", "running_var")}
    return shapes


@functools.cache
def _shapes() -> dict[str, Any]:
    """{"params": ...} with the shape of each array."""
    image = jax.ShapeDtypeStruct((1, inception.SIZE, inception.SIZE, 3), np.float32)
    abstract = jax.eval_shape(lambda x: inception.Inception().init(jax.random.key(0), x), image)
    return jax.tree.map(lambda leaf: leaf.shape, abstract)


def flatten(variables: dict[str, Any]) -> dict[str, Any]:
    """{"params": {"Mixed_5b": {"branch1x1": {"kernel": a}}}} -> {"Mixed_5b/branch1x1/kernel": a}, names in order."""
    return dict(sorted(traverse_util.flatten_dict(variables["params"], sep="/").items()))


def _nested(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return {"params": traverse_util.unflatten_dict(tensors, sep="/")}


def _crc32(tensors: dict[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].tobytes(), value)
    return value


def _sha256(file: Path) -> str:
    with os_errors(f"cannot read the weights {file}"), file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
