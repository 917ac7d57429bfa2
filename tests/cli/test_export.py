"""--mode=export: files that other programs read."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from ddpm_jax import build
from ddpm_jax.cli import common, export, sample
from ddpm_jax.interop import weights_file
from ddpm_jax.interop.load_weights import load_weights
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import ConflictError, InvalidDataError, UnavailableError
from ddpm_jax.user_messages import UsageError
from tests import preloaded

TRAINED = {
    "model.class_conditional": True,
    "model.label_dropout": 0.1,
    "train.num_steps": 4,
    "optimizer.learning_rate": 0.02,
    "optimizer.warmup_steps": 0,
    "ema.extra_decays": (0.5,),
}
# Run with the README of the export, in another process that cannot import this package.
ISOLATED = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("ddpm_jax", "flax", "ml_collections", "optax"):
            raise ImportError(name + " was imported")
sys.meta_path.insert(0, Refuse())
exec(open("code.py").read())
import numpy as np
np.savez("found.npz", images=images, output=output, noise=noise)
"""


@pytest.fixture
def restored(trained, tiny_config):
    """(fields) -> the parameters and their step."""
    return lambda fields: common.restore_params(tiny_config(TRAINED | fields), trained, meshes.make_mesh())


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "safetensors-step_4"),
        ({"sampling.params": "raw", "sampling.checkpoint_step": 2}, "safetensors-step_2-raw"),
        ({"sampling.params": "decay_0.5"}, "safetensors-step_4-decay_0.5"),
    ],
)
def test_safetensors_hold_the_parameters_bit_by_bit(fields, name, trained, tiny_config, restored, capsys):
    assert export.run(tiny_config(TRAINED | fields), str(trained)) == 0
    file = trained / "exports" / name / "weights.safetensors"
    assert f"wrote weights.safetensors to {file.parent}" in capsys.readouterr().out
    params, step = restored(fields)
    arrays = safetensors.numpy.load_file(file)
    assert arrays["down0_block0/conv1/kernel"].shape == (3, 3, 8, 8)
    wanted = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert {path: array.tobytes() for path, array in arrays.items()} == {
        path: np.asarray(leaf).tobytes() for path, leaf in wanted.items()
    }
    weights = load_weights(file)
    jax.tree.map(np.testing.assert_array_equal, weights.params, params)
    assert (weights.step, weights.name) == (step, fields.get("sampling.params", "ema"))
    assert weights.class_names == tuple("0123456789")
    assert weights.config["model"]["unet"]["ch"] == 8
    with safetensors.safe_open(file, framework="numpy") as stored:
        assert stored.metadata()["format"] == "ddpm_jax weights 1"


def test_a_workdir_gives_the_same_weights_as_its_export(trained, tiny_config, tmp_path):
    assert export.run(tiny_config(TRAINED), str(trained), output=str(tmp_path)) == 0
    (file, workdir) = (load_weights(path)._replace(source="") for path in (tmp_path, trained))
    jax.tree.map(np.testing.assert_array_equal, file.params, workdir.params)
    assert file._replace(params={}) == workdir._replace(params={})


def test_results_are_never_overwritten_by_others(trained, tiny_config, tmp_path):
    assert export.run(tiny_config(TRAINED), str(trained), output=str(tmp_path)) == 0
    before = load_weights(tmp_path).sha256
    assert export.run(tiny_config(TRAINED), str(trained), output=str(tmp_path)) == 0  # the same again
    with pytest.raises(ConflictError, match='params was "ema", now "raw"'):
        export.run(tiny_config(TRAINED | {"sampling.params": "raw"}), str(trained), output=str(tmp_path))
    assert load_weights(tmp_path).sha256 == before
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ConflictError, match=r"already holds weights\.safetensors"):
        export.run(tiny_config(TRAINED), str(trained), output=str(tmp_path))


def test_another_scheduler_is_another_export(tiny_config, tmp_path):
    """config.diffusion may change without a training; it is in the files for diffusers."""
    config = tiny_config({"model.unet.time_scale": 0.1, "export.format": "diffusers"})
    shapes = jax.eval_shape(build.build_init(config), jax.random.key(0)).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    weights = weights_file.Weights(params, 4, "ema", weights_file.sha256_of(params), {}, (), "run")
    folder = export.export(config, weights, tmp_path, "")
    before = (folder / "scheduler" / "scheduler_config.json").read_bytes()
    assert export.export(config, weights, tmp_path, "") == folder
    config.diffusion.clip_denoised = False
    with pytest.raises(ConflictError, match=r"scheduler\.clip_sample was true, now false"):
        export.export(config, weights, tmp_path, str(folder))
    assert export.export(config, weights, tmp_path, "") == tmp_path / "diffusers-step_4-2"
    assert (folder / "scheduler" / "scheduler_config.json").read_bytes() == before


