"""--mode=visualize with format html: the content of the page, its size, and errors."""

import json
import re

import jax
import numpy as np
import pytest

from ddpm_jax import build, data_config, explorer_config, explorer_identity, explorer_network, explorer_sizes, visualize_config
from ddpm_jax.cli import sample, visualize
from ddpm_jax.diffusion import pixels, schedules, vlb
from ddpm_jax.evaluation import manifest
from ddpm_jax.interop import browser_network, onnx_model, onnxruntime_web
from ddpm_jax.plotting.explorer.page import MAX_BYTES
from ddpm_jax.runtime import atomic
from ddpm_jax.runtime.errors import ConflictError, FileAccessError, UnavailableError
from ddpm_jax.user_messages import UsageError
from tests.cli.explorer_page import data_of

NETWORK = "tests.small_network:Small"
TRAINED = {"model.class_conditional": True, "train.checkpoint_every": 6, "model.label_dropout": 0.1}
FIELDS = TRAINED | {
    "sampling.num_steps": 4,
    "visualize.format": "html",
    "visualize.page_images": 3,
    "visualize.num_steps": (3, 5, 1000),
    "visualize.num_terms": 5,
    "visualize.network": False,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of the only complete page of the module."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def page(written, trained, tiny_config):
    if not (written / "explorer.html").exists():
        assert visualize.run(tiny_config(FIELDS), str(trained), output=str(written)) == 0
    return written / "explorer.html"


def test_schedules_images_and_noise_are_those_of_the_library(page, tiny_config):
    data, config = data_of(page), visualize_config.with_few_images(tiny_config(FIELDS))
    own = build.build_schedule(config)
    assert [entry["label"] for entry in data["schedules"]] == ["cosine, as trained", "linear", "sigmoid"]
    for entry, schedule in zip(data["schedules"][:2], (own, schedules.make_schedule("linear", 100)), strict=True):
        for table in ("betas", "alphas", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"):
            np.testing.assert_array_equal(entry[table], getattr(schedule, table))
    batch = data_config.load_source(config).batch(np.arange(3))
    np.testing.assert_array_equal(data["images"], batch["image"])
    assert data["labels"] == batch["label"].tolist()
    np.testing.assert_array_equal(data["noise"], visualize_config.starting_noise(config))
    assert data["classNames"] == [str(digit) for digit in range(10)]
    assert data["nullLabel"] == 10
    assert data["diffusion"] == {"numTimesteps": 100, "prediction": "eps", "variance": "fixed_large", "clip": True}
    assert "step 6" in data["facts"]["summary"]


def test_chains_are_those_of_mode_sample(page, trained, tiny_config, tmp_path):
    """The image of each recorded chain is that of --mode=sample with its class, seed, sampler and steps; one level."""
    chains = data_of(page)["chains"]
    assert [(chain["sampler"], chain["steps"]) for chain in chains] == [
        (name, steps) for name in ("ancestral", "ddim") for steps in (3, 5, 100)
    ]
    chain = chains[4]
    assert (chain["rows"], chain["seeds"], chain["t"]) == (10, [0, 1], [80, 60, 40, 20, 0])
    assert chain["x_t"].shape == chain["pred_xstart"].shape == (20, 6, 8, 8, 1)
    fields = {"sampling.num_images": 1, "sampling.num_steps": 5, "sampling.seed": 1, "sampling.label": 7}
    assert sample.run(tiny_config(FIELDS | fields), str(trained), output=str(tmp_path)) == 0
    with np.load(tmp_path / "images.npz") as arrays:
        np.testing.assert_allclose(chain["x_t"][17, -1], arrays["arr_0"][0].astype(int), atol=1)
    np.testing.assert_array_equal(chain["x_t"][:, -1], chain["pred_xstart"][:, -1])
    np.testing.assert_array_equal(chain["x_t"][0, 0], chain["x_t"][9, 0])  # one seed is one noise, whatever the class


def test_terms_of_the_bound(page, trained, tiny_config):
    data, config = data_of(page), visualize_config.with_few_images(tiny_config(FIELDS))
    bound = data["bound"]
    assert bound["t"] == [0, 25, 50, 74, 99]
    assert (bound["count"], bound["total"]) == (3, None)
    x_start = pixels.from_uint8(data["images"])
    prior = vlb.prior_bpd(build.build_schedule(config), x_start)
    assert bound["prior"] == pytest.approx(float(np.mean(prior)))
    assert all(value > 0 for value in bound["bits"])
    assert bound["bits"][0] == max(bound["bits"])


def test_the_page_is_reproducible_and_small(page, trained, tiny_config, tmp_path):
    assert visualize.run(tiny_config(FIELDS), str(trained), output=str(tmp_path)) == 0
    assert (tmp_path / "explorer.html").read_bytes() == page.read_bytes()
    assert page.stat().st_size < 1_000_000


def test_another_page_goes_beside(trained, tiny_config, tmp_path, capsys):
    """Pages never overwrite others: the same settings give the same folder, other settings another one."""
    for fields in (QUICK, QUICK, QUICK | {"visualize.num_seeds": 1}):
        assert visualize.run(tiny_config(fields), str(trained)) == 0
    folders = [path for path in (trained / "samples").iterdir() if path.name.startswith("explorer")]
    assert sorted(path.name for path in folders) == ["explorer-step_6-ddim-2-seed_0", "explorer-step_6-ddim-2-seed_0-2"]
    with pytest.raises(ConflictError, match="explorer"):
        visualize.run(tiny_config(QUICK | {"visualize.num_terms": 3}), str(trained), output=str(folders[0]))
    assert "open it in a browser" in capsys.readouterr().out


ASSETS = onnxruntime_web.RuntimeAssets("export {};", b"")
QUICK = FIELDS | {"visualize.num_steps": (2,), "visualize.samplers": ("ddim",), "visualize.num_terms": 2}


@pytest.fixture
def packages(monkeypatch):
    """The packages for ONNX and the runtime are there; a network's elements are `elements`."""
    monkeypatch.setattr(onnx_model, "require", lambda name: None)
    monkeypatch.setattr(onnxruntime_web, "runtime_assets", lambda archive: ASSETS)

    def replace(elements):
        monkeypatch.setattr(browser_network, "network_elements", elements)

    return replace


def unavailable(*args, **options):
    raise UnavailableError("jax2onnx cannot be imported: install it")


def test_the_network_is_embedded_or_the_reason_is_stated(
    trained, tiny_config, tmp_path, monkeypatch, packages, log_lines, capsys
):
    with_network = QUICK | {"visualize.network": True}
    given = []

    def elements(make_denoise_fn, params, **options):
        given.append(options)
        return "<script>const onnxNetworks = {};</script>"

    def text(name, fields):
        assert visualize.run(tiny_config(fields), str(trained), output=str(tmp_path / name)) == 0
        return (tmp_path / name / "explorer.html").read_text()

    packages(elements)
    assert "const onnxNetworks = {};" in text("embedded", with_network)
    described = {"image_shape": (8, 8, 1), "num_timesteps": 100, "num_labels": 11, "assets": ASSETS}
    assert given == [described | {"rounds": False}]
    assert data_of(tmp_path / "embedded" / "explorer.html")["noNetwork"] == ""
    assert "step 6, ema weights; recorded: ddim in 2 steps\n" in capsys.readouterr().out

    packages(lambda *args, **options: "x" * MAX_BYTES)
    assert "parameters, more than fit into the 9." in text("large", with_network)
    packages(unavailable)
    assert "jax2onnx cannot be imported: install it. The recorded chains" in text("missing", with_network)
    assert [line for line in log_lines if "the page has no network" in line and "jax2onnx" in line]
    packages(lambda *args, **options: pytest.fail("converted"))
    monkeypatch.setattr(explorer_sizes, "network_fits", lambda config, params: (False, False))
    assert re.search(r"The network has [\d,]+ parameters", text("counted", with_network))


def test_a_page_without_the_network_does_not_replace_one_with_it(trained, tiny_config, monkeypatch, packages):
    """Without the packages or the runtime, which is known before the network is converted."""
    packages(lambda *args, **options: "<script>const onnxNetworks = {};</script>")
    config = tiny_config(QUICK | {"visualize.network": True, "sampling.seed": 5})
    assert visualize.run(config, str(trained)) == 0
    (first,) = (trained / "samples").glob("explorer-*-seed_5*")
    packages(lambda *args, **options: pytest.fail("converted"))
    monkeypatch.setattr(onnxruntime_web, "runtime_assets", unavailable)
    assert visualize.run(config, str(trained)) == 0
    second = first.with_name(f"{first.name}-2")
    assert "onnxNetworks = {}" in (first / "explorer.html").read_text()
    assert "jax2onnx cannot be imported" in data_of(second / "explorer.html")["noNetwork"]
    monkeypatch.setattr(onnxruntime_web, "runtime_assets", lambda archive: pytest.fail("downloaded"))
    monkeypatch.setattr(onnx_model, "require", unavailable)
    assert visualize.run(config, str(trained)) == 0
    with pytest.raises(ConflictError, match=r'explorer.no_network was "", now "The network could not'):
        visualize.run(config, str(trained), output=str(first))


def test_the_identity_has_what_differs(tiny_config, monkeypatch, tmp_path):
    """Without a network the seed and the type of the images; with one also the options of each recorded sampler."""
    batch = {"image": np.zeros((3, 8, 8, 1), np.uint8), "label": np.arange(3)}

    def identity(step, changes):
        config = tiny_config(FIELDS | changes)
        return explorer_identity.identity_of(config, {"w": jax.numpy.zeros(3)}, step, batch, "")

    for step in (None, 6):
        name, plain = identity(step, {})
        for changes in ({"sampling.seed": 1}, {"sampling.shown_channels": (0,)}, {"data.name": "mnist"}):
            assert identity(step, changes)[1] != plain
    assert name == "explorer-step_6-ancestral-ddim-3-5-100-seed_0"
    name, other = identity(6, {"sampling.ddim.eta": 0.5, "sampling.sampler": "heun", "sampling.num_steps": 7})
    assert name == "explorer-step_6-ancestral-ddim-3-5-100-seed_0-eta_0.5"
    assert (plain["sampling"]["ddim"]["eta"], other["sampling"]["ddim"]["eta"]) == (0.0, 0.5)
    assert identity(6, {"sampling.sampler": "heun", "sampling.num_steps": 7, "sampling.label": 2})[1] == plain
    many = tuple(range(10, 40))
    assert identity(6, {"visualize.num_steps": many})[0] == "explorer-step_6-60_chains-seed_0"
    monkeypatch.setattr(onnxruntime_web, "SCRIPT", tmp_path / "another.js")
    onnxruntime_web.SCRIPT.write_text("another script")
    assert identity(6, {})[1]["page_sha256"] != plain["page_sha256"]


def test_without_a_checkpoint_there_is_the_forward_part(tiny_config, tmp_path, capsys):
    run = tmp_path / "run"
    assert visualize.run(tiny_config(FIELDS), str(run)) == 0
    data = data_of(run / "samples" / "explorer-forward" / "explorer.html")
    assert "chains" not in data
    assert data["images"].shape == (3, 8, 8, 1)
    assert "no checkpoint" in capsys.readouterr().out
    assert visualize.run(tiny_config(FIELDS | {"sampling.seed": 1}), str(run)) == 0
    other = data_of(run / "samples" / "explorer-forward-2" / "explorer.html")
    assert (other["noise"] != data["noise"]).all()


def test_a_full_disk_is_one_line_with_advice(tiny_config, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "open_atomic", full)
    for file in ("manifest.json", "explorer.html"):
        with pytest.raises(FileAccessError, match=rf"cannot write \S+{file}: no space left on device; choose another `output`"):
            visualize.run(tiny_config(FIELDS), str(tmp_path / "run"), output=str(tmp_path / "out"))
        monkeypatch.setattr(manifest, "write", lambda *args, **options: None)


def test_large_images_fit(tiny_config, tmp_path):
    """Fewer real images, so that the page is small; 64x64 in color."""
    config = tiny_config(FIELDS | {"data.image_size": 64, "data.channels": 3, "visualize.page_images": 32})
    assert explorer_sizes.num_page_images(config) == 24
    config.data.image_size = 512
    assert explorer_sizes.num_page_images(config) == 1


def test_the_network_gets_what_images_and_chains_leave(tiny_config, monkeypatch):
    """Exact parameters if they fit, else rounded ones; the sizes are those of the page."""
    config = tiny_config(FIELDS)
    plain = explorer_sizes.network_bytes(config)
    assert 14_000_000 < plain < MAX_BYTES
    config.data.update(image_size=32, channels=3)
    assert explorer_sizes.network_bytes(config) == pytest.approx(plain - 2_000_000, abs=200_000)  # chains of 1.5 MB
    params = {"w": np.random.default_rng(0).standard_normal((100, 1000), np.float32)}
    exact, rounded = (browser_network.packed_bytes(each) for each in (params, browser_network.rounded(params)))
    assert 320_000 < rounded < 350_000 < 440_000 < exact < 470_000
    used = onnxruntime_web.RUNTIME_BYTES + explorer_sizes.GRAPH_BYTES
    for left, wanted in (
        (exact, (True, False)),
        (exact - 1, (True, True)),
        (rounded, (True, True)),
        (rounded - 1, (False, True)),
    ):
        monkeypatch.setattr(explorer_sizes, "network_bytes", lambda config, left=left: used + left)
        assert explorer_sizes.network_fits(config, params) == wanted
    monkeypatch.setattr(browser_network, "packed_bytes", lambda params: pytest.fail("compressed"))
    assert not explorer_sizes.network_fits(config, {"w": np.zeros(100_000_000, np.float32)})[0]


def data_with_model(config, images):
    """The data of a page with untrained parameters, and its size in bytes."""
    params = jax.tree.map(np.asarray, jax.jit(build.build_init(config))(jax.random.key(0)).params)
    noise = np.zeros(images.shape, np.float32)
    page = explorer_config.page_of(config, {"image": images}, noise, facts={"Data": "numbers"}, names=())
    runtime = explorer_network.find_runtime(config, params)
    explorer_config.add_model(page, config, params, {"image": images}, (), runtime)
    html = page.html()
    (text,) = re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text), len(html.encode())


UNCONDITIONAL = {"model.class_conditional": False, "model.label_dropout": 0.0}


def test_unconditional_floats_have_no_classes_and_no_bound(tiny_config):
    config = tiny_config(FIELDS | UNCONDITIONAL)
    config.data.update(dtype="float32", value_range=(0.0, 16.0), channels=5)
    config.visualize.update(num_steps=(2,), samplers=("ddim",))
    data, _ = data_with_model(config, np.linspace(0, 16, 2 * 64 * 5, dtype=np.float32).reshape(2, 8, 8, 5))
    assert data["images"]["dtype"] == "float32"
    assert data["images"]["shape"] == [2, 8, 8, 3]
    assert data["bound"] is None
    assert "floats" in data["noBound"]
    assert data["rows"] == {"kind": "", "list": [{"name": "", "flags": ""}]}
    assert "channel 0, 1, 2" in data["note"]


def test_zero_terminal_snr_with_all_terms(tiny_config):
    fields = {"diffusion.zero_terminal_snr": True, "diffusion.prediction": "v", "sampling.spacing": "trailing"}
    config = tiny_config(FIELDS | UNCONDITIONAL | fields | {"diffusion.num_timesteps": 20, "visualize.num_terms": 0})
    config.visualize.update(num_steps=(2,), samplers=("ddim",))
    data, _ = data_with_model(config, np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1))
    bound = data["bound"]
    assert bound["t"] == list(range(20))
    assert bound["total"] == pytest.approx(bound["prior"] + sum(bound["bits"]))


