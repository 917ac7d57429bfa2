"""Layers for training on GPUs and TPUs. Parameters are those of the layers in `layers.py`, and results differ by rounding only.

A GPU takes a few microseconds to launch a kernel, whatever its size, and every kernel reads and writes memory. XLA fuses
elementwise operations into the reduction or the convolution beside them, but does not know that

- the gradient of a bias in front of a norm follows from the sums of the norm's own gradient (`group_norm.norm_swish`);
- the projections of the time embedding have the same input in all blocks, so that one matrix product computes them;
- the bias of a shortcut and that of the convolution to which it is added are one bias.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ddpm_jax.models import tpu_upsampling
from ddpm_jax.models.group_norm import group_norm, norm_swish, training_norm
from ddpm_jax.models.hashed_dropout import HashedDropout
from ddpm_jax.models.layers import Norm, ResidualBlock, average_pool, conv, dense, upsample_conv, upsample_nearest


class GpuResidualBlock(ResidualBlock):
    """`ResidualBlock` with fewer kernels on GPUs; its norms are `norm_swish`, whatever `norm_fn` is."""

    @staticmethod
    def prepare(temb: jax.Array, params: Mapping[str, Any]) -> Any:
        """What is added in front of the second norm of each block, for all blocks together.

        Args:
          temb: [B, E].
          params: of the network; those of blocks are missing in initialization.

        Returns:
          Name of the block -> its projection of the time embedding, float32 [B, width], and the bias of its first
          convolution, float32 [B, features] with equal rows. In initialization, temb.
        """
        blocks = {name: part for name, part in params.items() if "temb_proj" in part}
        if not blocks:
            return temb

        def all_of(layer: str, kind: str) -> tuple[jax.Array, list[int]]:
            arrays = [block[layer][kind] for block in blocks.values()]
            return jnp.concatenate(arrays, axis=-1), list(itertools.accumulate(array.shape[-1] for array in arrays))[:-1]

        kernel, ends = all_of("temb_proj", "kernel")
        layer = functools.partial(dense, kernel.shape[1], dtype=temb.dtype)
        projected = _apply(layer, "temb_proj", {"kernel": kernel}, nn.swish(temb)).astype(jnp.float32)
        projections = jnp.split(projected + all_of("temb_proj", "bias")[0][None], ends, axis=-1)
        bias, ends = all_of("conv1", "bias")
        biases = jnp.split(jnp.broadcast_to(bias, (temb.shape[0], bias.size)), ends, axis=-1)
        return dict(zip(blocks, zip(projections, biases, strict=True), strict=True))

    @nn.compact
    def __call__(self, x: jax.Array, temb: Any, deterministic: bool) -> jax.Array:
        """As `ResidualBlock`; temb is the result of `prepare`."""
        if self.is_initializing():
            return super().__call__(x, temb, deterministic)
        params = self.variables["params"]

        def norm_and_swish(name: str, x: jax.Array, **arrays: Any) -> jax.Array:
            norm_fn = functools.partial(norm_swish, **arrays)
            return Norm(self.groups, self.dtype, norm_fn, self.epsilon, name=name)(x)

        def layer(make: Callable[..., nn.Module], name: str, x: jax.Array, **bias: jax.Array) -> jax.Array:
            kernel = params[name]["kernel"]
            return _apply(functools.partial(make, self.features, dtype=self.dtype), name, {"kernel": kernel, **bias}, x)

        x = _stored(x)
        h = norm_and_swish("norm1", x)
        if self.resample == "down":
            h, x = average_pool(h), average_pool(x)
        elif self.resample == "up":
            x = upsample_nearest(x)
        conv_fn = self.upsample_conv_fn if self.resample == "up" else self.conv_fn
        h = layer(functools.partial(conv, conv_fn=conv_fn), "conv1", h)
        temb, offset = temb[self.name]
        if self.scale_shift:
            scale, shift = jnp.split(temb, 2, axis=-1)
            h = norm_and_swish("norm2", h, offset=offset, scale_by=1 + scale, shift=shift)
        else:
            h = norm_and_swish("norm2", h, offset=offset + temb)
        h = self.dropout_class(self.dropout, name="dropout")(h, deterministic=deterministic)
        bias = params["conv2"]["bias"]
        if x.shape[-1] != self.features:
            x, bias = layer(dense, "shortcut", x), bias + params["shortcut"]["bias"]
        return x + layer(functools.partial(conv, conv_fn=self.conv_fn), "conv2", h, bias=bias)


def _apply(make: Callable[..., nn.Module], name: str, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """The layer that `make` makes, with these parameters."""
    return cast(jax.Array, make(name=name, use_bias="bias" in params, parent=None).apply({"params": params}, x))


@jax.custom_vjp
def _stored(x: jax.Array) -> jax.Array:
    """x. Without the barrier, XLA computes it twice if it is a concatenation; one for its gradient would prevent fusions."""
    return jax.lax.optimization_barrier(x)


_stored.defvjp(lambda x: (_stored(x), None), lambda _, gradient: (gradient,))


def for_training(network: nn.Module, mesh: Mesh) -> nn.Module:
    """The network with the layers for training on the devices of a mesh, which are those of `network` on CPUs.

    Args:
      network: any. If it has these fields with these values, norm_fn=group_norm becomes `training_norm` on GPUs, and
        block_class=ResidualBlock with it `GpuResidualBlock`; dropout_class=Dropout becomes `HashedDropout` on TPUs, and
        upsample_conv_fn=upsample_conv that of `tpu_upsampling`.
      mesh: the mesh of the training step.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "gpu" and getattr(network, "norm_fn", None) is group_norm:
        network = network.clone(norm_fn=training_norm)
        if getattr(network, "block_class", None) is ResidualBlock:
            network = network.clone(block_class=GpuResidualBlock)
    if platform == "tpu" and getattr(network, "dropout_class", None) is nn.Dropout:
        network = network.clone(dropout_class=HashedDropout)
    if platform == "tpu" and getattr(network, "upsample_conv_fn", None) is upsample_conv:
        network = network.clone(upsample_conv_fn=tpu_upsampling.upsample_conv)
    return network
