"""What a network is conditioned on: a pytree of arrays [B, ...], such as the int32 class of each image, or None.

`null_cond`, the condition that means "none", is one entry of it: a pytree of arrays without B.
"""

from typing import Any

import jax
import jax.numpy as jnp


def replace_by_null(cond: Any, null_cond: Any, where: jax.Array) -> Any:
    """`cond` with `null_cond` in the rows where `where`, bool [B], is True."""

    def replace(array: jax.Array, null: jax.Array) -> jax.Array:
        return jnp.where(where.reshape(-1, *[1] * (array.ndim - 1)), null, array)

    return jax.tree.map(replace, cond, null_cond)
