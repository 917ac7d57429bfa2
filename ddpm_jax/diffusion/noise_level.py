"""Noise levels: the scales of image and noise in x_t; and lookups in the tables of a chain.

    x_t = α x_0 + σ ε                                                                  DDPM 2006.11239, eq. 4

α² + σ² = 1 in the chains of `schedules.py`; nothing here relies on that.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class NoiseLevel(NamedTuple):
    """Noise levels of a batch; arrays [B]. From `NoiseSchedule.level` or `continuous_time.level_at`.

    The quotients are fields so that those of a chain come from float64 tables.

    Attributes:
      alpha: α, the scale of the image in x_t; sqrt(ᾱ_t) in a chain.
      sigma: σ, the scale of the noise in x_t; sqrt(1 - ᾱ_t) in a chain.
      time: t in the chain that the network was trained on, 0..T-1; integer, or floating between two timesteps.
      recip_alpha: 1 / α; infinite if α = 0.
      sigma_over_alpha: σ / α; infinite if α = 0.
    """

    alpha: Array
    sigma: Array
    time: Array
    recip_alpha: Array
    sigma_over_alpha: Array


def lookup(table: np.ndarray | Array, t: Array, dtype: jnp.dtype | None = None) -> Array:
    """table[t] of a table [K], in `dtype` or JAX's default float. NaN for t outside 0..K-1."""
    values = jnp.asarray(table, jnp.result_type(float) if dtype is None else dtype)
    return values.at[t].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def expand(values: Array, x: Array) -> Array:
    """values [B] -> [B, 1, ... 1] of x's rank, in x's dtype but at least float32."""
    values = jnp.asarray(values, jnp.promote_types(jnp.result_type(x), jnp.float32))
    return values.reshape(values.shape + (1,) * (jnp.ndim(x) - 1))


def extract(table: np.ndarray | Array, t: Array, x: Array) -> Array:
    """table[t] of a table [K] for t [B], shaped to multiply x: [B, 1, ... 1] of x's rank.

    The result is in x's dtype, but at least float32. It is NaN for t outside 0..K-1.
    """
    return expand(lookup(table, t, jnp.promote_types(jnp.result_type(x), jnp.float32)), x)


def signal_to_noise(level: NoiseLevel, x: Array) -> Array:
    """The SNR α² / σ² [B, 1, ... 1], shaped to multiply x as by `expand`. 2107.00630, eq. 2."""
    return jnp.square(expand(level.alpha, x) / expand(level.sigma, x))


def check_shapes(t: Array, **arrays: Array) -> None:
    """Raises ValueError unless the arrays are floating and of one shape [B, ...] and t is an integer array [B]."""
    shape = _check_arrays(arrays)
    if jnp.ndim(t) != 1 or jnp.shape(t) != shape[:1] or not jnp.issubdtype(jnp.result_type(t), jnp.integer):
        kind = f"{jnp.result_type(t)} of shape {jnp.shape(t)}"
        raise ValueError(f"t is {kind}: it must hold one integer for each of the images of shape {shape}")


def check_level(level: NoiseLevel, **arrays: Array) -> None:
    """Raises ValueError unless the arrays are floating and of one shape [B, ...] and the levels are [B]."""
    shape = _check_arrays(arrays)
    if jnp.shape(level.alpha) != shape[:1]:
        raise ValueError(f"level has shape {jnp.shape(level.alpha)}: it must hold one level for each of the images of {shape}")


def _check_arrays(arrays: dict[str, Array]) -> tuple[int, ...]:
    first = next(iter(arrays))
    shape = jnp.shape(arrays[first])
    for name, array in arrays.items():
        if jnp.shape(array) != shape:
            raise ValueError(f"{name} has shape {jnp.shape(array)} and {first} {shape}: they must be the same")
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise ValueError(f"{name} is {jnp.result_type(array)}: scale images to floats in [-1, 1] first")
    return shape
