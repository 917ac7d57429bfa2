"""Inception's weights: folding, search, atomic download, and rejection of wrong files."""

import contextlib
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from torch_pickles import Called, legacy, state_of, zipped

from benchmarks import random_inception
from ddpm_jax.metrics import download as downloads
from ddpm_jax.metrics import features
from ddpm_jax.metrics import inception_weights as weights
from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, UnavailableError
from ddpm_jax.runtime.progress import Progress

GOLDEN = Path(__file__).parent.parent / "golden" / "inception.npz"


@pytest.fixture(scope="module")
def state():
    return random_inception.random_state_dict(0)


@pytest.fixture(scope="module")
def variables(state):
    return weights.flatten(weights.from_state_dict(state))


@pytest.fixture(scope="module")
def stored(state, tmp_path_factory):
    """A .pth file in the old layout, as the published one."""
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    file.write_bytes(legacy(state_of(state), state.values()))
    return file


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder: neither converted weights nor PyTorch's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weights, "URL", "http://127.0.0.1:9/unavailable.pth")
    return tmp_path / "home"


@pytest.fixture
def published(stored, monkeypatch):
    """Treats these random weights as the published ones."""
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(stored.read_bytes()).hexdigest())
    return stored


def same(got, expected):
    got = weights.flatten(got)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def fail_on_network(*_, **__):
    raise AssertionError("unexpected download")


def test_names_and_shapes_are_those_of_the_network(state, variables):
    """94 convolutions, 23.9 million numbers with the last layer; each convolution with a norm of four parts."""
    kernels = [name for name, array in state.items() if array.ndim == 4]
    assert len(kernels) == 94
    assert sum(state[name].size for name in kernels) == 21_751_136
    assert len(state) == 94 * 5 + 1
    assert state["fc.weight"].shape == (1008, 2048)
    assert len(variables) == 94 * 2 + 1
    assert state["Mixed_6b.branch7x7_2.conv.weight"].shape == (128, 128, 1, 7)
    assert variables["Mixed_6b/branch7x7_2/kernel"].shape == (1, 7, 128, 128)