def test_large_color_images_and_a_large_network_fit(tiny_config, packages):
    """All budgets used up: a network of the largest size beside images of 64x64."""
    packages(lambda *args, **options: "x" * explorer_sizes.network_bytes(config))
    config = tiny_config(FIELDS | UNCONDITIONAL | {"data.image_size": 64, "data.channels": 3, "visualize.num_terms": 2})
    config.visualize.update(num_steps=(2, 3), page_images=32, network=True, num_seeds=9)
    images = np.zeros((explorer_sizes.num_page_images(config), 64, 64, 3), np.uint8)
    data, size = data_with_model(config, images)
    assert 12_500_000 < size < MAX_BYTES
    assert len(data["chains"]) == 4


def test_fields_of_figures_are_not_checked_and_few_timesteps_suffice(tiny_config):
    """Those of figures are not used here, nor those of the page in figures; there are fewer terms than the default."""
    figures = {"visualize.num_images": 0, "visualize.num_stages": 1, "visualize.animation": "mp4", "visualize.num_terms": 100}
    visualize_config.check_visualize(tiny_config(FIELDS | figures | {"diffusion.num_timesteps": 3, "sampling.num_steps": 2}))
    page = {"visualize.format": "png", "visualize.page_images": 0, "visualize.samplers": (), "visualize.num_terms": 1}
    visualize_config.check_visualize(tiny_config(FIELDS | page))


