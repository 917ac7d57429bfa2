"""A network that JAX traces and compiles in a tenth of the time of the smallest U-Net, for tests of everything else."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Small(nn.Module):
    """A convolution of the image and of an embedding of time and class: `model.name=tests.small_network:Small`."""

    out_channels: int
    num_classes: int = 0

    @property
    def stochastic(self) -> bool:
        """It has no dropout: training may shard gradients as that of a U-Net without dropout."""
        return False

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, cond=None, *, deterministic: bool = True) -> jax.Array:
        """x_t [B, H, W, C], t [B], labels int [B] -> float32 [B, H, W, out_channels]."""
        embedding = nn.Dense(8)(t.astype(jnp.float32)[:, None] / 1000)
        if self.num_classes:
            embedding = embedding + nn.Embed(self.num_classes, 8)(cond)
        h = nn.tanh(nn.Conv(8, (3, 3))(x_t) + embedding[:, None, None])
        return nn.Conv(self.out_channels, (3, 3), kernel_init=nn.initializers.zeros)(h)
