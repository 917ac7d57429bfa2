"""What a network is conditioned on: a pytree of arrays [B, ...], such as the int32 class of each image, or None.

`null_cond`, the condition that means "none", is one entry of it: a pytree of arrays without B. For a network conditioned
on images the pytree is a dictionary with "image" and perhaps "label" and "noise_level" (ddpm_jax/models/__init__.py).
"""

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import pixels


def replace_by_null(cond: Any, null_cond: Any, where: jax.Array) -> Any:
    """`cond` with `null_cond` in the rows where `where`, bool [B], is True."""

    def replace(array: jax.Array, null: jax.Array) -> jax.Array:
        return jnp.where(where.reshape(-1, *[1] * (array.ndim - 1)), null, array)

    return jax.tree.map(replace, cond, null_cond)


def labels_of(cond: Any) -> Any:
    """The labels [B] in a condition; None if it has none."""
    return cond.get("label") if isinstance(cond, dict) else cond


def add_noise(image: jax.Array, level: jax.Array, noise: jax.Array) -> jax.Array:
    """Noise augmentation of a condition image, z_s = sqrt(1 - s^2) z + s eps. Ho et al. 2106.15282.

    This is q(z_s | z) of a variance-preserving process, at the noise level s.

    Args:
      image: float32 [B, h, w, C], z in [-1, 1].
      level: float32 [B], s in 0..1.
      noise: float32 [B, h, w, C], eps.
    """
    s = level[:, None, None, None]
    return jnp.sqrt(1 - jnp.square(s)) * image + s * noise


def augmented(images: jax.Array, max_level: float, key: jax.Array) -> dict[str, jax.Array]:
    """ "image" and "noise_level" of condition images in training: noise of a level that is uniform in 0..max_level.

    Args:
      images: uint8 [B, h, w, C].
      max_level: highest noise level, in [0, 1); 0 for no noise, and no "noise_level".
      key: for the levels and the noise of the whole batch.
    """
    image = pixels.from_uint8(images)
    if not max_level:
        return {"image": image}
    level_key, noise_key = jax.random.split(key)
    level = jax.random.uniform(level_key, images.shape[:1], maxval=max_level)
    return {"image": add_noise(image, level, jax.random.normal(noise_key, image.shape)), "noise_level": level}


def at_level(images: jax.Array, level: float, keys: jax.Array) -> dict[str, jax.Array]:
    """As `augmented`, with one noise level in [0, 1) for all images, and the noise of image i from `keys` [B] at i."""
    image, levels = pixels.from_uint8(images), jnp.full(images.shape[:1], level, jnp.float32)
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    return {"image": add_noise(image, levels, noise), "noise_level": levels}
