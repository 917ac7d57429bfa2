"""diffusers' configs in terms of ours."""

import json
import pathlib

import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.interop.diffusers_config import DEFAULTS, diffusion_fields, network_fields
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime.errors import InvalidDataError
from tests.interop.files import HO, NETWORK, SCHEDULER

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "diffusers_networks.npz"


def network_of(fields):
    options = {name.removeprefix("model.unet."): value for name, value in fields.items() if name.startswith("model.unet.")}
    return UNet(3, **options)


def test_hos_network():
    fields = network_fields(HO, "config.json")
    assert network_of(fields) == NETWORK.clone(dropout=0.0)
    assert {name: fields[name] for name in ("data.image_size", "data.channels", "model.class_conditional")} == {
        "data.image_size": 8,
        "data.channels": 3,
        "model.class_conditional": False,
    }


def test_a_missing_field_has_the_default_of_diffusers():
    """Those of the golden config, which diffusers has completed, are the same as without it."""
    saved = json.loads(str(np.load(GOLDEN)["tiny_defaults_config"]))
    required = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "sample_size")
    short = {name: saved[name] for name in (*required, "num_class_embeds", "resnet_time_scale_shift", "attn_norm_num_groups")}
    fields = network_fields(short, "config.json")
    assert fields == network_fields(saved, "config.json")
    assert {name for name in saved if not name.startswith("_")} == set(DEFAULTS)
    assert (fields["data.num_classes"], fields["model.unet.head_channels"]) == (10, 8)
    assert fields["model.unet.time_embedding"] == "iddpm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "the network is 'UNet2DConditionModel': only UNet2DModel"),
        ({"encoder_hid_dim": 3}, "the field 'encoder_hid_dim' is unknown"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', which this program does not have: only silu or swish"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"time_embedding_dim": 7}, "time_embedding_dim is 7, which this program does not have: only null or 32"),
        ({"freq_shift": 0}, "flip_sin_to_cos is False and freq_shift is 0"),
        ({"flip_sin_to_cos": [1]}, "flip_sin_to_cos is [1]"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor is 1.4"),
        ({"downsample_padding": 2}, "downsample_padding is 2"),
        ({"downsample_type": "resnet"}, "downsample_type is 'resnet'"),
        ({"upsample_type": "resnet"}, "upsample_type is 'resnet'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups is None"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups is 4"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "down_block_types is 'SkipDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types must have one entry for each of the 2 levels"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "attention at the same levels"),
        ({"block_out_channels": [8, 12]}, "multiples of the first one are required"),
        ({"block_out_channels": [8, 10**9]}, "block_out_channels is [8, 1000000000]"),
        ({"block_out_channels": "many"}, "block_out_channels is 'many'"),
        ({"layers_per_block": 10**9}, "layers_per_block is 1000000000: an integer from 1 to 32"),
        ({"in_channels": 4}, "in_channels is 4"),
        ({"out_channels": 5}, "out_channels is 5, which this program does not have: only 3 or 6"),
        ({"sample_size": [8, 16]}, "sample_size is [8, 16]: square images"),
        ({"sample_size": None}, "sample_size is null: give the size of the images as `image_size=PIXELS`"),
        ({"norm_eps": "small"}, "norm_eps is 'small': a number is required"),
        ({"norm_eps": float("nan")}, "norm_eps is nan: a number is required"),
        ({"norm_num_groups": True}, "norm_num_groups is True"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0"),
        ({"num_class_embeds": -1}, "num_class_embeds is -1"),
    ],
)
def test_what_our_network_cannot_express_is_named(changes, message):
    with pytest.raises(InvalidDataError) as error:
        network_fields(HO | changes, "config.json")
    assert str(error.value).startswith("config.json: ")
    assert message in str(error.value)


def test_ho_schedule():
    assert diffusion_fields(SCHEDULER, "scheduler_config.json") == {
        "diffusion.num_timesteps": 1000,
        "model.unet.time_scale": 1.0,
        "diffusion.schedule": "linear",
        "diffusion.linear.beta_start": 1e-4,
        "diffusion.linear.beta_end": 0.02,
        "diffusion.prediction": "eps",
        "diffusion.clip_denoised": True,
        "diffusion.zero_terminal_snr": False,
        "diffusion.variance": "fixed_large",
        "sampling.spacing": "leading",
        "sampling.sampler": "ancestral",
        "sampling.num_steps": 1000,
    }


@pytest.mark.parametrize("steps", [100, 1000, 4000])
def test_betas_equal_those_of_the_scheduler(steps):
    """diffusers' linear betas are the same for any number of steps, ours are for 1,000."""
    fields = diffusion_fields(SCHEDULER | {"num_train_timesteps": steps}, "")
    ends = {name: fields[f"diffusion.linear.{name}"] for name in ("beta_start", "beta_end")}
    assert fields["model.unet.time_scale"] * 1000 / steps == 1  # t itself, in spite of the scale 0..1000
    schedule = schedules.make_schedule("linear", steps, **ends)
    np.testing.assert_allclose(schedule.betas, np.linspace(1e-4, 0.02, steps), rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "scaled_linear"}, "beta_schedule is 'scaled_linear'"),
        ({"beta_schedule": ["linear"]}, "beta_schedule is ['linear']"),
        ({"variance_type": "learned"}, "variance_type is 'learned'"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"trained_betas": [0.1]}, "trained_betas is [0.1]"),
        ({"clip_sample_range": 2.0}, "clip_sample_range is 2.0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000"),
        ({"beta_end": "0.02"}, "beta_end is '0.02': a number is required"),
    ],
)
def test_what_our_schedules_cannot_express_is_named(changes, message):
    with pytest.raises(InvalidDataError) as error:
        diffusion_fields(SCHEDULER | changes, "scheduler_config.json")
    assert message in str(error.value)


def test_options_of_sampling_that_are_ignored_are_logged(caplog):
    diffusion_fields(SCHEDULER | {"steps_offset": 1}, "file")
    assert "file: steps_offset=1 is ignored" in caplog.text