def test_errors_are_one_line(tiny_config, tmp_path):
    def refused(match, changes):
        with pytest.raises(UsageError, match=match) as caught:
            visualize.run(tiny_config(FIELDS | changes), str(tmp_path / "run"))
        assert "\n" not in str(caught.value)

    refused("visualize.format is 'pdf': choose one of png, html", {"visualize.format": "pdf"})
    refused(r"visualize\.page_images is 0: choose 1\.\.32", {"visualize.page_images": 0})
    refused(r"visualize\.num_seeds is 33: choose 1\.\.32", {"visualize.num_seeds": 33})
    refused(r"visualize\.num_terms is 1: choose 2\.\.100, or 0", {"visualize.num_terms": 1})
    refused(r"visualize\.num_terms is -1", {"visualize.num_terms": -1})
    refused(r"visualize\.samplers is empty", {"visualize.samplers": ()})
    refused(r"visualize\.samplers is 'dimm'", {"visualize.samplers": ("dimm",)})
    refused(r"visualize\.num_steps contains 0", {"visualize.num_steps": (0,)})
    refused(r"visualize\.num_steps holds 'x'", {"visualize.num_steps": ("x",)})
    refused(r"visualize\.onnxruntime_path: \S+no.tgz does not exist: `npm pack", {"visualize.onnxruntime_path": "no.tgz"})
    (tmp_path / "wrong.tgz").write_text("wrong")
    refused(
        r"visualize\.onnxruntime_path: \S+wrong.tgz is not onnxruntime-web .*`npm pack",
        {"visualize.onnxruntime_path": str(tmp_path / "wrong.tgz")},
    )
    refused(r"start_index is -1", {"visualize.start_index": -1})
