"""The whole state of a run between two steps. Nothing else needs saving: data and noise follow from (seed, step)."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
      step: int32 [], optimizer steps taken; an array, since a Python int would be traced anew at each step.
      params: the network's parameters, float32.
      ema_params: their moving average, float32.
      opt_state: optax's.
      t_history: what the way to draw t remembers (`process/timesteps.py`); () where it remembers nothing.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: optax.OptState
    t_history: Any = ()


def create_state(
    init_params: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation, key: jax.Array, *, t_history: Any = ()
) -> TrainState:
    """The state at step 0; pure, to be jitted with the shardings that the state should have.

    Args:
      init_params: key -> params.
      optimizer: whose state to begin.
      key: for `init_params`.
      t_history: what the way to draw t begins with.
    """
    params = init_params(key)
    # A copy: a state that held one buffer twice could not be donated.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=ema_params,
        opt_state=optimizer.init(params),
        t_history=t_history,
    )
