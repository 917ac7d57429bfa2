"""Networks with random parameters, exported to diffusers without training them."""

import jax
import numpy as np

from ddpm_jax import build
from ddpm_jax.cli import export
from ddpm_jax.configs import digits
from ddpm_jax.interop.weights_file import Weights

SMALL = {
    "data.image_size": 16,
    "data.channels": 3,
    "model.class_conditional": False,
    "model.label_dropout": 0.0,
    "model.unet.ch": 32,
    "model.unet.attn_resolutions": (8,),
    "sampling.num_steps": 10,
    "export.format": "diffusers",
}


def make_config(fields):
    """A small config with these fields."""
    config = digits.get_config()
    config.update_from_flattened_dict(SMALL | fields)
    return config


def random_params(config):
    """Parameters of about the size of trained ones."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(build.build_init(config), jax.random.key(0)).params

    def draw(leaf):
        return random.normal(scale=0.6 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))), size=leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


def export_folder(config, params, folder):
    """Export as --mode=export does; returns the folder of the pipeline."""
    export.check_export(config)
    weights = Weights(params=params, step=1, name="ema", sha256="0" * 64, config={}, class_names=(), source="")
    return export.export(config, weights, folder, "")