def test_damaged_files_are_refused(trained, tiny_config, tmp_path):
    assert export.run(tiny_config(TRAINED), str(trained), output=str(tmp_path)) == 0
    whole = (tmp_path / "weights.safetensors").read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    other = safetensors.numpy.save({"a": np.zeros(3, np.float32)})
    huge = (2**60).to_bytes(8, "little") + whole[8:]
    for data, words in (
        (whole[:-4], "is damaged"),
        (huge, "is damaged"),
        (b"", "is damaged"),
        (bytes(flipped), "has changed since it was written"),
        (other, "without the metadata of --mode=export"),
    ):
        (tmp_path / "weights.safetensors").write_bytes(data)
        with pytest.raises(InvalidDataError, match=words) as caught:
            load_weights(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_programs_run_without_this_package(trained, tiny_config, tmp_path):
    """The code in their README, in another process: the images of --mode=sample, and the network's output."""
    fields = TRAINED | {"sampling.guidance_scale": 2.0, "sampling.seed": 3, "diffusion.clip_denoised": True}
    assert export.run(tiny_config(fields | {"export.format": "stablehlo"}), str(trained), output=str(tmp_path)) == 0
    assert sample.run(tiny_config(fields), str(trained), output=str(tmp_path / "samples")) == 0
    with np.load(tmp_path / "samples" / "images.npz") as arrays:
        wanted = arrays["arr_0"]
    names = {"denoiser.bin", "sampler.bin", "programs.json", "README.md", "manifest.json", "samples"}
    assert {file.name for file in tmp_path.iterdir()} == names

    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in names - {"samples"}:
        shutil.copy(tmp_path / name, elsewhere)
    (elsewhere / "code.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", ISOLATED], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    with np.load(elsewhere / "found.npz") as found:
        images, output, noise = (found[name] for name in ("images", "output", "noise"))
    # Compiled otherwise than here, so that the last bits of sums differ, and a pixel near the middle of two levels may round
    # to the other.
    difference = np.abs(images.astype(int) - wanted.astype(int))
    assert images.shape == wanted.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert wanted.std() > 20
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01

    facts = json.loads((tmp_path / "programs.json").read_text())
    assert len(facts["alphas_cumprod"]) == 100
    assert facts["class_names"] == list("0123456789")
    config = tiny_config(fields)
    params, _ = common.restore_params(config, trained, meshes.make_mesh())
    labels, t = np.arange(5, dtype=np.int32), np.full(5, 99, np.int32)
    denoise = jax.jit(export.build.build_denoise_fn(config)(params, labels))
    expected = np.asarray(denoise(noise, t))
    assert np.abs(output - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"export.format": "onnx", "export.opset": 16}, r"config\.export\.opset is 16: choose from 17 to 23"),
        ({"export.format": "tflite"}, r"config\.export\.format is 'tflite': choose one of safetensors, .*stablehlo"),
        ({"export.platforms": ("gpu",)}, r"config\.export\.platforms contains 'gpu': choose any of cpu, cuda, rocm, tpu"),
        ({"export.platforms": ()}, r"config\.export\.platforms is empty: choose any of"),
        ({"export.platforms": ("cpu", "cpu")}, "name each platform once"),
    ],
)
def test_invalid_fields(fields, words, trained, tiny_config, tmp_path):
    with pytest.raises(UsageError, match=words):
        export.run(tiny_config(TRAINED | fields), str(trained), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_sub_command(trained, tmp_path):
    """The workdir with and without its flag, and the value of a flag in the next argument."""
    for words in (
        ["export", str(trained), "--format", "safetensors"],
        ["export", f"--workdir={trained}", "--format=safetensors"],
    ):
        target = tmp_path / str(len(words))
        done = preloaded.run([sys.executable, "main.py", *words, f"--output={target}"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert (target / weights_file.NAME).exists()


def test_onnx_without_its_packages_is_one_line(trained, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UnavailableError, match=r"jax2onnx cannot be imported .*pip install jax2onnx"):
        export.run(tiny_config(TRAINED | {"export.format": "onnx"}), str(trained), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
