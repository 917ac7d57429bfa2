"""Layers of the U-Net: time embedding, residual block, self-attention, down- and upsampling.

They follow Ho et al. 2020 (arXiv 2006.11239), appendix B; options that are not in the paper are those of OpenAI's
improved-diffusion and guided-diffusion. Precision: parameters, group norms and the attention's softmax are float32;
convolutions and matmuls run in `dtype`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.group_norm import group_norm

ConvFn = Callable[..., jax.Array]  # with the arguments of `jax.lax.conv_general_dilated`
NormFn = Callable[..., jax.Array]  # with the arguments of `group_norm`
TIME_EMBEDDINGS = ("ddpm", "iddpm")
PADDINGS = ("same", "symmetric")

# All kernels have the same initializer, except the last layer of each residual branch, which is zero: initially each
# residual block is its shortcut and the network's output is 0.
default_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zero_init = nn.initializers.zeros_init()


def conv(
    features: int,
    *,
    stride: int = 1,
    padding: str | tuple = "SAME",
    init=default_init,
    dtype=jnp.float32,
    name=None,
    conv_fn: ConvFn = jax.lax.conv_general_dilated,
    **options,
) -> nn.Conv:
    """A 3x3 convolution; 'SAME' pads (0, 1) at stride 2, as in Ho's networks, unlike PyTorch's padding=1."""
    options |= {"kernel_init": init, "dtype": dtype, "name": name, "conv_general_dilated": conv_fn}
    return nn.Conv(features, (3, 3), (stride, stride), padding, **options)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Nearest-neighbor upsampling by 2, x [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def average_pool(x: jax.Array) -> jax.Array:
    """The mean of each 2x2 square, x [B, H, W, C] -> [B, H / 2, W / 2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def upsample_conv(x: jax.Array, kernel: jax.Array, window_strides, padding, **options) -> jax.Array:
    """`upsample_nearest`, then `jax.lax.conv_general_dilated`: x [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    return jax.lax.conv_general_dilated(upsample_nearest(x), kernel, window_strides, padding, **options)


def dense(features: int, *, init=default_init, dtype=jnp.float32, name=None, **options) -> nn.Dense:
    """A matmul over the last axis. On images it equals a 1x1 convolution, but is twice as fast on CPUs."""
    return nn.Dense(features, kernel_init=init, dtype=dtype, name=name, dot_general=flat_matmul, **options)


def flat_matmul(x: jax.Array, kernel: jax.Array, _, **options) -> jax.Array:
    """x @ kernel with flattened pixels: with more axes, XLA for CPUs would transpose an operand of the kernel's gradient."""
    pixels = x.reshape(-1, x.shape[-1])
    return jax.lax.dot_general(pixels, kernel, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], kernel.shape[-1])


