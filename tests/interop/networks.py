"""Our U-Nets with arrays of other programs, for the tests of both folders of interop tests."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import array_table
from ddpm_jax.models.unet import UNet


def shapes_of(network: UNet, size: int, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Flat name -> shape of the parameters."""
    labels = jnp.zeros(1, jnp.int32) if network.num_classes else None
    x_t = jnp.zeros((1, size, size, channels))
    variables = jax.eval_shape(network.init, jax.random.key(0), x_t, jnp.zeros(1), labels)
    return {name: leaf.shape for name, leaf in array_table.flatten(variables["params"]).items()}


def their_shapes(table, shapes) -> dict[str, tuple[int, ...]]:
    return {entry.theirs: entry.shape(shapes) for entry in table}


def output(network: UNet, flat: dict[str, np.ndarray], x_t: np.ndarray, t: np.ndarray, labels=None) -> np.ndarray:
    variables = {"params": array_table.unflatten(flat)}
    labels = None if labels is None else jnp.asarray(labels, jnp.int32)
    return np.asarray(jax.jit(network.apply)(variables, x_t, t, labels))


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
