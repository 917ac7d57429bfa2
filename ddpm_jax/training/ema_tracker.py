"""Additional averages of the parameters: exponential and power-function EMAs of several lengths.

Each costs one copy of the parameters and one addition per step. They are a dict by name ("decay_0.999", "power_0.05") that is
saved in the checkpoint. An average depends only on its previous value, the new parameters and the step, so a resume is
bit-exact.

The power-function EMAs in the checkpoints that a run keeps (`keep_period`) are the snapshots from which `posthoc_ema.py`
reconstructs an average of any length.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.training import ema


@dataclasses.dataclass(frozen=True)
class EmaTracker:
    """The set of averages.

    Attributes:
      extra_decays: decays of exponential averages, each in [0, 1), with the warm-up of `ema.ema_decay`.
      power_sigma_rel: relative standard deviations of power-function averages, each in (0, 12^(-1/2)]. EDM2 uses .05 and .10;
        reconstructing other lengths needs two.

    Raises:
      ValueError: a decay or standard deviation out of range, or one given twice.
    """

    extra_decays: tuple[float, ...] = ()
    power_sigma_rel: tuple[float, ...] = ()

    def __post_init__(self):
        for decay in self.extra_decays:
            if not 0 <= decay < 1:
                raise ValueError(f"the decay {decay:g} of an average must be in [0, 1)")
        for std in self.power_sigma_rel:
            ema.power_gamma(std)  # raises
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"duplicate average: {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the averages: the exponential ones first, each kind in the given order."""
        return (*(f"decay_{decay!r}" for decay in self.extra_decays), *(power_name(std) for std in self.power_sigma_rel))

    def resolve(self, name: str) -> str | None:
        """The entry of `names` that `name` refers to; None for a length that can be reconstructed after training.

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
                "it is reconstructed from power-function averages, and this run has none: choose one of "
                f"{', '.join(('ema', 'raw', *self.names))}, or train a new run with `power_sigma_rel=(0.05,0.1)`"
            )
        return None

    def init(self, params: Any) -> dict[str, Any]:
        """The averages before the first step: name -> a separate copy of the parameters, so that each can be donated."""
        return {name: jax.tree.map(jnp.copy, params) for name in self.names}

    def update(self, averages: dict[str, Any], params: Any, step: jax.Array) -> dict[str, Any]:
        """The averages after optimizer step `step`, pure.

        Args:
          averages: from `init` or the previous update.
          params: parameters after the step.
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
            name, one_minus_beta = power_name(std), ema.power_one_minus_beta(step, ema.power_gamma(std))
            after[name] = ema.update_power(averages[name], params, one_minus_beta)
        return after


NONE = EmaTracker()  # no additional averages


def power_name(std: float) -> str:
    """The name of the power-function average of this relative standard deviation."""
    return f"power_{float(std)!r}"


def parse_power_std(name: str) -> float | None:
    """The relative standard deviation in the name of a power-function average; None for other names."""
    try:
        std = float(name.removeprefix("power_"))
        ema.power_gamma(std)  # raises
    except ValueError:
        return None
    return std if name.startswith("power_") else None