def timestep_embedding(t: jax.Array, dim: int, kind: str = "ddpm") -> jax.Array:
    """Sinusoidal embedding of time (Vaswani et al. 2017, section 3.5).

    Args:
      t: [B] times, int or float, in 0..1000. Computed in float32: in bfloat16, 995 equals 996.
      dim: even width of the embedding.
      kind: ddpm is Ho's: sines, then cosines, of dim/2 frequencies 10000^(-i / (dim/2 - 1)), from 1 to 1/10000; iddpm is that
        of improved-diffusion: cosines, then sines, of the frequencies 10000^(-i / (dim/2)), from 1 to almost 1/10000.

    Returns:
      float32 [B, dim].

    Raises:
      ValueError: dim is odd or below 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"the time embedding needs an even width of at least 4, not {dim}")
    half = dim // 2
    intervals = half - 1 if kind == "ddpm" else half
    frequencies = jnp.exp(-math.log(10000.0) / intervals * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves if kind == "ddpm" else waves[::-1], axis=-1)


class GroupNorm(nn.Module):
    """The parameters of `flax.linen.GroupNorm`, for any `norm_fn`."""

    groups: int
    norm_fn: NormFn = group_norm
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        return self.norm_fn(x, scale, bias, groups=self.groups, epsilon=self.epsilon)


class Norm(nn.Module):
    """Group norm with float32 statistics; the result is cast to `dtype`."""

    groups: int
    dtype: jnp.dtype = jnp.float32
    norm_fn: NormFn = group_norm
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return GroupNorm(self.groups, self.norm_fn, self.epsilon, name="group_norm")(x).astype(self.dtype)


class ResidualBlock(nn.Module):
    """norm, swish, conv, + embedding, norm, swish, dropout, conv, + shortcut (Ho's `resnet_block`).

    With `scale_shift` the embedding is applied after the second norm, as norm(h) * (1 + scale) + shift (Dhariwal & Nichol
    2105.05233, section 3.1, "adaptive group normalization"; also in Improved DDPM's networks).

    `resample` "down" or "up" halves or doubles height and width, of the shortcut by average pooling or nearest neighbors, and
    of the residual branch in the same way before its first convolution (BigGAN 1809.11096; guided-diffusion's
    resblock_updown).
    """

    features: int
    groups: int
    dropout: float = 0.0
    scale_shift: bool = False
    dtype: jnp.dtype = jnp.float32
    conv_fn: ConvFn = jax.lax.conv_general_dilated
    norm_fn: NormFn = group_norm
    epsilon: float = 1e-6
    resample: str = ""
    upsample_conv_fn: ConvFn = upsample_conv
    dropout_class: type[nn.Dropout] = nn.Dropout

    @staticmethod
    def prepare(temb: jax.Array, params: Mapping[str, Any]) -> Any:
        """What all blocks of a network get for temb: float [B, E] -> the same. `params`: of the network."""
        del params
        return temb

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, deterministic: bool) -> jax.Array:
        """x [B, H, W, C], temb [B, E] -> [B, H, W, features]; half or twice H and W with `resample`."""
        h = nn.swish(Norm(self.groups, self.dtype, self.norm_fn, self.epsilon, name="norm1")(x))
        if self.resample == "down":
            h, x = average_pool(h), average_pool(x)
        elif self.resample == "up":  # of h, `upsample_conv_fn` does it
            x = upsample_nearest(x)
        conv_fn = self.upsample_conv_fn if self.resample == "up" else self.conv_fn
        h = conv(self.features, dtype=self.dtype, name="conv1", conv_fn=conv_fn)(h)
        width = 2 * self.features if self.scale_shift else self.features
        temb = dense(width, dtype=self.dtype, name="temb_proj")(nn.swish(temb))[:, None, None, :]
        norm = Norm(self.groups, self.dtype, self.norm_fn, self.epsilon, name="norm2")
        if self.scale_shift:
            scale, shift = jnp.split(temb, 2, axis=-1)
            h = nn.swish(norm(h) * (1 + scale) + shift)
        else:
            h = nn.swish(norm(h + temb))
        h = self.dropout_class(self.dropout, name="dropout")(h, deterministic=deterministic)
        h = conv(self.features, init=zero_init, dtype=self.dtype, name="conv2", conv_fn=self.conv_fn)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """Attention over all H*W positions in heads of D = C / heads channels, scale D^-1/2; one head is Ho's `attn_block`."""

    groups: int
    heads: int = 1
    dtype: jnp.dtype = jnp.float32
    norm_fn: NormFn = group_norm
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        h = Norm(self.groups, self.dtype, self.norm_fn, self.epsilon, name="norm")(x).reshape(batch, height * width, channels)
        q = dense(channels, dtype=self.dtype, name="q")(h)
        k = dense(channels, dtype=self.dtype, name="k")(h)
        v = dense(channels, dtype=self.dtype, name="v")(h)
        if self.heads == 1:
            scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * channels**-0.5
            h = jnp.einsum("bqk,bkc->bqc", nn.softmax(scores, axis=-1).astype(self.dtype), v)
        else:
            q, k, v = (x.reshape(batch, height * width, self.heads, channels // self.heads) for x in (q, k, v))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
            h = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores, axis=-1).astype(self.dtype), v)
            h = h.reshape(batch, height * width, channels)
        h = dense(channels, init=zero_init, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution, centered on the odd pixels (padding same, Ho's) or the even ones
    (symmetric, as PyTorch's padding=1)."""

    dtype: jnp.dtype = jnp.float32
    conv_fn: ConvFn = jax.lax.conv_general_dilated
    padding: str = "same"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.padding == "same":
            return conv(x.shape[-1], stride=2, dtype=self.dtype, name="conv", conv_fn=self.conv_fn)(x)
        return conv(x.shape[-1], stride=2, padding=((1, 1), (1, 1)), dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double height and width by nearest-neighbor upsampling, then a 3x3 convolution; `upsample_conv_fn` does both."""

    dtype: jnp.dtype = jnp.float32
    upsample_conv_fn: ConvFn = upsample_conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x.shape[-1], dtype=self.dtype, name="conv", conv_fn=self.upsample_conv_fn)(x)
