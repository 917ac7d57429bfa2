"""The exponential moving average of the parameters, from which one samples (DDPM 2006.11239, appendix B)."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """The decay at optimizer step `step` = 0, 1, ..: min(decay, (1 + step) / (10 + step)), float32.

    At .9999 from the start, the random initial parameters would weigh on the average for 50,000 steps; so its
    length grows with the run until `decay` is reached.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(ema_params: Any, params: Any, decay: float | jax.Array) -> Any:
    """decay * ema_params + (1 - decay) * params, leaf by leaf, float32."""
    return jax.tree.map(lambda average, new: decay * average + (1.0 - decay) * new, ema_params, params)
