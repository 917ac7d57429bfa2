"""Learning-rate schedules by name: step -> learning rate, computed on the host.

The rate is an argument of the compiled training step, so no change of it compiles anything.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.runtime import registry

Schedule = Callable[[int], Any]


def constant(learning_rate: float, num_steps: int) -> Schedule:
    """The same rate at every step, as Ho et al."""
    return lambda step: learning_rate


def cosine(learning_rate: float, num_steps: int, *, final_fraction: float = 0.0) -> Schedule:
    """Half a cosine from the full rate to a fraction of it. Loshchilov and Hutter 1608.03983, eq. 5, without restarts.

    Args:
      learning_rate: rate at step 0.
      num_steps: the step at which the final rate would be reached, the length of the training.
      final_fraction: final rate / learning_rate, in [0, 1].

    Raises:
      ValueError: final_fraction is out of range.
    """
    _check_fraction("cosine", "final_fraction", final_fraction)
    return lambda step: (
        learning_rate * (final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * min(1, step / num_steps))) / 2)
    )


def linear(learning_rate: float, num_steps: int, *, final_fraction: float = 0.0) -> Schedule:
    """A line from the full rate to a fraction of it. Arguments and errors as for `cosine`."""
    _check_fraction("linear", "final_fraction", final_fraction)
    return lambda step: learning_rate * (1 - (1 - final_fraction) * min(1, step / num_steps))


def inverse_sqrt(learning_rate: float, num_steps: int, *, t_ref: float = 70_000.0) -> Schedule:
    """learning_rate / sqrt(max(step / t_ref, 1)). EDM2, Karras et al. 2312.02696; independent of the length of the training.

    Args:
      learning_rate: rate until step t_ref.
      num_steps: not used.
      t_ref: step at which the rate begins to decrease, > 0; EDM2 uses 70,000 for ImageNet-512 and 35,000 for ImageNet-64.

    Raises:
      ValueError: t_ref is not above 0.
    """
    if t_ref <= 0:
        raise ValueError(f"`t_ref` is {t_ref}, out of inverse_sqrt's range: it must be above 0")
    return lambda step: learning_rate / math.sqrt(max(step / t_ref, 1))


def cooldown(learning_rate: float, num_steps: int, *, fraction: float = 0.2) -> Schedule:
    """Constant, then a line to 0 over the last steps. Hägele et al. 2405.18392, who use a fifth of the training.

    Args:
      learning_rate: rate before the line.
      num_steps: the step at which 0 would be reached, the length of the training.
      fraction: length of the line as a fraction of num_steps, in (0, 1].

    Raises:
      ValueError: fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` is {fraction}, out of cooldown's range: it must be above 0 and at most 1")
    return lambda step: learning_rate * min(1.0, max(0, num_steps - step) / (fraction * num_steps))


# name -> (learning rate, length of the training, **options) -> step -> rate
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "cooldown": cooldown,
}


def make_learning_rate(
    name: str, learning_rate: float, num_steps: int, /, *, warmup_steps: int = 0, **options: Any
) -> Callable[[int], np.float32]:
    """Step 0, 1, .. -> learning rate: the schedule called `name`, multiplied by a linear warm-up from 1/warmup_steps to 1.

    Args:
      name: a key of SCHEDULES, or module:function for a function `(learning_rate, num_steps, **options)` -> step -> rate.
      learning_rate: learning rate of the schedule at its highest.
      num_steps: length of the training.
      warmup_steps: length of the warm-up; 0 for none.
      options: options of the schedule, such as final_fraction of cosine.

    Raises:
      ValueError: unknown name or option, an option out of range, or a rate that is negative or not finite.
    """
    schedule = registry.make(name, SCHEDULES, "learning-rate schedule", learning_rate, num_steps, options=options)
    for step in (0, num_steps // 2, num_steps - 1):
        try:
            value = float(schedule(step))
        except Exception as error:  # raised by a schedule of the user's own
            needed = "a function of the step that returns a number is required"
            raise ValueError(f"the learning-rate schedule {name} fails: {registry.fault(error)}; {needed}") from error
        if not -1e-6 * learning_rate <= value < math.inf:  # 0 may be rounded
            raise ValueError(f"the learning-rate schedule {name} is {value} at step {step:,}: it must be finite, 0 or more")

    def rate(step: int) -> np.float32:
        value = np.float32(schedule(step))
        if step >= warmup_steps:
            return value
        # The product with the reciprocal in float32 has the bits of the quotient that XLA computed inside the step.
        return value * min(np.float32(1), np.float32(step + 1) * (np.float32(1) / np.float32(warmup_steps)))

    return rate


def _check_fraction(name: str, option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{option}` is {value}, out of {name}'s range: it must be from 0 to 1")
