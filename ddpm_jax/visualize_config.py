"""Derived from config.visualize: its checks, and what the figures and the page show, real images and noise."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import (
    animation_config,
    build,
    config_validation,
    data_config,
    explorer_config,
    explorer_rows,
    explorer_sizes,
)
from ddpm_jax.data.source import Batch
from ddpm_jax.runtime import rng
from ddpm_jax.samplers.sampler import per_image_noise
from ddpm_jax.user_messages import UsageError

MAX_IMAGES = 16
STAGES = (5, 24)  # smallest and largest number; with fewer the labels do not fit
FORMATS = ("png", "html")


def check_visualize(config: ConfigDict) -> None:
    """Raise a UsageError that names the invalid field of config.visualize."""
    visualize = config.visualize
    config_validation.check_choice("visualize.format", visualize.format, FORMATS)
    if visualize.start_index < 0:
        raise UsageError(f"config.visualize.start_index is {visualize.start_index}: it must be 0 or more")
    if visualize.format == "html":
        explorer_config.check(config)
    else:
        _check_figures(config)


def _check_figures(config: ConfigDict) -> None:
    visualize, steps, (least, most) = config.visualize, config.diffusion.num_timesteps, STAGES
    if not 1 <= visualize.num_images <= MAX_IMAGES:
        raise UsageError(f"config.visualize.num_images is {visualize.num_images}: choose 1..{MAX_IMAGES}")
    if steps < least - 1:
        raise UsageError(f"config.diffusion.num_timesteps is {steps}: too few, since figures have at least {least} stages")
    if not least <= visualize.num_stages <= min(most, steps + 1):
        raise UsageError(f"config.visualize.num_stages is {visualize.num_stages}: choose {least}..{min(most, steps + 1)}")
    animation_config.check_animation(config)


def with_few_images(config: ConfigDict) -> ConfigDict:
    """The config with the number of images of config.visualize, and without decoding the whole data set."""
    config = config.copy_and_resolve_references()
    config.data.in_memory = "never"
    if config.visualize.format == "html":
        config.visualize.num_images = explorer_sizes.num_page_images(config)
    config.sampling.num_images = config.sampling.batch_size = config.visualize.num_images
    return config


def real_images(config: ConfigDict) -> Batch:
    """The images of the data set to show: "image", [N, H, W, C] in the data's type, with what else the set has of them.

    Raises:
      UsageError: the set has fewer images.
    """
    load = explorer_rows.load_page_source if config.visualize.format == "html" else data_config.load_source
    source = load(config)
    first, number = config.visualize.start_index, config.visualize.num_images
    if first + number > len(source):
        raise UsageError(
            f"{source.name} holds {len(source):,} images: config.visualize.start_index={first} with "
            f"config.visualize.num_images={number} needs more"
        )
    return source.batch(np.arange(first, first + number))


def starting_noise(config: ConfigDict) -> jax.Array:
    """ε of each row, float32 [N, H, W, C], from which its reverse chain starts."""
    root = rng.purpose_key(config.sampling.seed, "sample")
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, jnp.arange(config.visualize.num_images))
    return per_image_noise(keys, 0, build.image_shape(config))
