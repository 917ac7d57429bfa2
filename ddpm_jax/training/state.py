"""Training state: everything that a checkpoint needs, since data order and noise follow from (seed, step)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.training import ema_tracker
from ddpm_jax.training.ema_tracker import EmaTracker


@flax.struct.dataclass
class TrainState:
    """The training state, a pytree.

    Attributes:
      step: int32 [], optimizer steps taken; an array, since a Python int would retrace every step.
      params: the network's parameters, float32.
      ema_params: their moving average, float32.
      opt_state: state of the optax optimizer.
      timestep_sampler_state: state of the timestep sampler (`diffusion/timestep_sampling.py`); () if stateless.
      averages: additional averages of the parameters by name (`ema_tracker.py`), float32.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: optax.OptState
    timestep_sampler_state: Any = ()
    averages: dict[str, Any] = flax.struct.field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Checkpoint fields by name; each average is a separate field, so that it can be restored alone."""
        return {name: value for name, value in vars(self).items() if name != "averages"} | self.averages

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "TrainState":
        """The inverse of `fields`."""
        own = {field.name for field in dataclasses.fields(cls)}
        averages = {name: value for name, value in fields.items() if name not in own}
        return cls(**{name: value for name, value in fields.items() if name in own}, averages=averages)


def create_state(
    init_params: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    timestep_sampler_state: Any = (),
    averaging: EmaTracker = ema_tracker.NONE,
) -> TrainState:
    """The state at step 0; pure, to be jitted with the output shardings of the state.

    Args:
      init_params: key -> params.
      optimizer: the optimizer whose state to initialize.
      key: key for `init_params`.
      timestep_sampler_state: initial state of the timestep sampler.
      averaging: the additional averages.
    """
    params = init_params(key)
    # A copy, since a state that contains a buffer twice cannot be donated.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=ema_params,
        opt_state=optimizer.init(params),
        timestep_sampler_state=timestep_sampler_state,
        averages=averaging.init(params),
    )
