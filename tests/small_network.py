"""A network that JAX traces and compiles in a tenth of the time of the smallest U-Net, for tests of everything else."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Small(nn.Module):
    """Two convolutions and embeddings of time and condition, named as in the U-Net: `model.name=tests.small_network:Small`."""

    out_channels: int
    num_classes: int = 0
    cond_channels: int = 0
    cond_noise_level: bool = False

    @property
    def stochastic(self) -> bool:
        """It has no dropout: training may shard gradients as that of a U-Net without dropout."""
        return False

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, cond=None, *, deterministic: bool = True) -> jax.Array:
        """x_t [B, H, W, C], t [B], cond as in `ddpm_jax.models` -> float32 [B, H, W, out_channels]."""
        given = cond if isinstance(cond, dict) else {"label": cond}
        embedding = nn.Dense(8, name="temb_dense")(t.astype(jnp.float32)[:, None] / 1000)
        if self.num_classes:
            embedding = embedding + nn.Embed(self.num_classes, 8, name="class_embed")(given["label"])
        if self.cond_noise_level:
            embedding = embedding + nn.Dense(8, name="cond_noise_dense")(given["noise_level"][:, None])
        if self.cond_channels:
            image = jax.image.resize(given["image"], (*x_t.shape[:3], self.cond_channels), "bilinear")
            x_t = jnp.concatenate([x_t, image], axis=-1)
        h = nn.tanh(nn.Conv(8, (3, 3), name="conv_in")(x_t) + embedding[:, None, None])
        return nn.Conv(self.out_channels, (3, 3), kernel_init=nn.initializers.zeros, name="conv_out")(h)
