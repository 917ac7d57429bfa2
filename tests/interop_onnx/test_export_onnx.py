"""--format=onnx: networks and samplers in ONNX Runtime are those of JAX."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from ddpm_jax import build, condition_config
from ddpm_jax.interop import export_onnx, onnx_comparison, onnx_model, onnxruntime_web
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError
from ddpm_jax.samplers import sampler as chain
from tests.interop.exported import export_folder, make_config, random_params
from tests.small_network import Small


class Float32Only(Small):
    """A network that refuses to compute in bfloat16."""

    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        assert self.dtype == jnp.float32


SMALL = {  # traced and converted in a tenth of the time of a U-Net
    "data.image_size": 4,
    "data.channels": 1,
    "model.name": "tests.small_network:Small",
    "sampling.num_steps": 4,
    "export.format": "onnx",
}
CLASSES = {"data.num_classes": 10, "model.class_conditional": True, "model.label_dropout": 0.1}
UNET = SMALL | {"data.image_size": 8, "model.name": "unet", "model.unet.ch": 8, "model.unet.attn_resolutions": (4,)}
OPTIONS = {
    "model.unet.num_heads": 2,
    "model.unet.scale_shift": True,
    "model.unet.resblock_updown": True,
    "model.unet.time_embedding": "iddpm",
    "diffusion.variance": "learned_range",
    "diffusion.loss": "hybrid",
}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(CLASSES, id="classes"),
        pytest.param(OPTIONS, id="learned variance, heads, resampling blocks"),
        pytest.param({"data.image_size": (8, 12), "data.channels": 3}, id="unconditional, not square"),
    ],
)
def test_networks_are_those_of_jax(fields):
    config = make_config(UNET | fields)
    params, (height, width, channels) = random_params(config), build.image_shape(config)
    make_denoise_fn = build.build_denoise_fn(config, portable=True)
    cond = condition_config.example_cond(config, None)
    function = export_onnx.network_function(make_denoise_fn, params, cond)
    model = export_onnx.network_model(make_denoise_fn, params, image_shape=(height, width, channels), cond=cond)
    doubled = channels * (1 + ("diffusion.variance" in fields))
    assert model.outputs[0] == ("output", "float32", ("b", height, width, doubled))
    onnx.checker.check_model(onnx.load_from_string(model.data), full_check=True)
    random = np.random.default_rng(1)
    x_t = random.standard_normal((5, height, width, channels)).astype(np.float32)
    inputs = [x_t, np.array([0, 1, 10, 500, 999], np.int32)]
    inputs += [np.array([0, 9, 10, 3, 3], np.int32)] if cond is not None else []
    examples = [inputs, [array[:1] for array in inputs]]
    assert 0 < onnx_comparison.compare(model, function, examples)["output"].difference < 1e-5
    assert [tensor.name for tensor in model.inputs] == ["x_t", "t", "labels"][: len(inputs)]


SAMPLERS = {
    "ancestral": CLASSES | {"sampling.guidance_scale": 2.0, "sampling.guidance_interval": (0.2, 0.8)},
    "ddim": {"sampling.ddim.eta": 0.0},
    "dpmpp_2m_sde": {"export.opset": 17},
    "unipc": CLASSES,
    "heun": {"export.opset": 23, "data.dtype": "uint16", "data.value_range": (0, 1000)},
    "ode": {},
}
CONDITION = {
    "data.condition": "downsample",
    "data.downsample.factor": 2,
    "data.condition_noise": 0.5,
    "sampling.condition_noise": 0.25,
    "sampling.guidance_scale": 2.0,
    "sampling.sampler": "ddim",
}


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_the_code_of_the_readme_samples_as_jax(sampler_name, tmp_path, monkeypatch, capsys):
    """From the same noise, images agree to a level of 255 after all steps."""
    config = make_config(SMALL | SAMPLERS[sampler_name] | {"sampling.sampler": sampler_name, "sampling.num_images": 3})
    params = random_params(config)
    folder = export_folder(config, params, tmp_path)
    facts, text = json.loads((folder / "programs.json").read_text()), (folder / "README.md").read_text()
    differences = facts["largest_differences"]
    assert differences["denoiser.onnx"]["output"]["difference"] < 1e-5
    assert differences["sampler_step.onnx"]["x_prev"]["difference"] < 1e-5
    assert "between ONNX Runtime and JAX, relative, and their bounds: denoiser.onnx output" in capsys.readouterr().out
    for name in ("denoiser.onnx", "sampler_step.onnx"):
        model = onnx.load(folder / name)
        assert model.opset_import[0].version == config.export.opset
        inputs = model.graph.input
        assert [entry.name for entry in inputs] == [entry["name"] for entry in facts[name]["inputs"]]
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    assert found["output"].shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(found["images"], build.pixel_format(config).to_data(found["x"]))
    assert facts["null_label"] == (10 if config.model.class_conditional else None)

    sampler, random = build.build_sampler(config), np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((3, 4, 4, 1), dtype=np.float32))
    labels = jnp.arange(3) % 10 if config.model.class_conditional else None
    network = build.build_guided_denoise_fn(config, portable=True)(params, labels)

    @jax.jit
    def step(x, carry, index, noise):
        return sampler.step(network, x, carry, index, chain.GivenNoise(noise))

    carry, noisy = sampler.init_carry(x), '"noise"' in text
    for index in reversed(range(sampler.num_steps)):
        noise = random.standard_normal(x.shape, dtype=np.float32) if noisy else np.zeros(x.shape, np.float32)
        x, _, carry = step(x, carry, index, noise)
    assert noisy == (sampler_name in ("ancestral", "dpmpp_2m_sde"))
    assert float(jnp.abs(x).max()) > 0.1
    np.testing.assert_allclose(found["x"], x, atol=1e-3)


def test_the_code_of_the_docs_runs(tmp_path, monkeypatch, repository):
    """The section on ONNX, with a network of the shape of the digits that trains in bfloat16."""
    name = {"model.name": "tests.interop_onnx.test_export_onnx:Float32Only", "model.dtype": "bfloat16"}
    config = make_config(SMALL | CLASSES | name | {"data.image_size": 8, "sampling.sampler": "ddim"})
    monkeypatch.chdir(tmp_path)
    config.model.dtype = "float32"  # to draw the parameters
    params = random_params(config)
    config.model.dtype = "bfloat16"
    export_folder(config, params, tmp_path).rename("digits-onnx")
    monkeypatch.setattr(onnxruntime_web, "runtime_assets", lambda: onnxruntime_web.RuntimeAssets("", b""))
    section = (repository / "docs" / "exporting.md").read_text().split("## onnx\n")[1].split("\n## ")[0]
    sampling, page = (block.split("```")[0] for block in section.split("```python\n")[1:])
    found: dict = {}
    exec(sampling, found)
    assert found["images"].shape == (10, 8, 8, 1)
    assert len(np.unique(found["images"])) > 10
    exec(page, found)
    tensors = [(tensor.name, tensor.dtype, tensor.shape) for tensor in found["model"].inputs]
    assert tensors == [("x_t", "float32", ("b", 8, 8, 1)), ("t", "int32", ("b",)), ("labels", "int32", ("b",))]
    assert found["model"].data == (tmp_path / "digits-onnx" / "denoiser.onnx").read_bytes()
    assert 'id="onnx-denoiser"' in (tmp_path / "page.html").read_text()


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"text")
    with pytest.raises(InvalidDataError, match=r"a\.onnx is not an ONNX model: "):
        onnx_model.read_model(tmp_path / "a.onnx")
    with pytest.raises(FileAccessError, match=r"cannot read .*b\.onnx: no such file"):
        onnx_model.read_model(tmp_path / "b.onnx")


@pytest.mark.parametrize(
    "classes", [pytest.param(CLASSES, id="classes"), pytest.param({"model.label_dropout": 0.1}, id="none")]
)
def test_condition_images_are_inputs(classes, tmp_path, monkeypatch):
    """Both models take them, and the code of the README makes them; guidance replaces them by the null image."""
    config = make_config(SMALL | classes | CONDITION | {"sampling.num_images": 3})
    params = random_params(config)
    folder = export_folder(config, params, tmp_path)
    facts, text = json.loads((folder / "programs.json").read_text()), (folder / "README.md").read_text()
    inputs = {entry["name"]: (entry["dtype"], entry["shape"]) for entry in facts["denoiser.onnx"]["inputs"]}
    assert inputs["condition"] == ("float32", ["b", 2, 2, 1])
    assert inputs["noise_level"] == ("float32", ["b"])
    assert ("labels" in inputs) == ("model.class_conditional" in classes)
    assert facts["condition"] == {"name": "downsample", "shape": [2, 2, 1], "max_noise": 0.5}
    assert facts["null_label"] == (10 if "labels" in inputs else None)
    monkeypatch.chdir(folder)
    found: dict = {}
    small = np.random.default_rng(1).integers(0, 256, (3, 2, 2, 1), np.uint8)
    code = text.split("```python\n")[1].split("```")[0]
    assert "small = np.full((n, 2, 2, 1), 128, np.uint8)" in code
    exec(code.replace("np.full((n, 2, 2, 1), 128, np.uint8)", f"np.array({small.tolist()}, np.uint8)"), found)

    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((3, 4, 4, 1), dtype=np.float32))
    noise = random.standard_normal((3, 2, 2, 1), dtype=np.float32)
    image = np.sqrt(1 - 0.25**2) * (small.astype(np.float64) / 127.5 - 1) + 0.25 * noise
    cond = {"image": jnp.asarray(image, jnp.float32), "noise_level": jnp.full(3, 0.25)}
    cond |= {"label": jnp.arange(3)} if "labels" in inputs else {}
    np.testing.assert_allclose(found["condition"], cond["image"], atol=1e-6)

    def denoised(cond, x=x):
        network, sampler = build.build_guided_denoise_fn(config, portable=True)(params, cond), build.build_sampler(config)
        for index in reversed(range(sampler.num_steps)):
            x, _, _ = sampler.step(network, x, (), jnp.int32(index), chain.GivenNoise(x))
        return x

    wanted = denoised(cond)
    np.testing.assert_allclose(found["x"], wanted, atol=1e-4)
    for key in cond:
        assert np.abs(found["x"] - denoised(cond | {key: jnp.zeros_like(cond[key])})).max() > 1e-3
