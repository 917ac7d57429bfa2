"""The U-Net of Ho et al. 2020 (arXiv 2006.11239, appendix B): PixelCNN++'s architecture with time embedding and attention.

What any network must provide, and the list of networks to which a new one is added, are in `models/__init__.py`.

                       x_t [B, H, W, C]                                   output [B, H, W, out_channels]
                            |                                                      |
    level 0    conv - [block] x n -------------- skips ------------- [block] x (n+1) - norm, swish, conv
                            | downsample                                  | upsample
    level 1           [block] x n -------------- skips ------------- [block] x (n+1)
                            | downsample                                  | upsample
      ...                  ...                                           ...
                            +------- block, attention, block -------------+

A block is a residual block, followed by self-attention at the resolutions in `attn_resolutions`. The two middle blocks have
self-attention between them at any resolution, as in Ho's network, unless `mid_attention` is False. Every output of the
encoder, including the first convolution and the downsampling layers, is a skip: it is concatenated to the input of one
decoder block, so the decoder has one more block per level. Each block gets the time embedding.

Improved DDPM (2102.09672) has the same architecture, with multiple heads, scale-shift norms and attention at more resolutions,
and ADM (2105.05233) also resamples in residual blocks. Their programs differ from Ho's in details that change the output but
no parameter: `norm_epsilon`, `downsample_padding` and `time_embedding`. docs/weights.md has the options of each family.

With the published settings the parameter counts are the published ones: 35,746,307 (CIFAR-10), 113,673,219
(256x256), 78,700,803 (CelebA 64); 52,546,438 and 121,063,942 (Improved DDPM's CIFAR-10 and ImageNet 64); 295,904,454 (ADM's
ImageNet 64).
"""

import functools
import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.layers import (
    PADDINGS,
    TIME_EMBEDDINGS,
    ConvFn,
    Downsample,
    Norm,
    NormFn,
    ResidualBlock,
    SelfAttention,
    Upsample,
    conv,
    default_init,
    dense,
    group_norm,
    timestep_embedding,
    upsample_conv,
    zero_init,
)

Cond = jax.Array | Mapping[str, jax.Array] | None
COND_RESIZE = {"bicubic": "cubic", "bilinear": "linear", "nearest": "nearest"}  # name -> method of `jax.image.resize`


