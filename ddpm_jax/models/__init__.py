"""Networks by name. A network knows nothing of diffusion: it maps (x_t, time, cond) to an array [B, H, W, out_channels].

A network is a flax module with the field `out_channels`, and `num_classes` and `dtype` if it supports them; its other fields
are its options. `network.apply({"params": params}, x_t, time, cond, deterministic=...)` takes x_t float32 [B, H, W, C], time
[B] on the scale 0..1000 and cond, int32 [B] class labels or None, and returns float32 [B, H, W, out_channels]. With
deterministic=False it may use random numbers of the rng collection "dropout". Its only variables are "params". It may also have

    check(image_shape)   raises ValueError if its options are invalid, or do not fit images [H, W, C];
    stochastic           whether it uses random numbers in training; True if missing;
    min_channels         channels of its narrowest layers, from which compiler settings for CPUs are chosen;
    conv_fn, upsample_conv_fn, norm_fn   fields for the layer functions of a platform, as `unet.UNet` has.
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
    dtype: jnp.dtype = jnp.float32,
    layer_functions: Mapping[str, Callable] | None = None,
    **options: Any,
) -> nn.Module:
    """The network called `name`, not checked.

    Args:
      name: a key of NETWORKS, or module:Class for a network of the user's own.
      out_channels: channels of the output.
      num_classes: number of class labels; 0 for an unconditional network.
      dtype: dtype of convolutions and matmuls.
      layer_functions: field -> function, for networks with fields of these names.
      options: fields of the network.

    Raises:
      ValueError: unknown name or option; or there are classes, and the network does not support them.
    """
    parts = {"out_channels": out_channels, "num_classes": num_classes, "dtype": dtype, **(layer_functions or {})}
    required = ["out_channels", *(["num_classes"] if num_classes else [])]
    settings: dict[str, Any] = {"options": options, "parts": parts, "required": required, "ignored": ("parent", "name")}
    network = registry.make(name, NETWORKS, "network", **settings)
    if not isinstance(network, nn.Module):
        raise ValueError(f"the network {name} is a {type(network).__name__}: a flax module is required")
    return network
