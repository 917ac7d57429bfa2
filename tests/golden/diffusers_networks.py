"""Generates diffusers_networks.npz: outputs of diffusers' UNet2DModel with random weights, and its names and DDIM trajectories.

python tests/golden/diffusers_networks.py     # diffusers 0.42.1, torch 2.13.0, numpy 2.4.6

tests/interop/random_state.py makes the weights and inputs. For each network: its config and output, and the names and shapes
of its arrays. `tiny_ho` also has ten steps of DDIM and the scheduler's config.
"""

import json
import pathlib
import sys

import diffusers
import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "interop"))
from random_state import random_inputs, random_state  # noqa: E402

TINY = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
NETWORKS = {
    "tiny_ho": TINY
    | {
        "norm_eps": 1e-6,
        "norm_num_groups": 8,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
    },
    "tiny_defaults": TINY | {"num_class_embeds": 10, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
}

golden = {}
for name, options in NETWORKS.items():
    model = diffusers.UNet2DModel(**options).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in random_state(shapes).items()})
    x_t, t = random_inputs(8)
    x = torch.from_numpy(x_t).permute(0, 3, 1, 2)
    labels = torch.tensor([1, 7]) if "num_class_embeds" in options else None
    with torch.no_grad():
        golden[name] = model(x, torch.from_numpy(t), labels).sample.permute(0, 2, 3, 1).numpy()
    golden[f"{name}_config"] = json.dumps(dict(model.config))
    golden[f"{name}_shapes"] = json.dumps(shapes)
    if name == "tiny_ho":
        scheduler = diffusers.DDIMScheduler()
        scheduler.set_timesteps(10)
        steps = []
        with torch.no_grad():
            for step in scheduler.timesteps:
                x = scheduler.step(model(x, step).sample, step, x).prev_sample
                steps.append(x.permute(0, 2, 3, 1).numpy())
        golden["ddim"], golden["ddim_config"] = np.stack(steps), json.dumps(dict(scheduler.config))
    print(name, len(shapes), golden[name].std())
np.savez_compressed(HERE / "diffusers_networks.npz", **golden)
print(sys.version.split()[0], diffusers.__version__, torch.__version__, np.__version__)
