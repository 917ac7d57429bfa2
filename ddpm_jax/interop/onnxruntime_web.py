"""ONNX models inside an HTML page: ONNX Runtime's build for browsers, its WebAssembly and the models as text of the page.

A page that is opened as a file may load nothing: neither modules beside it nor the .wasm. So the page contains all bytes,
compressed by gzip and as base64, expands them with DecompressionStream, imports the runtime from a blob and hands it the
WebAssembly as `env.wasm.wasmBinary`. One thread is used, since SharedArrayBuffer is not available to files.

    from ddpm_jax.interop import onnxruntime_web

    html = onnxruntime_web.page_elements({"denoiser": model}, onnxruntime_web.runtime_assets())

goes into the page's body, before the scripts that use it:

    const network = await onnxNetworks.load("denoiser");
    const {output} = await network.run({x_t, t, labels}, 1);  // typed arrays, 1 image -> Float32Array

`run` computes in a worker, so that the page stays responsive. Where the browser gives the page no worker, it computes in the
page's thread, which it leaves between calls for drawing and input; `network.thread` is "worker" or "page".
"""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.interop.onnx_model import OnnxModel
from ddpm_jax.metrics.download import download
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, os_errors

VERSION = "1.30.0"
NAME = f"onnxruntime-web-{VERSION}.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
SIZE = 33_106_585  # bytes
# The smallest build: the CPU's operators only. One file of JavaScript, which contains the loader of the .wasm.
JAVASCRIPT, WASM = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"
RUNTIME_BYTES = 4_910_000  # of its elements in a page
ELEMENT = "onnx-"  # the ids of the elements begin with it
PLANES = 4  # bytes of a parameter

SCRIPT = Path(__file__).with_name("onnx_networks.js")  # defines `onnxNetworks`


class RuntimeAssets(NamedTuple):
    """ONNX Runtime for browsers.

    Attributes:
      js: an ECMAScript module; its exports are `InferenceSession`, `Tensor` and `env`.
      wasm: the WebAssembly that the module loads, to be given as `env.wasm.wasmBinary`.
    """

    js: str
    wasm: bytes


def runtime_assets(archive: str | os.PathLike = "", *, progress: Callable[[int, str], Any] | None = None) -> RuntimeAssets:
    """The files of onnxruntime-web 1.30.0, downloaded once (33 MB) from the npm registry into the cache folder.

    Args:
      archive: a copy of onnxruntime-web-1.30.0.tgz, to download nothing.
      progress: for the download, see `metrics.download`.

    Raises:
      InvalidArgumentError: `archive` does not exist.
      InvalidDataError: the archive has another content.
      UnavailableError: the download failed; the message explains the manual download.
    """
    file = Path(archive).expanduser() if archive else cache_folder() / NAME
    if archive and not file.is_file():
        raise InvalidArgumentError(f"{file} does not exist: `npm pack onnxruntime-web@{VERSION}` downloads it")
    if not file.is_file():
        download(url(), file, sha256=SHA256, size=SIZE, title=f"files of onnxruntime-web {VERSION}", progress=progress)
    with os_errors(f"cannot read {file}"):
        content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        advice = f"`npm pack onnxruntime-web@{VERSION}` downloads it" if archive else "remove it to download it again"
        raise InvalidDataError(f"{file} is not onnxruntime-web {VERSION}: SHA-256 {found[:8]}.., not {SHA256[:8]}..; {advice}")
    wanted: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as packed:
        for member in packed:
            if member.name in (JAVASCRIPT, WASM):
                wanted[member.name] = packed.extractfile(member).read()  # type: ignore[union-attr]
    return RuntimeAssets(re.sub(r"\n//# sourceMappingURL=.*", "", wanted[JAVASCRIPT].decode()), wanted[WASM])


def url() -> str:
    """The address of the archive: npm's registry, or that of $NPM_CONFIG_REGISTRY."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or "https://registry.npmjs.org"
    return f"{registry.rstrip('/')}/onnxruntime-web/-/{NAME}"


def cache_folder() -> Path:
    """The folder of the download: $XDG_CACHE_HOME/ddpm_jax/onnxruntime-web, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ddpm_jax" / "onnxruntime-web"


def page_elements(models: Mapping[str, OnnxModel], assets: RuntimeAssets) -> str:
    """HTML elements with the models and the runtime, and a script that defines `onnxNetworks`.

    The runtime takes RUNTIME_BYTES, and a model about 4.6 bytes for each trained parameter: the first bytes of all parameters
    come first, then the second ones, and so on, which gzip compresses better.

    Args:
      models: name -> model, for `onnxNetworks.load(name)`; letters, digits, - and _.
      assets: from `runtime_assets`.

    Raises:
      InvalidArgumentError: a name has other characters.
    """
    if wrong := [name for name in models if not re.fullmatch(r"[\w-]+", name, re.ASCII) or name.startswith("runtime-")]:
        raise InvalidArgumentError(
            f"the model name {wrong[0]!r} must have letters, digits, - and _, and not begin with runtime-"
        )
    parts = [_data_element("runtime-js", assets.js.encode()), _data_element("runtime-wasm", assets.wasm)]
    for name, model in models.items():
        described = {"inputs": [tensor.described() for tensor in model.inputs]}
        described["outputs"] = [tensor.described() for tensor in model.outputs]
        parts.append(_data_element(name, byte_planes(model.data), json.dumps(described)))
    note = f"<!-- ONNX Runtime {VERSION}, MIT License, https://github.com/microsoft/onnxruntime -->"
    return "\n".join([note, *parts, f"<script>\n{SCRIPT.read_text(encoding='utf-8').replace('ELEMENT', ELEMENT)}</script>", ""])


def byte_planes(content: bytes) -> bytes:
    """Every fourth byte from the first on, then from the second on, and so on."""
    return b"".join(content[plane::PLANES] for plane in range(PLANES))


def packed(content: bytes) -> str:
    """The text of a content in a page: gzip and base64."""
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode()


def _data_element(name: str, content: bytes, described: str = "") -> str:
    """A <script> of text, which the browser does not run."""
    attribute = f" data-model='{described}'" if described else ""
    return f'<script type="text/plain" id="{ELEMENT}{name}"{attribute}>{packed(content)}</script>'