@pytest.mark.parametrize("layer", ["Conv2d_1a_3x3", "Mixed_7c.branch3x3dbl_3b", "Mixed_5d.branch_pool"])
def test_a_folded_convolution_equals_convolution_and_norm(state, variables, layer):
    """On random patches, compared with the equation in float64; 1e-6 of the largest output."""
    kernel = state[f"{layer}.conv.weight"].astype(np.float64)
    scale, shift, mean, var = (state[f"{layer}.bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
    patches = np.random.default_rng(0).normal(size=(20, *kernel.shape[1:]))
    expected = (np.einsum("nihw,oihw->no", patches, kernel) - mean) / np.sqrt(var + 0.001) * scale + shift
    path = layer.replace(".", "/")
    got = np.einsum("nihw,hwio->no", patches, variables[f"{path}/kernel"]) + variables[f"{path}/bias"]
    np.testing.assert_allclose(got, expected, atol=1e-6 * abs(expected).max())
    np.testing.assert_array_equal(variables["fc"], state["fc.weight"].T)


def test_random_weights_are_portable_and_depend_on_the_seed(state):
    with np.load(GOLDEN) as golden:  # the inputs of a reference implementation
        assert zlib.crc32(b"".join(state[name].tobytes() for name in sorted(state))) == golden["weights_crc32"]
    assert (random_inception.random_state_dict(1)["fc.weight"] != state["fc.weight"]).mean() > 0.99


def test_a_file_is_converted_once(stored, variables, home, monkeypatch, log_lines):
    found = weights.load_weights(str(stored))
    same(found.variables, variables)
    assert found.sha256 == hashlib.sha256(stored.read_bytes()).hexdigest()
    assert (found.file, found.published) == (str(stored), False)
    converted = home / ".cache/ddpm_jax/inception" / f"inception-{found.sha256}.safetensors"
    assert [converted] == list(converted.parent.iterdir())

    monkeypatch.setattr(weights, "read_torch_file", fail_on_network)
    again = weights.load_weights(str(stored))
    same(again.variables, variables)
    assert again[1:] == found[1:]
    alone = weights.load_weights(str(converted))
    same(alone.variables, variables)
    assert (alone.sha256, alone.file) == (found.sha256, str(converted))
    assert log_lines == []


def test_other_layouts_and_more_tensors_give_the_same(state, variables, home, tmp_path):
    """A zip, double precision, counts of batches, a bias of the last layer, a second head."""
    more = {name: array.astype(np.float64) for name, array in state.items()}
    more |= {"fc.bias": np.ones(1008), "AuxLogits.fc.bias": np.ones(3), "Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0)}
    file = tmp_path / "new.pth"
    file.write_bytes(zipped(state_of(more), more.values()))
    same(weights.load_weights(str(file)).variables, variables)


def test_a_damaged_conversion_is_regenerated(stored, variables, home, log_lines):
    weights.load_weights(str(stored))
    (converted,) = (home / ".cache/ddpm_jax/inception").iterdir()
    good = converted.read_bytes()
    flipped = bytearray(good)
    flipped[-1000] ^= 64
    other = safetensors.numpy.save({"a": np.ones(3, np.float32)}, {"format": "another program's"})
    for damaged, reason in (
        (b"", "cannot be read"),
        (good[: len(good) // 2], "cannot be read"),
        (b"\xff" * 100, "cannot be read"),
        (bytes(flipped), "have changed"),
        (other, "was not written by this program"),
    ):
        converted.write_bytes(damaged)
        with pytest.raises(InvalidDataError, match=reason) as caught:
            weights.load_weights(str(converted))
        assert "\n" not in str(caught.value)
        if damaged not in (b"", bytes(flipped)):  # two failures represent all: a conversion takes a second
            continue
        log_lines.clear()
        same(weights.load_weights(str(stored)).variables, variables)
        assert len(log_lines) == 1
        assert reason in log_lines[0]
        same(weights.load_weights(str(converted)).variables, variables)


def test_an_unwritable_home_only_costs_time(stored, variables, home, log_lines):
    (home.parent / "home").write_text("a file")
    same(weights.load_weights(str(stored)).variables, variables)
    assert len(log_lines) == 1
    assert "cannot be cached" in log_lines[0]


def test_weights_are_found_in_the_folders_of_other_tools(published, variables, home, monkeypatch, log_lines):
    monkeypatch.setattr(weights, "download", fail_on_network)
    monkeypatch.setenv("TORCH_HOME", str(home / "torch_home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    places = [
        home / "torch_home/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth",
        home / "xdg/torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth",
        home / ".cache/torch/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth",
        home / "xdg/ddpm_jax/inception/pt_inception-2015-12-05-6726825d.pth",
    ]
    converted = home / "xdg/ddpm_jax/inception" / f"inception-{weights.SHA256}.safetensors"
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(published, place)
        found = weights.load_weights()
        assert (found.file, found.published) == (str(place), True)
        place.unlink()
        if place != places[-1]:
            converted.unlink()
    assert log_lines == []
    # The .pth file is gone; its conversion is used.
    found = weights.load_weights()
    same(found.variables, variables)
    assert (found.file, found.published, log_lines) == (str(converted), True, [])
    # Both are damaged: logged and skipped.
    converted.write_bytes(b"")
    places[0].write_bytes(b"half")
    with pytest.raises(AssertionError, match="unexpected download"):
        weights.load_weights()
    assert [line.startswith("skipping") for line in log_lines] == [True, True]
    assert "is damaged, its SHA-256" in log_lines[1]


class Server(contextlib.AbstractContextManager):
    """Serves `content` at its url; with `cut`, only that many of the announced bytes."""

    def __init__(self, content, *, cut=None, length=True, status=200):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                if length:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:cut])

            def log_message(self, *_):
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/weights.pth"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_weights_are_downloaded_with_progress(published, variables, home, monkeypatch, log_lines):
    out = io.StringIO()
    with Server(published.read_bytes()) as server:
        monkeypatch.setattr(weights, "URL", server.url)
        found = weights.load_weights(progress=lambda total, unit: Progress(total, unit, out=out))
    same(found.variables, variables)
    file = home / ".cache/ddpm_jax/inception/pt_inception-2015-12-05-6726825d.pth"
    assert (found.file, found.published) == (str(file), True)
    assert file.read_bytes() == published.read_bytes()
    assert log_lines == [f"downloading the Inception weights (96 MB, once) to {file}"]
    megabytes = published.stat().st_size // 10**6
    assert f"{megabytes} / {megabytes} MB (100%)" in out.getvalue()
    weights.load_weights(progress=fail_on_network)  # the server is gone, the file is there


CONTENT = bytes(range(256)) * 8192  # 2 MiB
DOWNLOAD = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT), "title": "weights"}


def test_a_download_is_atomic(tmp_path):
    file = tmp_path / "new" / "weights.pth"
    by_hand = re.escape(f"on another machine and copy it to {file}")
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    for server, reason in (
        (Server(CONTENT, cut=1_000_000), r"ended after 1,000,000 of 2,097,152 bytes: try again, or download"),
        (Server(CONTENT, cut=1_000_000, length=False), "is not the weights: SHA-256"),
        (Server(bytes(changed)), "is not the weights: SHA-256"),
        (Server(b"gone", status=404), r"are missing and cannot be downloaded \(Not Found\)"),
    ):
        with server, pytest.raises(UnavailableError, match=f"{reason}.*{by_hand}"):
            downloads.download(server.url, file, **DOWNLOAD)
        assert list(file.parent.iterdir()) == []
    counts = []

    class Bar(contextlib.nullcontext):
        def update(self, done):
            counts.append(done)

    with Server(CONTENT, length=False) as server:
        downloads.download(server.url, file, **DOWNLOAD, progress=lambda total, unit: Bar())
    assert file.read_bytes() == CONTENT
    assert counts == sorted(counts)
    assert counts[-1] == len(CONTENT) / 1e6
    (tmp_path / "file").touch()
    with (
        Server(CONTENT) as server,
        pytest.raises(UnavailableError, match=r"cannot be downloaded to .*file/below \(not a directory\)"),
    ):
        downloads.download(server.url, tmp_path / "file" / "below" / "weights.pth", **DOWNLOAD)


def test_without_weights_and_network_the_error_is_one_line(home):
    with pytest.raises(UnavailableError, match="are missing and cannot be downloaded") as caught:
        weights.load_weights()
    line, file = str(caught.value), f"{home}/.cache/ddpm_jax/inception/pt_inception-2015-12-05-6726825d.pth"
    assert "\n" not in line
    assert line.endswith(f"download {weights.URL} on another machine and copy it to {file}")


def test_a_path_in_the_home_folder(home):
    """The shell does not expand ~ inside a flag: the error names the expanded path."""
    home.mkdir()
    (home / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(InvalidDataError, match=re.escape(f"{home}/weights.pth")):
        weights.load_weights("~/weights.pth")


def test_bad_files_are_a_one_line_error(state, stored, home, tmp_path):
    def rejected(content, pattern):
        file = tmp_path / "bad.pth"
        file.write_bytes(content)
        with pytest.raises(InvalidDataError, match=pattern) as caught:
            features.make_extractor("inception", inception_path=str(file))
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        assert len(str(caught.value)) < 600

    def changed(**tensors):
        changed = state | {name.replace("__", "."): array for name, array in tensors.items()}
        return legacy(state_of(changed), changed.values())

    whole = stored.read_bytes()
    rejected(whole[:-1], "is truncated or damaged")
    rejected(whole[: len(whole) // 2], "is truncated or damaged")
    mark = tmp_path / "executed"
    rejected(legacy({"fc.weight": Called("os", "system", f"touch {mark}")}), "nothing in it was executed")
    assert not mark.exists()
    other = {"conv1.weight": np.ones((2, 3, 3, 3), np.float32), "fc.weight": np.ones((1000, 2048), np.float32)}
    rejected(
        legacy(state_of(other), other.values()),
        r"is not the Inception of the FID \(Conv2d_1a_3x3\S+ is missing, .* and \d+ more\): download http",
    )
    rejected(changed(fc__weight=np.ones((1000, 2048), np.float32)), r"fc\.weight is \[1000, 2048\] instead of \[1008, 2048\]\)")
    nan = np.full(32, np.nan, np.float32)
    rejected(changed(Conv2d_1a_3x3__bn__bias=nan), r"\(Conv2d_1a_3x3\.bn\.bias is not finite\)")
    rejected(changed(Conv2d_1a_3x3__bn__running_var=-np.ones(32, np.float32)), r"running_var is negative\)")
    assert not (home / ".cache").exists()  # nothing was cached
    with pytest.raises(
        InvalidArgumentError, match=r"no weights at .*nowhere.pth: give the file pt_inception-2015-12-05-6726825d.pth from http"
    ):
        features.make_extractor("inception", inception_path=str(tmp_path / "nowhere.pth"))
    with pytest.raises(InvalidArgumentError, match="`inception_path` applies to inception, but `features` is pixels"):
        features.make_extractor("pixels", inception_path=str(stored))


def test_the_extractor_records_its_provenance(stored, home):
    extractor = features.make_extractor("inception", inception_path=str(stored))
    assert extractor.name == "inception"
    assert extractor.provenance == {
        "features": "inception",
        "weights_sha256": hashlib.sha256(stored.read_bytes()).hexdigest(),
        "weights_published": False,
        "resize": "TensorFlow 1 bilinear to 299x299, not antialiased",
    }


def test_pixel_features_need_no_safetensors(repository):

    use = "from ddpm_jax.metrics import features; features.make_extractor('pixels')"
    program = f"{use}; import sys; print('safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
