"""Files of other programs, written without them."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from ddpm_jax.interop import diffusers_layout, openai_layout
from ddpm_jax.models.unet import UNet
from tests.interop.networks import shapes_of, their_shapes
from tests.interop.random_state import random_state
from tests.metrics.torch_pickles import legacy, state_of, zipped

# As google/ddpm-cifar10-32's config.json and scheduler_config.json, of a smaller network.
HO = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [8, 16],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 2,
    "out_channels": 3,
    "sample_size": 8,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
NETWORK = UNet(3, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), norm_groups=2)


def diffusers_state(network: UNet = NETWORK, *, channels: int = 3, old_names: bool = False) -> dict[str, np.ndarray]:
    shapes = shapes_of(network, 8, channels)
    state = random_state(their_shapes(diffusers_layout.table(network, shapes), shapes))
    if not old_names:
        return state
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in renamed.items():
        state = {name.replace(f".{new}.", f".{old}."): array for name, array in state.items()}
    return state


def openai_state(network: UNet, size: int = 8) -> dict[str, np.ndarray]:
    shapes = shapes_of(network, size)
    return random_state(their_shapes(openai_layout.table(network, shapes), shapes))


def write_weights(file: pathlib.Path, state: dict[str, np.ndarray], layout: str) -> pathlib.Path:
    """`layout`: safetensors, zip or legacy (the two of torch.save)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if layout == "safetensors":
        safetensors.numpy.save_file(state, file)
    else:
        write = zipped if layout == "zip" else legacy
        file.write_bytes(write(state_of(state), list(state.values())))
    return file


def write_pipeline(folder: pathlib.Path, *, network=HO, scheduler=SCHEDULER, state=None, flat: bool = False) -> pathlib.Path:
    """A diffusers pipeline; `flat`: all files in one folder, as the first versions wrote."""
    unet, schedulers = (folder, folder) if flat else (folder / "unet", folder / "scheduler")
    state = diffusers_state() if state is None else state
    write_weights(unet / "diffusion_pytorch_model.safetensors", state, "safetensors")
    (unet / "config.json").write_text(json.dumps(network))
    if scheduler is not None:
        schedulers.mkdir(exist_ok=True)
        (schedulers / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}))
    return folder
