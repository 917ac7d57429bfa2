"""Conversion between uint8 images in 0..255 and float images in [-1, 1]."""

import jax
import jax.numpy as jnp


def from_uint8(images: jax.Array) -> jax.Array:
    """uint8 0..255 of any shape -> float32 in [-1, 1]; k becomes k / 127.5 - 1. DDPM 2006.11239, section 3.3."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """Float of any shape, clipped to [-1, 1] -> uint8 by rounding; truncation would darken by half a level."""
    return jnp.clip(x * 127.5 + 128.0, 0.0, 255.0).astype(jnp.uint8)
