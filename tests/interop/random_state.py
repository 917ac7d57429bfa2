"""Random weights by name, the same in any program: a network and a golden output need no file of weights."""

from collections.abc import Mapping

import numpy as np


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Name -> float32 array, of a size that keeps activations near 1; names in alphabetical order share one stream.

    NumPy promises that the stream of RandomState never changes.
    """
    random, state = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        array = random.standard_normal(shapes[name])
        if array.ndim > 1:
            array /= np.sqrt(array[0].size)
        elif name.endswith("weight"):  # of a norm
            array = 1 + 0.2 * array
        else:
            array *= 0.2
        state[name] = array.astype(np.float32)
    return state


def random_inputs(size: int, *, channels: int = 3, batch: int = 2, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x_t float32 [B, H, W, C] and times float32 [B] in 0..1000."""
    random = np.random.RandomState(seed)
    x_t = random.standard_normal((batch, size, size, channels)).astype(np.float32)
    return x_t, np.linspace(3.0, 977.0, batch).astype(np.float32)
