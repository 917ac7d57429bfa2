"""A page with models inside, opened as a file: it computes what JAX computes, and loads nothing."""

import functools
import http.server
import threading

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.interop import export_onnx, onnxruntime_web
from ddpm_jax.interop.onnx_model import to_onnx
from ddpm_jax.interop.program_inputs import Tensor
from tests.browser.browsers import Chromium
from tests.interop.exported import make_config, random_params

DIGITS = {
    "data.image_size": 8,
    "data.channels": 1,
    "data.num_classes": 10,
    "model.class_conditional": True,
    "model.label_dropout": 0.1,
    "model.unet.ch": 16,
    "model.unet.attn_resolutions": (4,),
}
MAX_PAGE = 15e6  # bytes
RUN = """
    const [name, inputs, count] = args;
    const types = {float32: Float32Array, int32: Int32Array};
    window.networks ??= {};
    const network = window.networks[name] ??= await window.onnxNetworks.load(name);
    const arrays = network.inputs.filter(({name}) => name in inputs).map(
      ({name, dtype}) => [name, types[dtype].from(inputs[name])]);
    const found = await network.run(Object.fromEntries(arrays), count);
    return Object.fromEntries(Object.entries(found).map(([name, values]) => [name, Array.from(values)]));
"""


@pytest.fixture(scope="module")
def network():
    """The digits network with random parameters, in JAX: (x_t, t, labels) -> output."""
    config = make_config(DIGITS)
    params = random_params(config)
    return export_onnx.network_function(build.build_denoise_fn(config, portable=True), params, np.zeros(1, np.int32))


@pytest.fixture(scope="module")
def page(network, tmp_path_factory):
    """A page with the digits network, and a function of two outputs and a number."""
    images = export_onnx.images("x_t", (8, 8, 1))
    integers = [Tensor(name, "int32", ("b",)) for name in ("t", "labels")]
    models = {
        "denoiser": to_onnx(network, [images, *integers], ["output"]),
        "pair": to_onnx(lambda x, k: (x * k, x + 1), [images, Tensor("factor", "float32", ())], ["scaled", "moved"]),
    }
    assets = onnxruntime_web.runtime_assets()
    runtime = len(onnxruntime_web.page_elements({}, assets))
    assert onnxruntime_web.RUNTIME_BYTES - 20_000 < runtime <= onnxruntime_web.RUNTIME_BYTES
    elements = onnxruntime_web.page_elements(models, assets)
    file = tmp_path_factory.mktemp("page") / "page.html"
    script = "<script>window.onnxNetworks = onnxNetworks</script>"  # for the scripts of Firefox's driver
    file.write_text(f'<!doctype html><meta charset="utf-8"><title>Networks</title><body>{elements}{script}</body>')
    return file


@pytest.fixture(scope="module")
def page_without_workers(page):
    """The same page in a browser that makes no worker."""
    file = page.with_name("without_workers.html")
    file.write_text(page.read_text().replace("<body>", "<body><script>delete globalThis.Worker</script>"))
    return file


@pytest.fixture
def opened(browser, page):
    """(model, inputs, number of images) -> outputs of the page, flat."""
    browser.open(page)

    def run(name, inputs, count):
        lists = {key: np.asarray(values).ravel().tolist() for key, values in inputs.items()}
        return {key: np.asarray(values) for key, values in browser.run(RUN, name, lists, count).items()}

    return run


@pytest.mark.parametrize("count", [1, 5])
def test_the_network_computes_what_jax_computes(count, opened, network, browser, page):
    random = np.random.default_rng(count)
    x_t = random.standard_normal((count, 8, 8, 1)).astype(np.float32)
    t, labels = (random.integers(0, most, count).astype(np.int32) for most in (1000, 11))
    found = opened("denoiser", {"x_t": x_t, "t": t, "labels": labels}, count)["output"]
    wanted = np.asarray(jax.jit(network)(x_t, t, labels)).ravel()
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (browser.console(), browser.requests()) == ([], [])
    assert page.stat().st_size < MAX_PAGE


def test_models_of_several_outputs_and_numbers(opened):
    x_t = np.arange(128.0)
    found = opened("pair", {"x_t": x_t, "factor": [3]}, 2)
    np.testing.assert_array_equal(found["scaled"], 3 * x_t)
    np.testing.assert_array_equal(found["moved"], x_t + 1)


TICKS = """
    const network = await window.onnxNetworks.load("denoiser"), count = 128;
    const inputs = {x_t: new window.Float32Array(64 * count), t: new window.Int32Array(count)};
    inputs.labels = inputs.t;
    await network.run(inputs, count);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 5);
    const found = await network.run(inputs, count);
    clearInterval(timer);
    return [network.thread, ticks, inputs.x_t.length, Array.from(found.output.slice(0, 64))];
"""


def test_the_page_is_responsive_while_a_worker_computes(browser, page, page_without_workers, network):
    """A timer runs during one evaluation, and not in the page's own thread, which is the fallback; both compute the same."""
    wanted = np.asarray(jax.jit(network)(np.zeros((1, 8, 8, 1), np.float32), np.zeros(1, np.int32), np.zeros(1, np.int32)))
    for file, thread, fewest, most in ((page, "worker", 5, 10_000), (page_without_workers, "page", 0, 0)):
        browser.open(file)
        used, ticks, length, output = browser.run(TICKS)
        assert (used, length) == (thread, 64 * 128)
        assert fewest <= ticks <= most
        np.testing.assert_allclose(output, wanted.ravel(), atol=1e-4)
        assert (browser.console(), browser.requests()) == ([], [])


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *arguments):
        pass


def test_a_page_from_a_server_has_a_worker_too(browser, page):
    handler = functools.partial(Quiet, directory=str(page.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            browser.driver.get(f"http://127.0.0.1:{server.server_port}/{page.name}")
            inputs = {"x_t": [0] * 64, "t": [5], "labels": [3]}
            assert len(browser.run(RUN, "denoiser", inputs, 1)["output"]) == 64
            assert browser.run("return (await window.networks.denoiser).thread") == "worker"
        finally:
            server.shutdown()
            thread.join()


def test_mistakes_of_a_page_name_the_model_and_the_input(opened):
    with pytest.raises(RuntimeError, match="the page has no ONNX model decoder"):
        opened("decoder", {}, 1)
    with pytest.raises(RuntimeError, match="pair needs the input factor"):
        opened("pair", {"x_t": np.zeros(64)}, 1)


def test_the_browser_reaches_no_host_and_records_that_a_page_tried(browser, tmp_path):
    """What the other tests rely on. Pages that are served here have the address 127.0.0.1, which has no name."""
    file, reached = tmp_path / "page.html", []
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.process_request = lambda *_: reached.append(True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://localhost:{server.server_port}/a.png"
            file.write_text(f'<!doctype html><meta charset="utf-8"><body><img src="{url}" alt=""></body>')
            browser.open(file)
            assert browser.requests() == [url]
            if isinstance(browser, Chromium):  # Firefox does not report it
                assert "ERR_NAME_NOT_RESOLVED" in browser.console()[0]
            assert not reached
        finally:
            server.shutdown()
            thread.join()