class UNet(nn.Module):
    """Ho's U-Net. `UNet(...).apply({"params": params}, x_t, t, ...)`.

    Attributes:
      out_channels: channels of the output (C of the image; a learned variance doubles it).
      ch: base width; level i has ch * ch_mult[i] channels.
      ch_mult: one factor per level; the resolution is halved between levels.
      num_res_blocks: residual blocks per encoder level; the decoder has one more.
      attn_resolutions: heights at which every block is followed by self-attention.
      dropout: dropout rate of residual blocks in training.
      num_heads: heads per attention, which split its channels.
      head_channels: channels of each head, instead of the number of heads; 0 to use `num_heads`.
      scale_shift: the time embedding scales and shifts the second norm of each block, instead of being added before it.
      num_classes: number of classes, 0 for an unconditional model; the class embedding is added to the time embedding. One
        of them may be the null label.
      cond_channels: channels of the condition image, 0 for none; it is resized to the size of x_t and concatenated to it (SR3,
        2104.07636).
      cond_noise_level: whether the network gets the noise level of the condition image, whose embedding is added to the time
        embedding (2106.15282).
      cond_resize: a key of COND_RESIZE, for condition images of another size than x_t.
      dtype: dtype of convolutions and matmuls; parameters and the output are float32.
      remat: recompute each block in the backward pass instead of storing its activations.
      mid_attention: self-attention between the two middle blocks, independent of attn_resolutions.
      conv_fn: the 3x3 convolutions, with the arguments of `jax.lax.conv_general_dilated`.
      upsample_conv_fn: nearest-neighbor upsampling and the convolution after it, with the same arguments.
      norm_fn: the group norms, with the arguments of `layers.group_norm`.
      block_class: the residual blocks, with the fields and methods of `layers.ResidualBlock`.
      dropout_class: the dropout of residual blocks, with the fields and the call of `flax.linen.Dropout`.
      norm_groups: groups of each group norm; 0 for min(32, ch / 4).
      norm_epsilon: added to the variance in each group norm.
      downsample_padding: same or symmetric, padding (0, 1) or (1, 1) of the strided convolutions.
      time_embedding: ddpm or iddpm, see `layers.timestep_embedding`.
      time_scale: factor on t before its embedding; T / 1000 for a network that was trained with t in 0..T-1.
      resblock_updown: change the resolution in residual blocks, by average pooling and nearest neighbors, instead of in
        convolutions.
    """

    out_channels: int = 3
    ch: int = 128
    ch_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    num_heads: int = 1
    scale_shift: bool = False
    num_classes: int = 0
    cond_channels: int = 0
    cond_noise_level: bool = False
    cond_resize: str = "bicubic"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    mid_attention: bool = True
    conv_fn: ConvFn = jax.lax.conv_general_dilated
    upsample_conv_fn: ConvFn = upsample_conv
    norm_fn: NormFn = group_norm
    block_class: type[ResidualBlock] = ResidualBlock
    dropout_class: type[nn.Dropout] = nn.Dropout
    head_channels: int = 0
    norm_groups: int = 0
    norm_epsilon: float = 1e-6
    downsample_padding: str = "same"
    time_embedding: str = "ddpm"
    time_scale: float = 1.0
    resblock_updown: bool = False

    @property
    def groups(self) -> int:
        """Groups of each group norm: 32 at the published width of 128; by default at least 4 channels each."""
        return self.norm_groups or min(32, self.ch // 4)

    def heads(self, channels: int) -> int:
        """Heads of an attention over `channels` channels."""
        return channels // self.head_channels if self.head_channels else self.num_heads

    @property
    def stochastic(self) -> bool:
        """Whether it uses random numbers in training."""
        return self.dropout > 0

    @property
    def min_channels(self) -> int:
        """Channels of the narrowest layers."""
        return self.ch

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Check the options, and that they fit images of `image_shape`, [H, W, C].

        Raises:
          ValueError: one does not.
        """
        height, width = image_shape[:2]
        size = f"{height}" if height == width else f"({height}, {width})"
        for name, values in (("ch_mult", self.ch_mult), ("attn_resolutions", self.attn_resolutions)):
            if wrong := [value for value in values if not isinstance(value, int)]:
                raise ValueError(f"`{name}` holds {wrong[0]!r}: it must be a list of integers, such as (1,2)")
        for name in ("ch", "num_res_blocks", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` is {self.dropout}: it must be at least 0 and below 1")
        for name, known in (("downsample_padding", PADDINGS), ("time_embedding", TIME_EMBEDDINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: it must be {' or '.join(known)}")
        if not 0 < self.time_scale < math.inf:
            raise ValueError(f"`time_scale` is {self.time_scale}: it must be above 0")
        if not 0 < self.norm_epsilon < 1:
            raise ValueError(f"`norm_epsilon` is {self.norm_epsilon}: it must be above 0 and below 1")
        if self.head_channels < 0 or (self.head_channels and self.num_heads != 1):
            raise ValueError(f"`head_channels` is {self.head_channels}: it must be 0, or above 0 with num_heads=1")
        if self.norm_groups:
            if self.norm_groups < 0 or self.ch % self.norm_groups or self.ch % 4:
                raise ValueError(f"`norm_groups` is {self.norm_groups}: it must be a divisor of ch={self.ch}, or 0")
        elif self.ch % 4 or self.ch % min(32, self.ch // 4):
            raise ValueError(f"`ch` is {self.ch}: it must be a multiple of 4, and of 32 if it is 128 or more")
        if self.cond_resize not in COND_RESIZE:
            raise ValueError(f"`cond_resize` is {self.cond_resize!r}: choose one of {', '.join(COND_RESIZE)}")
        if not self.ch_mult:
            raise ValueError("`ch_mult` is empty: it must hold one factor per level")
        if min(self.ch_mult) < 1:
            raise ValueError(f"`ch_mult` holds {min(self.ch_mult)}: each factor must be 1 or more")
        halvings = len(self.ch_mult) - 1
        if height % 2**halvings or width % 2**halvings:
            raise ValueError(
                f"`image_size` is {size}, which cannot be halved {halvings} times for the {halvings + 1} levels of `ch_mult`: "
                f"use a multiple of {2**halvings}, or fewer levels"
            )
        resolutions = [height // 2**level for level in range(halvings + 1)]
        kind = "resolutions" if height == width else "heights"
        if unmet := set(self.attn_resolutions) - set(resolutions):
            raise ValueError(
                f"`attn_resolutions` contains {sorted(unmet)}, but images of {size} pixels only have the {kind} {resolutions}"
            )
        attending = [self.ch_mult[resolutions.index(resolution)] for resolution in self.attn_resolutions]
        attending += [self.ch_mult[-1]] * self.mid_attention
        split = "head_channels" if self.head_channels else "num_heads"
        if any(self.ch * factor % getattr(self, split) for factor in attending):
            raise ValueError(
                f"`{split}` is {getattr(self, split)}, which does not divide the width of every attention: "
                f"{sorted({self.ch * factor for factor in attending})}"
            )

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, cond: Cond = None, *, deterministic: bool = True) -> jax.Array:
        """Predict from a noisy image.

        Args:
          x_t: [B, H, W, C] float; H and W divisible by 2 ** (len(ch_mult) - 1).
          t: [B] times on the scale 0..1000, int or float.
          cond: int [B], labels in 0..num_classes-1, for a class-conditional model; None for an unconditional one. With
            cond_channels, a dictionary: "image" float [B, h, w, cond_channels]; "label" with num_classes; "noise_level", float
            [B] in 0..1, with cond_noise_level.
          deterministic: False applies dropout, with the rng "dropout".

        Returns:
          float32 [B, H, W, out_channels]; exactly 0 after init.

        Raises:
          ValueError: a size that cannot be halved, t of another shape, or a condition that does not match the attributes.
        """
        given = cond if isinstance(cond, Mapping) else {} if cond is None else {"label": cond}
        self._check(x_t, t, given)
        groups = self.groups
        block_class = nn.remat(self.block_class, static_argnums=(3,)) if self.remat else self.block_class
        attention_class = nn.remat(SelfAttention) if self.remat else SelfAttention
        residual_block = functools.partial(
            block_class,
            groups=groups,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            dtype=self.dtype,
            conv_fn=self.conv_fn,
            norm_fn=self.norm_fn,
            epsilon=self.norm_epsilon,
            upsample_conv_fn=self.upsample_conv_fn,
            dropout_class=self.dropout_class,
        )
        conv3x3 = functools.partial(conv, dtype=self.dtype, conv_fn=self.conv_fn)

        t = t if self.time_scale == 1 else t.astype(jnp.float32) * self.time_scale
        temb = dense(4 * self.ch, dtype=self.dtype, name="temb_dense0")(timestep_embedding(t, self.ch, self.time_embedding))
        temb = dense(4 * self.ch, dtype=self.dtype, name="temb_dense1")(nn.swish(temb))
        if self.num_classes:
            # Cast after the lookup, so that gradients of examples of the same class are summed in float32.
            embed = nn.Embed(self.num_classes, 4 * self.ch, embedding_init=default_init, name="class_embed")
            temb = temb + embed(given["label"]).astype(self.dtype)
        if self.cond_noise_level:
            embedding = timestep_embedding(1000 * given["noise_level"], self.ch)
            temb = temb + dense(4 * self.ch, dtype=self.dtype, name="cond_noise_dense")(embedding)
        temb = self.block_class.prepare(temb, self.variables.get("params", {}))

        def attention(h: jax.Array, name: str) -> jax.Array:
            heads = self.heads(h.shape[-1])
            return attention_class(groups, heads, self.dtype, self.norm_fn, self.norm_epsilon, name=name)(h)

        def block(h: jax.Array, features: int, name: str) -> jax.Array:
            h = residual_block(features, name=name)(h, temb, deterministic)
            return attention(h, f"{name}_attn") if h.shape[1] in self.attn_resolutions else h

        def resample(h: jax.Array, direction: str, name: str) -> jax.Array:
            if self.resblock_updown:
                return residual_block(h.shape[-1], resample=direction, name=name)(h, temb, deterministic)
            if direction == "down":
                return Downsample(self.dtype, self.conv_fn, self.downsample_padding, name=name)(h)
            return Upsample(self.dtype, self.upsample_conv_fn, name=name)(h)

        levels = range(len(self.ch_mult))
        if self.cond_channels:
            image = jax.image.resize(given["image"], (*x_t.shape[:3], self.cond_channels), COND_RESIZE[self.cond_resize])
            x_t = jnp.concatenate([x_t, image.astype(x_t.dtype)], axis=-1)
        h = conv3x3(self.ch, name="conv_in")(x_t.astype(self.dtype))
        skips = [h]
        for level in levels:
            for i in range(self.num_res_blocks):
                h = block(h, self.ch * self.ch_mult[level], f"down{level}_block{i}")
                skips.append(h)
            if level != levels[-1]:
                h = resample(h, "down", f"down{level}_downsample")
                skips.append(h)

        h = residual_block(h.shape[-1], name="mid_block0")(h, temb, deterministic)
        if self.mid_attention:
            h = attention(h, "mid_attn")
        h = residual_block(h.shape[-1], name="mid_block1")(h, temb, deterministic)

        for level in reversed(levels):
            for i in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.ch * self.ch_mult[level], f"up{level}_block{i}")
            if level != 0:
                h = resample(h, "up", f"up{level}_upsample")

        h = nn.swish(Norm(groups, self.dtype, self.norm_fn, self.norm_epsilon, name="norm_out")(h))
        return conv3x3(self.out_channels, init=zero_init, name="conv_out")(h).astype(jnp.float32)

    def _check(self, x_t: jax.Array, t: jax.Array, given: Mapping[str, jax.Array]) -> None:
        factor = 2 ** (len(self.ch_mult) - 1)
        if x_t.ndim != 4 or x_t.shape[1] % factor or x_t.shape[2] % factor:
            raise ValueError(
                f"images of shape {x_t.shape} cannot be halved {len(self.ch_mult) - 1} times: "
                f"[B, H, W, C] with H and W divisible by {factor} is required"
            )
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"t has shape {t.shape}: one time per image, [{x_t.shape[0]}], is required")
        settings = {"label": "num_classes", "image": "cond_channels", "noise_level": "cond_noise_level"}
        for name, setting in settings.items():
            if (name in given) != bool(getattr(self, setting)):
                have = f"got {name}s" if name in given else f"got no {name}s"
                raise ValueError(f"a network with {setting}={getattr(self, setting)} {have}")
        if self.cond_channels and given["image"].shape[-1] != self.cond_channels:
            shape = given["image"].shape
            raise ValueError(f"condition images of shape {shape}: [B, h, w, {self.cond_channels}] is required")
