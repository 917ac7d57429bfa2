"""The parts of the U-Net: time embedding, residual block, self-attention, down- and upsampling.

They follow Ho et al. 2020 (arXiv 2006.11239), appendix B. Precision: parameters, group
norms and the attention's softmax are float32; convolutions and matmuls run in `dtype`.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models import cpu_conv, cpu_norm

# Every kernel starts from the same law; a layer whose output is added to something else starts from
# zero, so that at the start each residual block is its shortcut and the network's output is 0.
default_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zero_init = nn.initializers.zeros_init()


def conv(features: int, *, stride: int = 1, init=default_init, dtype=jnp.float32, name=None, how=cpu_conv.convolve) -> nn.Conv:
    """A 3x3 'SAME' convolution; at stride 2 it pads (0, 1), as the published networks; PyTorch's padding=1 shifts the taps."""
    strides = (stride, stride)
    return nn.Conv(features, (3, 3), strides, "SAME", kernel_init=init, dtype=dtype, name=name, conv_general_dilated=how)


def dense(features: int, *, init=default_init, dtype=jnp.float32, name=None) -> nn.Dense:
    """A matmul over the last axis. On images it is a 1x1 convolution, at twice its speed on CPUs."""
    return nn.Dense(features, kernel_init=init, dtype=dtype, name=name, dot_general=_matmul)


def _matmul(x: jax.Array, kernel: jax.Array, _, **options) -> jax.Array:
    """x @ kernel with all pixels in one row: XLA for CPUs would turn a factor of the kernel's gradient around for more axes."""
    pixels = x.reshape(-1, x.shape[-1])
    return jax.lax.dot_general(pixels, kernel, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], kernel.shape[-1])


def timestep_embedding(t: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal embedding of time (Vaswani et al. 2017, section 3.5, in Ho's layout).

    Args:
      t: [B] times, int or float, in 0..1000. Computed in float32: bfloat16 cannot tell 995 from 996.
      dim: even width of the embedding.

    Returns:
      float32 [B, dim]: sines, then cosines, of t times dim/2 frequencies from 1 down to 1/10000.

    Raises:
      ValueError: dim is odd or below 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"the time embedding needs an even width of at least 4, not {dim}")
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class GroupNorm(nn.Module):
    """`flax.linen.GroupNorm`, with its parameters; on CPUs in a quicker form."""

    groups: int
    fast: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])

        def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            norm = nn.GroupNorm(self.groups, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=self.fast, parent=None)
            return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

        quick = functools.partial(cpu_norm.group_norm, groups=self.groups, epsilon=1e-6)
        return jax.lax.platform_dependent(x, scale, bias, cpu=quick if self.fast else plain, default=plain)


class Norm(nn.Module):
    """Group norm with float32 statistics; the result returns to `dtype`."""

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # E[x^2] - E[x]^2 is quick, but cancels where x was rounded to 8 bits of mantissa.
        return GroupNorm(self.groups, self.dtype == jnp.float32, name="group_norm")(x).astype(self.dtype)


class ResidualBlock(nn.Module):
    """norm, swish, conv, + embedding, norm, swish, dropout, conv, + shortcut (Ho's `resnet_block`).

    With `scale_shift` the embedding comes after the second norm, as norm(h) * (1 + scale) + shift (Dhariwal & Nichol
    2105.05233, section 3.1, "adaptive group normalization"; Improved DDPM's networks have it).
    """

    features: int
    groups: int
    dropout: float = 0.0
    scale_shift: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, deterministic: bool) -> jax.Array:
        """x [B, H, W, C], temb [B, E] -> [B, H, W, features]."""
        h = conv(self.features, dtype=self.dtype, name="conv1")(nn.swish(Norm(self.groups, self.dtype, name="norm1")(x)))
        width = 2 * self.features if self.scale_shift else self.features
        temb = dense(width, dtype=self.dtype, name="temb_proj")(nn.swish(temb))[:, None, None, :]
        norm = Norm(self.groups, self.dtype, name="norm2")
        if self.scale_shift:
            scale, shift = jnp.split(temb, 2, axis=-1)
            h = nn.swish(norm(h) * (1 + scale) + shift)
        else:
            h = nn.swish(norm(h + temb))
        h = nn.Dropout(self.dropout, name="dropout")(h, deterministic=deterministic)
        h = conv(self.features, init=zero_init, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """Attention over all H*W positions in heads of D = C / heads channels, scale D^-1/2; with one, Ho's `attn_block`."""

    groups: int
    heads: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        h = Norm(self.groups, self.dtype, name="norm")(x).reshape(batch, height * width, channels)
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
    """Halve height and width with a strided 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x.shape[-1], stride=2, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double height and width: each pixel becomes 2x2 of its kind, then a 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x.shape[-1], dtype=self.dtype, name="conv", how=cpu_conv.convolve_doubled)(x)
