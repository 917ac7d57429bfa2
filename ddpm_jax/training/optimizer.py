"""Optimizers by name, with linear warm-up of the learning rate and clipping of the global gradient norm, with optax."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from ddpm_jax.runtime import registry


def warmup_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """Step 0, 1, .. -> learning rate: linear warm-up over `warmup_steps` steps, then constant."""
    if not warmup_steps:
        return optax.constant_schedule(learning_rate)
    return lambda step: learning_rate * jnp.minimum(1.0, (step + 1) / warmup_steps)


def adam(
    learning_rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (1412.6980), the optimizer of Ho et al.

    Args:
      learning_rate: a number, or a function of the step.
      b1, b2: decay of the first and second moment, in [0, 1).
      eps: added to the root of the second moment, >= 0.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} of adam is {value}: it must be at least 0 and below 1")
    if eps < 0:
        raise ValueError(f"eps of adam is {eps}: it must be 0 or more")
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


# name -> (learning rate, **options) -> optax.GradientTransformation
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam}


def make_optimizer(
    name: str, learning_rate: float, /, *, warmup_steps: int = 0, clip_norm: float = 0.0, **options: Any
) -> optax.GradientTransformation:
    """The optimizer called `name`, after clipping. The structure of its state depends on the name only, not on the numbers.

    Args:
      name: a key of OPTIMIZERS, or module:function for a function `(learning_rate, **options)` -> GradientTransformation.
      learning_rate: learning rate after warm-up.
      warmup_steps: length of the warm-up; 0 for none.
      clip_norm: maximum global norm of the gradient; 0 for no clipping.
      options: options of the optimizer, such as b1, b2 and eps of adam.

    Raises:
      ValueError: unknown name or option, or an option out of range.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()  # both have an empty state
    schedule = warmup_schedule(learning_rate, warmup_steps)
    return optax.chain(clip, registry.make(name, OPTIMIZERS, "optimizer", schedule, options=options))
