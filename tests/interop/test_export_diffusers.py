"""The export to diffusers, without it: files, fields and refusals. tests/interop_real has the test with the real package."""

import importlib
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import export
from ddpm_jax.diffusion import schedules
from ddpm_jax.interop import array_table, diffusers_layout
from ddpm_jax.interop.load_weights import load_weights
from ddpm_jax.runtime.errors import ConflictError
from ddpm_jax.user_messages import UsageError
from tests.interop.exported import export_folder, make_config, random_params


def test_a_folder_holds_all_arrays_and_the_fields_of_the_config(tmp_path):
    config = make_config({"diffusion.schedule": "linear", "model.class_conditional": True, "model.label_dropout": 0.1})
    params = random_params(config)
    folder = export_folder(config, params, tmp_path)
    assert folder == tmp_path / "diffusers-step_1"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    unet_files = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert files == unet_files | {"model_index.json", "scheduler/scheduler_config.json", "manifest.json"}

    network = build.build_model(config, portable=True)
    shapes = {name: leaf.shape for name, leaf in array_table.flatten(params).items()}
    state = safetensors.numpy.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    back = array_table.unflatten(array_table.to_ours(diffusers_layout.table(network, shapes), shapes, state, "file"))
    jax.tree.map(np.testing.assert_array_equal, back, params)

    index, unet, scheduler = (
        json.loads((folder / name).read_text())
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    )
    assert index["_class_name"] == "DDPMPipeline"
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert unet["num_class_embeds"] == 11
    assert unet["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert unet["up_block_types"] == ["AttnUpBlock2D", "UpBlock2D"]
    assert (scheduler["beta_schedule"], scheduler["beta_start"], scheduler["beta_end"]) == ("linear", 1e-4, 0.02)
    assert (scheduler["prediction_type"], scheduler["variance_type"], scheduler["clip_sample"]) == (
        "epsilon",
        "fixed_large",
        True,
    )


@pytest.mark.parametrize(("given", "classes"), [(("config",), (10, 0.1)), ((), (11, 0.0))])
def test_the_last_label_means_no_class_only_for_a_config_with_label_dropout(tmp_path, given, classes):
    fields = {"model.class_conditional": True, "model.label_dropout": 0.1}
    config = make_config(fields)
    folder = export_folder(config, random_params(config), tmp_path)
    run = importlib.import_module("ddpm_jax.cli.import").run
    assert run(make_config(fields), str(tmp_path / "run"), source=str(folder), given=given) == 0
    imported = ConfigDict(load_weights(tmp_path / "run").config)
    assert (imported.data.num_classes, imported.model.label_dropout) == classes


def test_an_import_of_the_export_gives_the_same_run(tmp_path):
    fields = {"diffusion.prediction": "v", "diffusion.zero_terminal_snr": True, "sampling.spacing": "trailing"}
    config = make_config(fields | {"model.unet.scale_shift": True, "model.unet.head_channels": 16})
    params = random_params(config)
    folder = export_folder(config, params, tmp_path)
    run = importlib.import_module("ddpm_jax.cli.import").run
    assert run(make_config({"sampling.spacing": "trailing"}), str(tmp_path / "run"), source=str(folder), given=("config",)) == 0
    weights = load_weights(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, weights.params, params)
    network, imported = build.build_model(config), ConfigDict(weights.config)
    assert imported.diffusion.to_dict() == json.loads(config.diffusion.to_json())
    options = {name: getattr(network, name) for name in ("head_channels", "scale_shift", "mid_attention", "time_embedding")}
    assert {name: imported.model.unet[name] for name in options} == options
    assert (imported.data.image_size, imported.data.channels) == (16, 3)


def test_other_schedules_are_lists_of_betas(tmp_path):
    config = make_config({"diffusion.schedule": "sigmoid", "diffusion.zero_terminal_snr": True, "diffusion.prediction": "v"})
    config.sampling.spacing = "trailing"
    folder = export_folder(config, random_params(config), tmp_path)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    wanted = schedules.make_schedule("sigmoid", 1000, zero_terminal_snr=True).betas
    np.testing.assert_array_equal(scheduler["trained_betas"], wanted)
    assert wanted[-1] == 1
    assert scheduler["timestep_spacing"] == "trailing"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"diffusion.num_timesteps": 500}, r"config\.diffusion\.num_timesteps is 500"),
        ({"model.unet.resblock_updown": True}, r"config\.model\.unet\.resblock_updown is True"),
        (
            {"model.unet.ch_mult": (2, 2)},
            r"config\.model\.unet\.ch_mult is \(2, 2\): in diffusers' UNet2DModel the first level",
        ),
        (
            {"model.unet.num_heads": 2, "model.unet.attn_resolutions": (16,)},
            r"config\.model\.unet\.num_heads is 2, for attentions of 32 and 64 channels",
        ),
        ({"model.name": "tests.interop.test_export_diffusers:Other"}, r"config\.export\.format: the network is a Other"),
    ],
)
def test_what_their_classes_cannot_express_is_refused(fields, words):
    with pytest.raises(UsageError, match=words) as caught:
        export.check_export(make_config(fields))
    assert "\n" not in str(caught.value)


class Other(build.nn.Module):
    """A network of the user's own."""

    out_channels: int = 3

    def __call__(self, x_t, time, cond, *, deterministic=True):
        return x_t


def test_another_export_is_not_overwritten(tmp_path):
    config = make_config({})
    params = random_params(config)
    folder = export_folder(config, params, tmp_path)
    (folder / "manifest.json").unlink()
    assert export_folder(config, params, tmp_path) == tmp_path / "diffusers-step_1-2"
    with pytest.raises(ConflictError, match=r"already holds model_index\.json and unet and scheduler"):
        export.export(config, export.Weights(params, 1, "ema", "0", {}, (), ""), tmp_path, str(folder))
