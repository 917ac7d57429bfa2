"""The weights of the FID's Inception: found or fetched, read without PyTorch, folded once, kept as safetensors.

They were trained by Google in 2015 and converted by the authors of pytorch-fid, whose file every PyTorch tool reads; its name
holds the beginning of its SHA-256. A convolution W without bias and the batch norm after it,

    y = (W * x - mean) / sqrt(var + 0.001) * scale + shift,

are one convolution with kernel W * scale / sqrt(var + 0.001) and bias shift - mean * scale / sqrt(var + 0.001), computed in
float64. The folded weights lie in the cache folder under the hash of the file that they come from.
"""

import functools
import hashlib
import json
import math
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ddpm_jax.metrics import inception
from ddpm_jax.metrics.torch_file import read_torch_file
from ddpm_jax.runtime.errors import PersonError, UsageError

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
HASH_PREFIX = "6726825d"
OTHER_NAMES = ("weights-inception-2015-12-05-6726825d.pth",)  # the same file as torch-fidelity names it
EPSILON = 0.001
FORMAT = "ddpm_jax inception 1"  # of the safetensors; another number when what is in it changes


class InceptionWeights(NamedTuple):
    """What `inception.apply` takes, and where it comes from.

    Attributes:
      variables: {"params": ...}, NumPy float32.
      sha256: of the .pth file, 64 hexadecimal digits.
      file: that .pth file, or the converted file where the .pth file itself is not at hand.
    """

    variables: dict[str, Any]
    sha256: str
    file: str

    @property
    def published(self) -> bool:
        """Whether these are the weights of published numbers, byte for byte."""
        return self.sha256.startswith(HASH_PREFIX)


def load_weights(path: str = "", *, report: Callable[[str], Any] = print) -> InceptionWeights:
    """The weights: from `path`, or from where tools keep them, or downloaded.

    Without a path: the converted file in our cache folder, else NAME (or torch-fidelity's name for it) in
    $TORCH_HOME/hub/checkpoints, ~/.cache/torch/hub/checkpoints and our cache folder, else the download into it.

    Args:
      path: a .pth file of any hash, or a safetensors file that this function has made.
      report: called with a line about what takes time or is passed over.

    Raises:
      UsageError: no file at `path`.
      PersonError: the file is cut off, damaged, of another network, or holds more than arrays; or there is no file and no network.
    """
    if path:
        file = Path(path).expanduser()
        if not file.is_file():
            raise UsageError(f"no weights at {path}: give the file {NAME} from {URL}, or no path to have it found or downloaded")
        return _read_converted(file) if file.suffix == ".safetensors" else _convert(file, _sha256(file), report)
    for file in sorted(cache_folder().glob(f"inception-{HASH_PREFIX}*.safetensors")):
        try:
            return _read_converted(file)
        except PersonError as error:
            report(f"passed over: {error}")
    for file in _usual_places():
        if file.is_file():
            sha256 = _sha256(file)
            if sha256.startswith(HASH_PREFIX):
                return _convert(file, sha256, report)
            report(f"passed over: {file} is damaged, its SHA-256 begins with {sha256[:8]} instead of {HASH_PREFIX}")
    file = cache_folder() / NAME
    download(file, report=report)
    return _convert(file, _sha256(file), report)


