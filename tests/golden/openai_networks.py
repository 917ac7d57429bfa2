"""Generates openai_networks.npz: outputs of improved-diffusion's and guided-diffusion's networks with random weights.

python tests/golden/openai_networks.py IMPROVED GUIDED [NAME ...]

IMPROVED and GUIDED are clones of github.com/openai/improved-diffusion (commit 1bc7bbb) and openai/guided-diffusion (commit
22e0df8), with torch 2.13.0 and numpy 2.4.6. tests/interop/random_state.py makes the weights and inputs. Names restrict what
is computed; other outputs in the file are kept. The full-size networks keep each eighth pixel.
"""

import importlib
import pathlib
import sys
import types

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "interop"))
from random_state import random_inputs, random_state  # noqa: E402

sys.modules["mpi4py"] = types.ModuleType("mpi4py")  # only their training needs it
improved_folder, guided_folder, *only = sys.argv[1:]
sys.path[:0] = [improved_folder, guided_folder]
improved = importlib.import_module("improved_diffusion.unet").UNetModel
guided = importlib.import_module("guided_diffusion.unet").UNetModel

TINY = {
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
    "num_heads": 4,
    "use_scale_shift_norm": True,
}
CIFAR10 = {
    "in_channels": 3,
    "model_channels": 128,
    "out_channels": 6,
    "num_res_blocks": 3,
    "attention_resolutions": (2, 4),
    "channel_mult": (1, 2, 2, 2),
    "num_heads": 4,
    "use_scale_shift_norm": True,
}
IMAGENET64 = CIFAR10 | {"attention_resolutions": (4, 8), "channel_mult": (1, 2, 3, 4)}
ADM = {
    "image_size": 64,
    "num_heads": 1,
    "resblock_updown": True,
    "num_classes": 1000,
    "model_channels": 192,
    "attention_resolutions": (2, 4, 8),
    "num_head_channels": 64,
    "use_new_attention_order": True,
}
NETWORKS = {  # name -> (class, options, size, stride of the pixels to keep)
    "improved_tiny": (improved, TINY | {"use_scale_shift_norm": False, "out_channels": 3}, 8, 1),
    "improved_tiny_classes": (improved, TINY | {"num_classes": 10}, 8, 1),
    "guided_tiny": (
        guided,
        TINY | {"image_size": 8, "resblock_updown": True, "num_classes": 10, "num_head_channels": 16},
        8,
        1,
    ),
    "guided_tiny_new_order": (guided, TINY | {"image_size": 8, "use_new_attention_order": True}, 8, 1),
    "improved_cifar10": (improved, CIFAR10, 32, 8),
    "improved_imagenet64": (improved, IMAGENET64, 64, 8),
    "guided_imagenet64": (guided, IMAGENET64 | ADM, 64, 8),
}

file = HERE / "openai_networks.npz"
golden = dict(np.load(file)) if only else {}
for name, (network, options, size, stride) in NETWORKS.items():
    if only and name not in only:
        continue
    model = network(**options).eval()
    state = random_state({key: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    x_t, t = random_inputs(size)
    labels = [torch.tensor([1, 7])] if options.get("num_classes") else []
    with torch.no_grad():
        output = model(torch.from_numpy(x_t).permute(0, 3, 1, 2), torch.from_numpy(t), *labels)
    golden[name] = output.permute(0, 2, 3, 1).numpy()[:, ::stride, ::stride]
    print(name, sum(value.size for value in state.values()), golden[name].shape, golden[name].std())
np.savez_compressed(file, **golden)
print(sys.version.split()[0], torch.__version__, np.__version__)
