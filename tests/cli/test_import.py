"""--mode=import: a workdir of weights from diffusers and OpenAI's programs, which samples and trains as any other."""

import importlib
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import common, sample, train
from ddpm_jax.configs import defaults
from ddpm_jax.interop import array_table, openai_layout
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import ConflictError, InvalidDataError
from ddpm_jax.user_messages import UsageError, UserError
from tests import preloaded
from tests.interop.files import HO, NETWORK, SCHEDULER, diffusers_state, openai_state, write_pipeline, write_weights
from tests.interop.networks import shapes_of

import_mode = importlib.import_module("ddpm_jax.cli.import")
OPENAI = UNet(6, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_heads=2, scale_shift=True)


def import_weights(folder, source, *given, config=None, **options):
    config = defaults.get_config() if config is None else config
    with config.unlocked():
        code = import_mode.run(config, str(folder), source=str(source), given=given, **options)
    assert code == 0
    return config


def workdir_config(folder):
    config = defaults.get_config()
    config.update(ConfigDict(json.loads((folder / "config.json").read_text())))
    return config


def restored(folder, name="ema"):
    config = workdir_config(folder)
    config.sampling.params = name
    params, step = common.restore_params(config, folder, meshes.make_mesh())
    return {key: np.asarray(value) for key, value in array_table.flatten(params).items()}, step


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("diffusers") / "pipeline")


@pytest.fixture(scope="module")
def imported(tmp_path_factory, pipeline):
    folder = tmp_path_factory.mktemp("imported") / "run"
    import_weights(folder, pipeline)
    return folder


def test_the_workdir_has_the_config_the_weights_and_a_record(imported, pipeline):
    config = workdir_config(imported)
    unet = config.model.unet
    assert (unet.ch, tuple(unet.ch_mult), unet.norm_groups, unet.norm_epsilon) == (8, (1, 2), 2, 1e-6)
    assert (config.data.image_size, config.diffusion.variance, config.sampling.sampler) == (8, "fixed_large", "ancestral")
    state = diffusers_state()
    for name in ("ema", "raw"):
        params, step = restored(imported, name)
        assert step == 0
        np.testing.assert_array_equal(params["conv_in/kernel"], state["conv_in.weight"].transpose(2, 3, 1, 0))
        assert sum(value.size for value in params.values()) == sum(value.size for value in state.values())
    (line,) = [json.loads(line) for line in (imported / "history.jsonl").read_text().splitlines()]
    assert line["step"] == 0
    assert line["imported"]["layout"] == "diffusers"
    assert line["imported"]["path"] == str(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    assert len(line["imported"]["sha256"]) == 64


def test_it_samples(imported, capsys):
    config = workdir_config(imported)
    config.sampling.sampler, config.sampling.num_steps, config.sampling.num_images = "ddim", 2, 2
    assert sample.run(config, str(imported), output=str(imported / "out")) == 0
    assert np.load(imported / "out" / "images.npz")["arr_0"].shape == (2, 8, 8, 3)


def test_it_trains_further(tmp_path):
    """On the data set of the flags at the import; with one level, which compiles in half the time."""
    state = diffusers_state(NETWORK.clone(out_channels=1, ch_mult=(1,), attn_resolutions=()), channels=1)
    level = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    pipeline = write_pipeline(tmp_path / "gray", network=HO | level | {"in_channels": 1, "out_channels": 1}, state=state)
    config = defaults.get_config()
    config.data.name, config.data.random_flip = "digits", False
    folder = tmp_path / "run"
    import_weights(folder, pipeline, "config.data.name", config=config)
    before, _ = restored(folder, "raw")
    config = workdir_config(folder)
    config.train.update({"num_steps": 2, "batch_size": 8, "sample_every": 0, "trackers": ()})
    config.optimizer.warmup_steps = 0
    config.optimizer.learning_rate = 1e-5
    assert train.run(config, str(folder)) == 0
    after, step = restored(folder, "raw")
    assert step == 2
    distance = max(np.abs(after[name] - before[name]).max() for name in before)
    assert 0 < distance < 1e-4  # Adam's steps, from the imported weights
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert ["imported" in line for line in lines] == [True, False]


@pytest.mark.parametrize("new_order", [False, True])
def test_weights_of_openai_with_a_config(tmp_path, new_order):
    config = defaults.get_config()
    unet = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "num_heads": 2, "scale_shift": True}
    config.model.unet.update(unet)
    config.data.image_size = 8
    config.diffusion.variance, config.diffusion.loss = "learned_range", "hybrid"
    state = openai_state(OPENAI)
    file = write_weights(tmp_path / "ema_0.9999_500000.pt", state, "legacy")
    import_weights(tmp_path / "run", file, "config", config=config, new_attention_order=new_order)
    params, _ = restored(tmp_path / "run")
    shapes = shapes_of(OPENAI, 8)
    table = openai_layout.table(OPENAI, shapes, new_attention_order=new_order)
    wanted = array_table.to_ours(table, shapes, dict(state), "file")
    assert all(np.array_equal(params[name], wanted[name]) for name in wanted)


