"""A run as a folder of Hugging Face's diffusers: `DDPMPipeline.from_pretrained` loads the network and the noise schedule.

    model_index.json
    unet/config.json, unet/diffusion_pytorch_model.safetensors      `UNet2DModel`
    scheduler/scheduler_config.json                                 `DDPMScheduler`; DDIMScheduler.from_config reads it too

What their classes cannot express is refused: the functions here raise an error that names the option.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.interop import array_table, diffusers_layout
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import registry, storage
from ddpm_jax.runtime.atomic import open_atomic, write_atomically
from ddpm_jax.runtime.errors import InvalidArgumentError

VERSION = "0.42.1"  # of diffusers, with which the files are tested
FILES = ("model_index.json", "unet", "scheduler")
_PREDICTIONS = {"eps": "epsilon", "x_start": "sample", "v": "v_prediction"}
_EMBEDDINGS = {"ddpm": {"flip_sin_to_cos": False, "freq_shift": 1}, "iddpm": {"flip_sin_to_cos": True, "freq_shift": 0}}
_PADDINGS = {"same": 0, "symmetric": 1}


def unet_config(network: object, image_shape: Sequence[int]) -> dict[str, Any]:
    """The fields of `UNet2DModel` for our network.

    Args:
      network: the U-Net.
      image_shape: (H, W, C).

    Raises:
      InvalidArgumentError: it is another network, or has an option that UNet2DModel lacks.
    """
    if not isinstance(network, UNet):
        raise InvalidArgumentError(
            f"the network is a {type(network).__name__}: diffusers' UNet2DModel is the network unet only"
        )
    if network.resblock_updown:
        raise InvalidArgumentError("`resblock_updown` is True: the export to diffusers is without it")
    if network.ch_mult[0] != 1:
        raise InvalidArgumentError(
            f"`ch_mult` is {tuple(network.ch_mult)}: in diffusers' UNet2DModel the first level has the width of the first "
            "convolution, so the first factor must be 1"
        )
    size, channels = image_shape[0], image_shape[2]
    levels = range(len(network.ch_mult))
    attends = [size // 2**level in network.attn_resolutions for level in levels]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": size,
        "in_channels": channels,
        "out_channels": network.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        **_EMBEDDINGS[network.time_embedding],
        "down_block_types": ["AttnDownBlock2D" if attends[level] else "DownBlock2D" for level in levels],
        "up_block_types": ["AttnUpBlock2D" if attends[level] else "UpBlock2D" for level in reversed(levels)],
        "block_out_channels": [network.ch * factor for factor in network.ch_mult],
        "layers_per_block": network.num_res_blocks,
        "mid_block_scale_factor": 1,
        "add_attention": network.mid_attention,
        "downsample_padding": _PADDINGS[network.downsample_padding],
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": network.dropout,
        "act_fn": "silu",
        "attention_head_dim": _head_channels(network, attends),
        "norm_num_groups": network.groups,
        "attn_norm_num_groups": network.groups,
        "norm_eps": network.norm_epsilon,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "class_embed_type": None,
        "num_class_embeds": network.num_classes or None,
    }


def _head_channels(network: UNet, attends: Sequence[bool]) -> int | None:
    """Channels of each head: one number for the whole network, or None for one head of any width."""
    if network.head_channels:
        return network.head_channels
    if network.num_heads == 1:
        return None
    widths = {network.ch * factor for factor, attention in zip(network.ch_mult, attends, strict=True) if attention}
    widths |= {network.ch * network.ch_mult[-1]} if network.mid_attention else set()
    if len(widths) > 1:
        raise InvalidArgumentError(
            f"`num_heads` is {network.num_heads}, for attentions of {' and '.join(map(str, sorted(widths)))} channels: "
            "diffusers' UNet2DModel has one number of channels per head, as networks with head_channels have"
        )
    return widths.pop() // network.num_heads if widths else None


def named_schedule(name: str, options: Mapping[str, Any], num_timesteps: int) -> dict[str, Any]:
    """The fields of `DDPMScheduler` for a schedule that it has too; {} for others, whose betas are listed.

    Args:
      name: key of `schedules.SCHEDULES`, or module:function.
      options: its options.
      num_timesteps: T.
    """
    if name == "linear":  # our ends are for 1,000 steps, theirs for all
        ends = {end: options[end] * 1000 / num_timesteps for end in ("beta_start", "beta_end")}
        return {"beta_schedule": "linear", **ends}
    if name == "cosine" and dict(options) == registry.defaults(schedules.cosine_betas):
        return {"beta_schedule": "squaredcos_cap_v2"}
    return {}


def scheduler_config(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    named: Mapping[str, Any],
    *,
    rescaled: bool,
    time_scale: float,
) -> dict[str, Any]:
    """The fields of `DDPMScheduler` for our noise schedule and parameterization.

    Args:
      schedule: the training chain.
      parameterization: what the output of the network means.
      named: `named_schedule` of the chain.
      rescaled: whether it was rescaled to zero terminal SNR.
      time_scale: of the U-Net.

    Raises:
      InvalidArgumentError: the U-Net is not given t itself.
    """
    if parameterization.time_scale * time_scale != 1:
        raise InvalidArgumentError(
            f"`num_timesteps` is {schedule.num_timesteps}: the network takes {parameterization.time_scale * time_scale:g} t, "
            f"that of diffusers takes t, so it must be {1000 * time_scale:g}"
        )
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.num_timesteps,
        **named,
        "trained_betas": None if named else schedule.betas.tolist(),
        "rescale_betas_zero_snr": bool(named) and rescaled,
        "variance_type": parameterization.variance,
        "clip_sample": parameterization.clip_denoised,
        "clip_sample_range": 1.0,
        "prediction_type": _PREDICTIONS[parameterization.prediction],
        "thresholding": False,
        "timestep_spacing": "trailing" if schedule.has_zero_terminal_snr else "leading",
        "steps_offset": 0,
    }


def write(
    folder: pathlib.Path, network: UNet, params: Mapping[str, Any], unet: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> None:
    """Write the folder: the scheduler first and the configs after the weights, so that no part is taken for a whole.

    Args:
      folder: an existing folder.
      network: the U-Net.
      params: its parameters, nested.
      unet: of `unet_config`.
      scheduler: of `scheduler_config`.

    Raises:
      OSError: a file cannot be written.
    """
    flat = array_table.flatten(params)
    table = diffusers_layout.table(network, {name: tuple(np.shape(leaf)) for name, leaf in flat.items()})
    arrays = dict(array_table.to_theirs(table, flat))
    for name in ("unet", "scheduler"):
        storage.make_folder(folder / name, parents=False)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    with open_atomic(folder / "unet" / "diffusion_pytorch_model.safetensors") as out:
        out.write(safetensors.numpy.save(arrays, {"format": "pt"}))  # diffusers requires this metadata
    _write_json(folder / "unet" / "config.json", unet)
    classes = {name: ["diffusers", each["_class_name"]] for name, each in (("scheduler", scheduler), ("unet", unet))}
    _write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION, **classes})


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    write_atomically(file, json.dumps(content, indent=2) + "\n")
