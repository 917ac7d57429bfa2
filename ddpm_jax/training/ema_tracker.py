"""Several averages of the parameters at once: exponential ones of several decays, and power functions of the training time.

Each costs the memory of one copy of the parameters, and an addition a step: nothing beside the step itself. Together
they are a dict with a name for each ("decay_0.999", "power_0.05"), a tree that is saved and restored with the
run. An average is a function of its last value, the new parameters and the step: resumed, it goes on to the bit.

The power functions at the steps whose checkpoints a run keeps (`keep_period`) are the snapshots that `post_hoc.py`
makes an average of any length from. Nothing else needs saving: a snapshot is its name, its step and its tree.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.training import ema


@dataclasses.dataclass(frozen=True)
class EmaTracker:
    """Which averages are kept.

    Attributes:
      extra_decays: of exponential averages, each in [0, 1), warmed up as by `ema.ema_decay`.
      power_sigma_rel: relative standard deviations of power-function averages, each in (0, 12^(-1/2)]. EDM2 keeps .05 and .10;
        fewer than two of them do not tell the others.

    Raises:
      ValueError: a decay or standard deviation out of range, or one given twice.
    """

    extra_decays: tuple[float, ...] = ()
    power_sigma_rel: tuple[float, ...] = ()

    def __post_init__(self):
        for decay in self.extra_decays:
            if not 0 <= decay < 1:
                raise ValueError(f"the decay {decay:g} of an average must be 0 or more and below 1")
        for std in self.power_sigma_rel:
            ema.power_gamma(std)  # raises
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"an average is kept twice: {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the averages: the exponential ones first, each kind in the order given."""
        return (*(f"decay_{decay!r}" for decay in self.extra_decays), *(power_name(std) for std in self.power_sigma_rel))

    def kept(self, name: str) -> str | None:
        """Under which of `names` the average called `name` is; None for one that can be made of them after training.

        Raises:
          ValueError: neither.
        """
        std = parse_power_std(name)
        exact = name if std is None else power_name(std)
        if exact in self.names:
            return exact
        if std is None:
            choices = ", ".join(("ema", "raw", *self.names))
            length = ", or a length such as power_0.07" if self.power_sigma_rel else ""
            raise ValueError(f"choose one of {choices}{length}")
        if not self.power_sigma_rel:
            raise ValueError(
                "it is made of power-function averages, and this run kept none: choose one of "
                f"{', '.join(('ema', 'raw', *self.names))}, or train a new run with `power_sigma_rel=(0.05,0.1)`"
            )
        return None

    def init(self, params: Any) -> dict[str, Any]:
        """The averages before the first step: name -> a copy of the parameters of its own, so that each can be donated."""
        return {name: jax.tree.map(jnp.copy, params) for name in self.names}

    def update(self, averages: dict[str, Any], params: Any, step: jax.Array) -> dict[str, Any]:
        """The averages after optimizer step `step`, pure.

        Args:
          averages: from `init` or the update before.
          params: after the step.
          step: integer [], the number of steps before this one: 0 at the first.

        Raises:
          ValueError: the averages are not those of this object.
        """
        if set(averages) != set(self.names):
            raise ValueError(f"the averages are {', '.join(sorted(averages))}, not {', '.join(sorted(self.names))}")
        after = {}
        for name, decay in zip(self.names, self.extra_decays, strict=False):
            after[name] = ema.update_ema(averages[name], params, ema.ema_decay(step, decay))
        for std in self.power_sigma_rel:
            name, share = power_name(std), ema.power_one_minus_beta(step, ema.power_gamma(std))
            after[name] = ema.update_power(averages[name], params, share)
        return after


NONE = EmaTracker()  # beside the first


def power_name(std: float) -> str:
    """The name of the power-function average of this relative standard deviation."""
    return f"power_{float(std)!r}"


def parse_power_std(name: str) -> float | None:
    """The relative standard deviation of the average of this name; None where it names none."""
    try:
        std = float(name.removeprefix("power_"))
        ema.power_gamma(std)  # raises
    except ValueError:
        return None
    return std if name.startswith("power_") else None