def test_a_file_without_config_needs_one(tmp_path):
    file = write_weights(tmp_path / "model.pt", openai_state(OPENAI), "zip")
    with pytest.raises(UsageError, match="has no config of its network: give --config"):
        import_weights(tmp_path / "run", file)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_rejected_and_leave_nothing(tmp_path):
    file = write_weights(tmp_path / "model.pt", openai_state(OPENAI), "zip")
    with pytest.raises(InvalidDataError, match="arrays are missing: "):
        import_weights(tmp_path / "run", file, "config")
    assert not (tmp_path / "run").exists()


def test_a_learned_variance(tmp_path):
    network = UNet(6, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), norm_groups=2)
    state = diffusers_state(network)
    learned = HO | {"out_channels": 6}
    source = write_pipeline(
        tmp_path / "a", network=learned, state=state, scheduler=SCHEDULER | {"variance_type": "learned_range"}
    )
    config = import_weights(tmp_path / "run", source)
    assert (config.diffusion.variance, config.diffusion.loss) == ("learned_range", "hybrid")
    source = write_pipeline(tmp_path / "b", network=learned, state=state)
    with pytest.raises(UserError, match="out_channels is 6, which does not match the variance fixed_large"):
        import_weights(tmp_path / "other", source)


def test_flags_against_the_config_of_the_weights(tmp_path, pipeline):
    config = defaults.get_config()
    config.model.unet.ch = 16
    with pytest.raises(UsageError, match=r"--config.model.unet.ch=16 differs from the config of the weights, 8: leave it out"):
        import_weights(tmp_path / "run", pipeline, "config.model.unet.ch", config=config)
    config = defaults.get_config()
    config.sampling.sampler = "unipc"
    import_weights(tmp_path / "run", pipeline, "config.sampling.sampler", config=config)
    assert workdir_config(tmp_path / "run").sampling.sampler == "unipc"


def test_a_workdir_with_a_run_is_not_overwritten(imported, pipeline):
    before = (imported / "config.json").read_bytes()
    with pytest.raises(UserError, match="already contains a run: choose another --workdir"):
        import_weights(imported, pipeline)
    assert (imported / "config.json").read_bytes() == before


def test_an_import_that_was_interrupted_can_be_repeated(tmp_path, pipeline, monkeypatch):
    class Interrupted(Exception):
        pass

    def fail(*arguments, **options):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(import_mode.CheckpointManager, "save", fail)
        with pytest.raises(Interrupted):
            import_weights(tmp_path / "run", pipeline)
    with pytest.raises(ConflictError, match=r"an import of .* did not complete: repeat it"):
        train.run(workdir_config(tmp_path / "run"), str(tmp_path / "run"))  # it would start from random weights
    import_weights(tmp_path / "run", pipeline)
    assert restored(tmp_path / "run")[1] == 0


def test_initial_optimizer_states_equal_those_of_a_new_run():
    params = {"a": {"kernel": np.ones((3, 3, 2, 4), np.float32), "bias": np.ones(4, np.float32)}}
    params = jax.tree.map(jax.numpy.asarray, params)
    for name in ("adam", "adamw", "lion", "muon", "sgd"):
        config = defaults.get_config()
        config.optimizer.name = name
        optimizer = build.build_optimizer(config)
        found, wanted = import_mode.initial_opt_state(optimizer, params), optimizer.init(params)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_commands(tmp_path, pipeline, command):
    """The sub-command and --mode=import, in processes of their own."""
    forms = (["import", f"--from={pipeline}"], ["--mode", "import", "--from", str(pipeline)])
    for number, flags in enumerate(forms):
        workdir = tmp_path / f"run{number}"
        python, program, *rest = command(workdir, config=None, tiny=False)
        done = preloaded.run([python, program, *flags, *rest], tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"imported 45,259 parameters of {pipeline}" in done.stdout
        assert (workdir / "checkpoints" / "0").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=import"], "--from is missing"),
        (["--mode=import", "--from=nowhere"], "nowhere: there is no such file or folder"),
        (["--mode=import", "--from=nowhere", "--output=x"], "--mode=import has no --output"),
        (["--config=digits", "--mode=sample", "--from=x"], "--from is for --mode=import or prepare only"),
        (["--config=digits", "--new_attention_order"], "--new_attention_order is for --mode=import only"),
    ],
)
def test_wrong_flags_end_in_one_line(tmp_path, main, flags, message):
    done = main(tmp_path / "run", *flags, config=None, tiny=False)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