def cache_folder() -> Path:
    """Where converted weights and the download lie: $XDG_CACHE_HOME/ddpm_jax/inception, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ddpm_jax" / "inception"


def _usual_places() -> Iterable[Path]:
    torch_home = os.environ.get("TORCH_HOME")
    caches = os.environ.get("XDG_CACHE_HOME"), "~/.cache"
    homes = [torch_home] if torch_home else []
    folders = [Path(home).expanduser() / "hub" / "checkpoints" for home in [*homes, *(f"{c}/torch" for c in caches if c)]]
    return [folder / name for folder in dict.fromkeys([*folders, cache_folder()]) for name in (NAME, *OTHER_NAMES)]


def download(file: Path, *, url: str = URL, report: Callable[[str], Any] = print) -> None:
    """Fetches the weights. What arrives becomes `file` only when it is whole and has the right hash.

    Raises:
      PersonError: no network, no room, or something else arrived.
    """
    by_hand = f"fetch {url} on another machine, and put it at {file}"
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        digest, done, said = hashlib.sha256(), 0, 0
        report(f"downloading the Inception weights (95 MB, once) to {file}")
        with urllib.request.urlopen(url, timeout=30) as answer, partial.open("wb") as out:
            total = int(answer.headers.get("Content-Length") or 0)
            while block := answer.read(1 << 20):
                out.write(block)
                digest.update(block)
                done += len(block)
                if total and done * 10 // total > said:
                    said = done * 10 // total
                    report(f"Inception weights: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({10 * said}%)")
        if total and done < total:
            raise PersonError(f"the download of the Inception weights ended after {done:,} of {total:,} bytes: try again, or {by_hand}")
        if not digest.hexdigest().startswith(HASH_PREFIX):
            raise PersonError(
                f"what came from {url} is not the Inception weights (its SHA-256 begins with {digest.hexdigest()[:8]} instead of "
                f"{HASH_PREFIX}): {by_hand}"
            )
        os.replace(partial, file)
    except urllib.error.URLError as error:
        raise PersonError(f"the Inception weights are not here and cannot be downloaded ({error.reason}): {by_hand}") from error
    except OSError as error:
        raise PersonError(f"the Inception weights cannot be downloaded ({error.strerror or error}): {by_hand}") from error
    finally:
        partial.unlink(missing_ok=True)


def _convert(file: Path, sha256: str, report: Callable[[str], Any]) -> InceptionWeights:
    """Weights of a .pth file, by way of its converted copy in the cache folder."""
    copy = cache_folder() / f"inception-{sha256}.safetensors"
    if copy.is_file():
        try:
            return _read_converted(copy)._replace(file=str(file))
        except PersonError as error:
            report(f"made anew: {error}")
    variables = from_state_dict(read_torch_file(file), str(file))
    tensors = flatten(variables)
    metadata = {"format": FORMAT, "source": file.name, "source_sha256": sha256, "crc32": json.dumps(_crc32(tensors))}
    partial = copy.with_name(f"{copy.name}.{os.getpid()}.partial")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(safetensors.numpy.save(tensors, metadata))
        os.replace(partial, copy)
    except OSError as error:  # a home that cannot be written costs the conversion each time, no more
        report(f"the converted Inception weights cannot be kept in {copy.parent}: {error.strerror or error}")
        partial.unlink(missing_ok=True)
    return InceptionWeights(variables, sha256, str(file))


def _read_converted(file: Path) -> InceptionWeights:
    """Weights of a safetensors file that `_convert` has made.

    Raises:
      PersonError: it was not, or has changed since.
    """
    remedy = "remove it to have it made anew"
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise PersonError(f"{file} is not one of this program's files of Inception weights: give the file {NAME}")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise PersonError(f"the converted weights {file} cannot be read ({error}): {remedy}") from error
    sound = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        name: (shape, np.float32) for name, shape in flatten(_shapes()).items()
    }
    if not sound or str(_crc32(tensors)) != metadata.get("crc32"):
        raise PersonError(f"the converted weights {file} have changed since they were made: {remedy}")
    return InceptionWeights(_nested(tensors), metadata.get("source_sha256", ""), str(file))


def from_state_dict(state: dict[str, np.ndarray], title: str = "the state dict") -> dict[str, Any]:
    """Variables for `inception.apply` from the tensors of a PyTorch Inception, batch norms folded.

    Args:
      state: "Mixed_5b.branch1x1.conv.weight" [out, in, h, w], "...bn.weight", "...bn.bias", "...bn.running_mean",
        "...bn.running_var" [out] for each convolution, and "fc.weight" [1008, 2048]. More (AuxLogits, fc.bias) is passed over.
      title: what an error calls it.

    Raises:
      PersonError: of another network, or of values that are no weights; names the first few.
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
        raise PersonError(f"{title} is not the Inception of the FID ({', '.join(wrong[:3])}{more}): fetch {URL}")
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
    """Names and shapes of what `from_state_dict` needs."""
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


def random_state_dict(seed: int) -> dict[str, np.ndarray]:
    """Weights by a rule, the same on every machine and NumPy: for tests and for speed, where the real ones are not at hand.

    Each tensor is uniform, from raw Philox words keyed by (seed, CRC-32 of its name). Kernels have He's variance 2 / inputs
    and norms are near 1, so that activations neither die out nor overflow through 94 layers (numbers below 1e-38 would
    slow some machines down tenfold).
    """
    state = {}
    for name, shape in state_dict_shapes().items():
        if name.endswith("weight") and len(shape) > 1:
            bound = math.sqrt(6 / math.prod(shape[1:]))
            low, high = -bound, bound
        else:
            low, high = (0.5, 1.5) if name.endswith((".weight", ".running_var")) else (-0.5, 0.5)
        key = np.random.SeedSequence((seed, zlib.crc32(name.encode())))
        fractions = (np.random.Philox(key).random_raw(math.prod(shape)) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        state[name] = (np.float32(low) + np.float32(high - low) * fractions).reshape(shape)
    return state


def random_variables(seed: int) -> dict[str, Any]:
    """Variables for `inception.apply` from `random_state_dict`."""
    return from_state_dict(random_state_dict(seed))


@functools.cache
def _shapes() -> dict[str, Any]:
    """{"params": ...} with a shape for each array."""
    image = jax.ShapeDtypeStruct((1, inception.SIZE, inception.SIZE, 3), np.float32)
    abstract = jax.eval_shape(lambda x: inception.Inception().init(jax.random.key(0), x), image)
    return jax.tree.map(lambda leaf: leaf.shape, abstract)


def flatten(variables: dict[str, Any]) -> dict[str, Any]:
    """{"params": {"Mixed_5b": {"branch1x1": {"kernel": a}}}} -> {"Mixed_5b/branch1x1/kernel": a}, names in order."""
    found = {}

    def walk(tree: dict[str, Any], path: str) -> None:
        for name, value in sorted(tree.items()):
            if isinstance(value, dict):
                walk(value, f"{path}{name}/")
            else:
                found[path + name] = value

    walk(variables["params"], "")
    return found


def _nested(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split("/")
        place = params
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = tensor
    return {"params": params}


def _crc32(tensors: dict[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].tobytes(), value)
    return value


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise PersonError(f"cannot read the weights {file}: {error.strerror or error}") from error
