"""Networks by name. A network knows nothing of diffusion: it maps (x_t, time, cond) to an array [B, H, W, out_channels].

A network is a flax module with the field `out_channels`, and `num_classes`, `cond_channels`, `cond_noise_level` and `dtype` if
it supports them; its other fields are its options. `network.apply({"params": params}, x_t, time, cond, deterministic=...)`
takes x_t float32 [B, H, W, C], time [B] on the scale 0..1000 and cond, and returns float32 [B, H, W, out_channels]. With
deterministic=False it may use random numbers of the rng collection "dropout". Its only variables are "params".

cond is None for an unconditional network, and int32 [B], class labels, for a class-conditional one. For one that is conditioned
on images (cond_channels above 0) it is a dictionary of "image", float32 [B, h, w, cond_channels] in [-1, 1], which may be
smaller than x_t, and, if num_classes is above 0, "label", and if cond_noise_level is True, "noise_level", float32 [B], the
standard deviation of the noise in the condition image. A network may also have

    check(image_shape)   raises ValueError if its options are invalid, or do not fit images [H, W, C];
    stochastic           whether it uses random numbers in training; True if missing;
    min_channels         channels of its narrowest layers, from which compiler settings for CPUs are chosen;
    conv_fn, upsample_conv_fn, norm_fn, block_class, dropout_class   fields for the layers of a platform, as `unet.UNet` has.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime import registry

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet}


def make_network(
    name: str,
    /,
    *,
    out_channels: int,
    num_classes: int = 0,
    cond_channels: int = 0,
    cond_noise_level: bool = False,
    dtype: jnp.dtype = jnp.float32,
    layer_functions: Mapping[str, Callable] | None = None,
    **options: Any,
) -> nn.Module:
    """The network called `name`, not checked.

    Args:
      name: a key of NETWORKS, or module:Class for a network of the user's own.
      out_channels: channels of the output.
      num_classes: number of class labels; 0 for a network without classes.
      cond_channels: channels of the condition image; 0 for a network without one.
      cond_noise_level: whether the network gets the noise level of the condition image.
      dtype: dtype of convolutions and matmuls.
      layer_functions: field -> function, for networks with fields of these names.
      options: fields of the network.

    Raises:
      ValueError: unknown name or option; or there are classes or condition images, and the network does not support them.
    """
    conditions = {"num_classes": num_classes, "cond_channels": cond_channels, "cond_noise_level": cond_noise_level}
    parts = {"out_channels": out_channels, **conditions, "dtype": dtype, **(layer_functions or {})}
    required = ["out_channels", *(name for name, value in conditions.items() if value)]
    settings: dict[str, Any] = {
        "options": options,
        "parts": parts,
        "required": required,
        "ignored": ("parent", "name", "block_class", "dropout_class"),
    }
    network = registry.make(name, NETWORKS, "network", **settings)
    if not isinstance(network, nn.Module):
        raise ValueError(f"the network {name} is a {type(network).__name__}: a flax module is required")
    return network
