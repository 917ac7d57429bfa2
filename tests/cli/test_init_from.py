"""--config.train.init_from: a run that starts from the weights of another, and frozen parameters."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build
from ddpm_jax.cli import export, train
from ddpm_jax.data.source import ArraySource
from ddpm_jax.interop import array_table, weights_file
from ddpm_jax.interop.load_weights import load_weights
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import CheckpointError, ConflictError, FileAccessError, InvalidArgumentError, InvalidDataError
from ddpm_jax.runtime.workdir import checkpoint_folder
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"
CLASSES = {"model.class_conditional": True, "model.label_dropout": 0.1}
# A large rate: the weights after 4 steps are far from all initial ones.
TRAINED = CLASSES | {"train.num_steps": 4, "train.max_to_keep": 9, "optimizer.learning_rate": 0.05, "optimizer.warmup_steps": 0}


def letters(split, names="abcdefghij"):
    """A data set with other classes than the digits."""
    images, labels = np.zeros((22, 8, 8, 1), np.uint8), np.arange(22) % len(names)
    return ArraySource(images, labels, num_classes=len(names), class_names=names, name="letters", split=split)


def eleven_letters(split):
    return letters(split, "abcdefghijk")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder of 12 images with 3 classes."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
        for number in range(4):
            Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def tune(trained, tiny_config):
    """(workdir, fields) -> train from the run of the module."""

    def run(workdir, fields=None):
        wanted = CLASSES | {"train.num_steps": 2, "train.init_from": str(trained)} | (fields or {})
        config = tiny_config(wanted)
        assert train.run(config, str(workdir)) == 0
        return config

    return run


@pytest.fixture
def unet(trained, tiny_config, tmp_path):
    """Exported weights of the smallest U-Net, zeros: its shapes are those that a config may not fit."""
    config = tiny_config(CLASSES | {"model.name": "unet"})
    shapes = jax.eval_shape(build.build_init(config), jax.random.key(0)).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    file = tmp_path / "unet" / weights_file.NAME
    file.parent.mkdir()
    exported = load_weights(trained)._replace(params=params, sha256=weights_file.sha256_of(params), config=config.to_dict())
    weights_file.write(file, exported)
    return file


def state_of(config, folder, step=None):
    """All fields of a checkpoint as NumPy arrays."""
    abstract = jax.eval_shape(build.build_init(config), jax.random.key(0))
    with CheckpointManager(checkpoint_folder(folder), max_to_keep=9, read_only=True) as checkpoints:
        fields, _ = checkpoints.restore(abstract.fields(), step)
    return jax.tree.map(np.asarray, fields)


def first_step_with_rate_0(fields=None):
    """Fields of a run whose checkpoint has the parameters that it started from."""
    return {"train.num_steps": 1, "optimizer.learning_rate": 1e-30, "ema.extra_decays": (0.5,)} | (fields or {})


def test_parameters_and_averages_start_from_the_ema_of_the_run(tune, trained, tiny_config, tmp_path, capfd):
    config = tune(tmp_path, first_step_with_rate_0())
    source = state_of(tiny_config(TRAINED), trained)
    found = state_of(config, tmp_path)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (source["params"], source["ema_params"])), strict=True))
    for name in ("params", "ema_params", "decay_0.5"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found[name], source["ema_params"])
    assert f"starting from {trained}, step 4, ema, sha256" in capfd.readouterr().err
    (line,) = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    sha256 = weights_file.sha256_of(source["ema_params"])
    assert line["init_from"] == {
        "path": str(trained),
        "step": 4,
        "params": "ema",
        "weights_sha256": sha256,
        "new": [],
        "left": [],
    }
    assert json.loads((tmp_path / "config.json").read_text())["train"]["init_from"] == str(trained)


def test_an_earlier_step(tune, trained, tiny_config, tmp_path):
    config = tune(tmp_path, first_step_with_rate_0({"train.init_from": f"{trained}@2"}))
    source = state_of(tiny_config(TRAINED), trained, 2)["ema_params"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), state_of(config, tmp_path)["params"], source
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"data.name": "image_folder", "data.num_classes": 3, "data.image_size": 16},
            "with initial values: class_embed/embedding",
        ),
        ({"model.class_conditional": False, "model.label_dropout": 0.0}, "not used: class_embed/embedding"),
        (  # as many rows as the source's ten classes and no class
            {"data.name": f"{__name__}:eleven_letters", "data.num_classes": 11, "model.label_dropout": 0.0},
            "with initial values: class_embed/embedding; other classes: 10 and no class there, 11 here",
        ),
        (
            {"data.name": f"{__name__}:letters"},
            "with initial values: class_embed/embedding; other classes: no longer there: 0",
        ),
        ({"diffusion.prediction": "v"}, 'changed: diffusion.prediction "eps" -> "v"'),
        (
            {"diffusion.variance": "learned_range", "diffusion.loss": "hybrid", "train.init_new": ("conv_out/*",)},
            "with initial values: conv_out/bias, conv_out/kernel",
        ),
    ],
)
def test_what_may_differ(fields, words, tune, trained, tiny_config, tmp_path, log_lines, images):
    config = tune(tmp_path, first_step_with_rate_0(fields | {"data.data_dir": str(images)}))
    (line,) = [line for line in log_lines if line.startswith("starting from")]
    assert words in line
    source = array_table.flatten(state_of(tiny_config(TRAINED), trained)["ema_params"])
    found = array_table.flatten(state_of(config, tmp_path)["params"])
    new = {path for path in found if path.split("/")[0] in words}
    assert (
        found.keys() - new == source.keys() - {"class_embed/embedding"} - new | (found.keys() & {"class_embed/embedding"}) - new
    )
    for path in found.keys() - new:
        np.testing.assert_allclose(found[path], source[path], rtol=1e-6, atol=1e-9)
    for path in new:
        assert found[path].shape != source[path].shape or not np.allclose(found[path], source[path], rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"model.name": "unet", "model.unet.ch": 16},
            r"conv_in/bias is float32\[8\] there and float32\[16\] here.*config\.model\.unet\.ch was 8 there, is 16",
        ),
        (
            {"model.name": "unet", "model.unet.num_res_blocks": 2},
            r"down0_block1/conv1/bias is missing there.*config\.model\.unet\.num_res_blocks was 1",
        ),
        (
            {"model.name": "unet", "model.unet.mid_attention": False},
            r"mid_attn/k/bias is float32\[8\] there and missing here.*mid_attention was true",
        ),
        (
            {"data.name": "image_folder", "data.num_classes": 3, "data.channels": 3},
            r"config\.data\.channels was 1 there, is 3 here",
        ),
        (
            {"diffusion.variance": "learned_range", "diffusion.loss": "vlb"},
            r"conv_out/bias .*diffusion\.variance was \"fixed_large\"",
        ),
        ({"train.init_new": ("conv_uot/*",)}, r"`init_new` contains 'conv_uot/\*', which matches no parameter"),
    ],
)
def test_weights_that_do_not_fit_are_refused(fields, words, tune, request, tmp_path, images):
    if "model.name" in fields:
        fields = fields | {"train.init_from": str(request.getfixturevalue("unet"))}
    with pytest.raises((UsageError, InvalidArgumentError), match=words) as caught:
        tune(tmp_path, fields | {"data.data_dir": str(images)})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("{trained}x", FileAccessError, "there is no such file or folder"),
        ("{trained}@3", CheckpointError, "no checkpoint of step 3 in .*: there are 2, 4"),
        ("{trained}/checkpoints", FileAccessError, "contains neither a run nor weights.safetensors"),
        ("{trained}/config.json", InvalidDataError, "config.json is damaged"),
        ("{trained}/config.json@2", InvalidArgumentError, "is a file, which holds one step: leave @2 out"),
    ],
)
def test_sources_that_cannot_be_read(path, error, words, tune, trained, tmp_path):
    with pytest.raises(error, match=words):
        tune(tmp_path, {"train.init_from": path.format(trained=trained)})


def test_a_resume_does_not_read_the_source(tune, trained, tmp_path):
    """Interrupted and resumed without the source, a run ends as one that was not."""
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    fields = {"train.init_from": str(source)}
    config = tune(tmp_path / "whole", fields | {"train.num_steps": 4})
    tune(tmp_path / "parts", fields | {"train.num_steps": 2})
    shutil.rmtree(source)
    tune(tmp_path / "parts", fields | {"train.num_steps": 4})
    whole, parts = (state_of(config, tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "history.jsonl").read_text().splitlines()]
    assert ["init_from" in line for line in lines] == [True, False]
    with pytest.raises(ConflictError, match=r"train\.init_from was \".*source\", now \"\""):
        tune(tmp_path / "parts", {"train.init_from": "", "train.num_steps": 5})


def test_an_exported_file_and_its_folder(tune, trained, tiny_config, tmp_path):
    """Raw parameters of an earlier step: those that only an export can name."""
    exported = tmp_path / "exported"
    config = tiny_config(TRAINED | {"sampling.params": "raw", "sampling.checkpoint_step": 2})
    assert export.run(config, str(trained), output=str(exported)) == 0
    source = state_of(tiny_config(TRAINED), trained, 2)["params"]
    for name in ("exported", "exported/weights.safetensors"):
        workdir = tmp_path / pathlib.Path(name).name.replace(".", "_")
        config = tune(workdir / "run", first_step_with_rate_0({"train.init_from": str(tmp_path / name)}))
        found = state_of(config, workdir / "run")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found["params"], source)
        record = json.loads((workdir / "run" / "history.jsonl").read_text())["init_from"]
        assert (record["step"], record["params"]) == (2, "raw")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parameters_keep_their_bits(optimizer, tune, trained, tiny_config, tmp_path):
    fields = {
        "train.frozen": ("conv_in/*", "temb_*", "class_embed/*"),
        "train.num_steps": 3,
        "optimizer.name": optimizer,
        "optimizer.learning_rate": 0.05,
        "optimizer.warmup_steps": 0,
        "ema.extra_decays": (0.5,),
        "ema.power_sigma_rel": (0.2,),
    }
    if optimizer == "adamw":
        fields["optimizer.adamw.weight_decay"] = 0.5
    config = tune(tmp_path, fields)
    source = array_table.flatten(state_of(tiny_config(TRAINED), trained)["ema_params"])
    state = state_of(config, tmp_path)
    for name in ("params", "ema_params", "decay_0.5", "power_0.2"):
        found = array_table.flatten(state[name])
        frozen = {path for path in found if path.startswith(("conv_in", "temb_", "class_embed"))}
        assert 0 < len(frozen) < len(found)
        for path in found:
            same = found[path].tobytes() == source[path].tobytes()
            assert same == (path in frozen), path
    shapes = {leaf.shape for leaf in jax.tree.leaves(state["opt_state"])}
    assert (11, 8) not in shapes  # the class embedding
    everything = state_of_optimizer(tiny_config(CLASSES | fields | {"train.frozen": ()}))
    assert len(jax.tree.leaves(state["opt_state"])) < len(jax.tree.leaves(everything))
    with pytest.raises(ConflictError, match=r"train\.frozen was \[.*\], now \[\] \(|train\.frozen was"):
        tune(tmp_path, fields | {"train.frozen": (), "train.num_steps": 4})


def state_of_optimizer(config):
    return jax.eval_shape(build.build_init(config), jax.random.key(0)).opt_state


def test_the_others_are_trained_as_if_the_frozen_were_constants(tune, tmp_path, metrics):
    """The norm of the gradient, by which it is clipped, is that of the trained parameters."""
    norms = {}
    for name, frozen in (("all", ()), ("some", ("temb_*",)), ("most", ("[!c]*", "class*", "conv_in/*"))):
        tune(tmp_path / name, {"train.frozen": frozen, "train.num_steps": 1, "train.log_every": 1})
        norms[name] = metrics(tmp_path / name)[0]["train/grad_norm"]
    assert norms["all"] > norms["some"] > norms["most"] > 0


@pytest.mark.parametrize(
    ("patterns", "words"),
    [(("dwon*",), "`frozen` contains 'dwon\\*', which matches no parameter"), (("*",), "matches every parameter")],
)
def test_patterns_that_make_no_sense(patterns, words, tune, tmp_path):
    with pytest.raises(InvalidArgumentError, match=words):
        tune(tmp_path, {"train.frozen": patterns})


def test_weights_that_are_not_finite_are_refused(tune, trained, tmp_path):
    weights = load_weights(trained)
    flat = array_table.flatten(weights.params)
    flat["conv_in/bias"] = np.full_like(flat["conv_in/bias"], np.nan)
    params = array_table.unflatten(flat)
    weights_file.write(tmp_path / "weights.safetensors", weights._replace(params=params, sha256=weights_file.sha256_of(params)))
    with pytest.raises(UsageError, match="conv_in/bias is not finite there"):
        tune(tmp_path / "run", {"train.init_from": str(tmp_path)})
