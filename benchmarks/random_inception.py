"""Random weights of the FID's Inception, for timings and tests on machines without the real ones."""

import math
import zlib
from typing import Any

import numpy as np

from ddpm_jax.metrics import inception_weights


def random_state_dict(seed: int) -> dict[str, np.ndarray]:
    """Deterministic random weights, the same on every machine and NumPy.

    Each tensor is uniform, from raw Philox words keyed by (seed, CRC-32 of its name). Kernels have He's variance 2 / inputs
    and norms are near 1, so that activations neither vanish nor overflow through 94 layers (denormals below 1e-38 would
    slow some machines down tenfold).
    """
    state = {}
    for name, shape in inception_weights.state_dict_shapes().items():
        if name.endswith("weight") and len(shape) > 1:
            bound = math.sqrt(6 / math.prod(shape[1:]))
            low, high = -bound, bound
        else:
            low, high = (0.5, 1.5) if name.endswith((".weight", ".running_var")) else (-0.5, 0.5)
        key = np.random.SeedSequence((seed, zlib.crc32(name.encode())))
        fractions = (np.random.Philox(key).random_raw(math.prod(shape)) >> np.uint64(40)).astype(np.float32) * np.float32(
            2**-24
        )
        state[name] = (np.float32(low) + np.float32(high - low) * fractions).reshape(shape)
    return state


def random_variables(seed: int) -> dict[str, Any]:
    """Variables for `inception.apply` from `random_state_dict`."""
    return inception_weights.from_state_dict(random_state_dict(seed))
