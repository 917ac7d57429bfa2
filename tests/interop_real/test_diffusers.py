"""Networks and DDIM of the installed diffusers, with random weights, in both directions."""

import importlib
import json

import diffusers
import numpy as np
import pytest
import torch

from ddpm_jax.configs import defaults
from ddpm_jax.diffusion import schedules, spacings
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.interop import array_table, diffusers_config, diffusers_layout
from ddpm_jax.interop.weights_source import open_weights
from ddpm_jax.models.unet import UNet
from ddpm_jax.samplers.ddim import ddim
from tests.interop.networks import output, relative_error, shapes_of
from tests.interop.random_state import random_inputs, random_state

HO = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def blocks(*attention):
    """down_block_types and up_block_types of levels with or without attention."""
    down = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in attention]
    up = ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in attention[::-1]]
    return {"down_block_types": down, "up_block_types": up}


NETWORKS = {  # name -> options, size of the input, parameters
    "ddpm-cifar10-32": (
        HO | blocks(False, True, False, False) | {"block_out_channels": [128, 256, 256, 256], "sample_size": 32},
        35_746_307,
    ),
    # At its size of 256 a forward takes minutes. The weights have their full size; the attention is at the same level.
    "ddpm-celebahq-256": (
        HO
        | blocks(False, False, False, False, True, False)
        | {"block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 32},
        113_673_219,
    ),
    "butterflies tutorial": (
        blocks(False, False, False, True) | {"block_out_channels": [64, 128, 128, 256], "sample_size": 32},
        None,
    ),
    "tiny, all options": (
        blocks(True, False)
        | {
            "block_out_channels": [32, 64],
            "sample_size": 8,
            "layers_per_block": 3,
            "in_channels": 1,
            "out_channels": 2,
            "num_class_embeds": 7,
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 8,
            "norm_num_groups": 8,
            "norm_eps": 1e-3,
        },
        None,
    ),
    "tiny, no attention in the middle": (
        HO | blocks(False, False) | {"block_out_channels": [32, 32], "sample_size": 8, "add_attention": False},
        None,
    ),
}


def their_output(model, x_t, t, labels):
    with torch.no_grad():
        labels = None if labels is None else torch.tensor(labels)
        return model(torch.from_numpy(x_t).permute(0, 3, 1, 2), torch.from_numpy(t), labels).sample.permute(0, 2, 3, 1).numpy()


def unet_of(fields):
    options = {name.removeprefix("model.unet."): value for name, value in fields.items() if name.startswith("model.unet.")}
    classes = fields["data.num_classes"] if fields["model.class_conditional"] else 0
    return UNet(out_channels=fields.pop("outputs"), num_classes=classes, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_equal_in_both_directions(name):
    options, count = NETWORKS[name]
    model = diffusers.UNet2DModel(**options).eval()
    their_shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = random_state(their_shapes)
    assert count in (None, sum(value.size for value in state.values()))
    fields = diffusers_config.network_fields(json.loads(model.to_json_string()), "config")
    network = unet_of(fields | {"outputs": model.config.out_channels})
    size, channels = fields["data.image_size"], fields["data.channels"]
    network.check((size, size, channels))
    shapes = shapes_of(network, size, channels)
    table = diffusers_layout.table(network, shapes)
    x_t, t = random_inputs(size, channels=channels)
    labels = [1, 5] if network.num_classes else None

    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    params = array_table.to_ours(table, shapes, dict(state), name)
    found = output(network, params, x_t, t, labels)
    assert relative_error(found, their_output(model, x_t, t, labels)) < 1e-5

    ours = random_state(shapes, seed=5)  # and weights that began here
    model.load_state_dict({key: torch.from_numpy(value) for key, value in array_table.to_theirs(table, ours)})
    assert relative_error(output(network, ours, x_t, t, labels), their_output(model, x_t, t, labels)) < 1e-5


@pytest.mark.parametrize("safe", [True, False])
def test_saved_pipelines_are_read(tmp_path, safe):
    """save_pretrained of the pipeline, as safetensors and as torch.save's .bin."""
    options = HO | blocks(False, True) | {"block_out_channels": [32, 64], "sample_size": 8, "layers_per_block": 1}
    model = diffusers.UNet2DModel(**options)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path / "pipeline", safe_serialization=safe)
    weights = open_weights(tmp_path / "pipeline")
    assert weights.file.suffix == (".safetensors" if safe else ".bin")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    assert all(np.array_equal(np.asarray(weights.state[name]), state[name]) for name in state)
    fields = diffusers_config.diffusion_fields(weights.scheduler, "scheduler")
    assert (fields["diffusion.schedule"], fields["diffusion.prediction"]) == ("cosine", "v")
    schedule = schedules.make_schedule("cosine", 1000)
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), schedule.alphas_cumprod, rtol=1e-4, atol=1e-7)
    config = defaults.get_config()
    with config.unlocked():
        import_mode = importlib.import_module("ddpm_jax.cli.import")
        assert import_mode.run(config, str(tmp_path / "run"), source=str(tmp_path / "pipeline"), given=()) == 0


@pytest.mark.parametrize("clips", [False, True])
def test_a_trajectory_of_ddim_is_equal(clips):
    """Ten steps from one noise, each within 1e-4. Where x_0 is clipped, ours computes eps of the clipped x_0, as
    improved-diffusion does; diffusers does so with use_clipped_model_output."""
    options = HO | blocks(False, True) | {"block_out_channels": [32, 64], "sample_size": 8, "layers_per_block": 1}
    model = diffusers.UNet2DModel(**options).eval()
    state = random_state({key: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    scheduler = diffusers.DDIMScheduler(clip_sample=clips)
    scheduler.set_timesteps(10)
    x_t, _ = random_inputs(8)
    x, theirs = torch.from_numpy(x_t).permute(0, 3, 1, 2), []
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(model(x, step).sample, step, x, use_clipped_model_output=clips).prev_sample
            theirs.append(x.permute(0, 2, 3, 1).numpy())

    fields = diffusers_config.network_fields(json.loads(model.to_json_string()), "config")
    network = unet_of(fields | {"outputs": 3})
    shapes = shapes_of(network, 8)
    params = array_table.to_ours(diffusers_layout.table(network, shapes), shapes, dict(state), "file")
    found = our_trajectory(network, params, x_t, clips)
    for a, b in zip(found, theirs, strict=True):
        assert relative_error(a, b) < 1e-4


def our_trajectory(network, params, x_t, clips):
    import jax
    import jax.numpy as jnp

    chain = schedules.make_schedule("linear", 1000)
    chain = schedules.respace(chain, spacings.spaced_timesteps(1000, 10, "leading", schedule=chain))
    means = Parameterization("eps", "fixed_large", clips, time_scale=1.0)
    sampler = ddim(chain, means.denoise)
    variables = {"params": array_table.unflatten(params)}

    def denoise_fn(x, t):
        return network.apply(variables, x, means.network_time(t))

    @jax.jit
    def step(x, index):
        return sampler.step(denoise_fn, x, (), index, jax.random.split(jax.random.key(0), len(x)))[0]

    x, states = jnp.asarray(x_t), []
    for index in reversed(range(10)):
        x = step(x, index)
        states.append(np.asarray(x))
    return states
