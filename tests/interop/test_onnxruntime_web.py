"""The runtime of ONNX for browsers: where it comes from, and how a page contains it. tests/browser runs such pages."""

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile

import pytest

from ddpm_jax.interop import onnxruntime_web
from ddpm_jax.interop.onnx_model import OnnxModel, Tensor
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, UnavailableError

FILES = {
    onnxruntime_web.JAVASCRIPT: b"export {};\n//# sourceMappingURL=a.map",
    onnxruntime_web.WASM: b"\0asm",
    "package/a": b"a",
}
ASSETS = onnxruntime_web.RuntimeAssets("export {};", b"\0asm")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive like npm's, whose hash is the expected one; the cache folder is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "copy.tgz"
    with tarfile.open(file, "w:gz") as out:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(onnxruntime_web, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_a_given_archive_is_read(archive):
    assert onnxruntime_web.runtime_assets(archive) == ASSETS


def test_the_archive_is_downloaded_once(archive, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", archive.parent.as_uri() + "/")
    target = archive.parent / "onnxruntime-web" / "-" / onnxruntime_web.NAME
    target.parent.mkdir(parents=True)
    archive.rename(target)
    assert onnxruntime_web.runtime_assets() == ASSETS
    target.unlink()
    assert onnxruntime_web.runtime_assets() == ASSETS
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    assert onnxruntime_web.url() == f"https://registry.npmjs.org/onnxruntime-web/-/{onnxruntime_web.NAME}"


def test_without_a_network_the_error_states_how_to_get_it(archive, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"missing and cannot be downloaded .*onnxruntime-web-1.*on another machine"):
        onnxruntime_web.runtime_assets()


def test_other_content_is_refused(archive, tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"none\.tgz does not exist: `npm pack onnxruntime-web@1"):
        onnxruntime_web.runtime_assets(tmp_path / "none.tgz")
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(InvalidDataError, match=r"copy\.tgz is not onnxruntime-web 1.*SHA-256 .*`npm pack"):
        onnxruntime_web.runtime_assets(archive)


def test_a_page_contains_models_and_runtime_and_refers_to_nothing():
    model = OnnxModel(b"0123456789", (Tensor("x", "float32", ("b", 2)),), (Tensor("y", "float32", ("b",)),))
    html = onnxruntime_web.page_elements({"denoiser": model}, ASSETS)
    found = dict(re.findall(r'<script type="text/plain" id="onnx-([\w-]+)"[^>]*>([^<]*)</script>', html))
    assert {name: gzip.decompress(base64.b64decode(text)) for name, text in found.items()} == {
        "runtime-js": b"export {};",
        "runtime-wasm": b"\0asm",
        "denoiser": b"0481592637",  # in planes of bytes
    }
    described = json.loads(re.search("data-model='([^']*)'", html)[1])
    assert described["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["b", 2]}]
    assert not re.search(r"(?:src|href)=", html)
    for name in ("runtime-js", "a b", 'a"'):
        with pytest.raises(InvalidArgumentError, match=r"the model name .* must have letters"):
            onnxruntime_web.page_elements({name: model}, ASSETS)
