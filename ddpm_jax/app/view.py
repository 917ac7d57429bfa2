"""What the controls of the page hold, what it shows of a call, and the words of both."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.samplers.watch import Stage


class View(NamedTuple):
    """What the page shows of a call; an array is a picture, uint8 [H, W, 3]. None: what it shows remains.

    Attributes:
      picture: x_t while the chain runs, then the images.
      predicted: pred_xstart.
      status: a line below.
      call: the same as a call of Python; "" until it is done.
      table: rows of a table; () for none.
    """

    picture: np.ndarray | None
    predicted: np.ndarray | None = None
    status: str = ""
    call: str | None = ""
    table: Sequence[Sequence[str]] | None = ()


@dataclasses.dataclass(frozen=True)
class Settings:
    """The controls of sampling, named as the arguments of `Run.sample` and `load`; `label` is a class, or a choice beside."""

    label: str
    seed: int
    sampler: str
    num_steps: int
    spacing: str
    eta: float
    guidance_scale: float
    params: str
    step: int


def steps_text(stage: Stage) -> str:
    """The step of a stage and its t."""
    t = "" if stage.t is None else f" · t = {stage.t:,}"
    return f"step {stage.step:,} of {stage.num_steps:,}{t}"


def waiting_text(before: int) -> str:
    """The status of a job that waits for others, or that starts."""
    if before:
        return f"waiting for {before} other job{'s' if before > 1 else ''}"
    return "started · the first images of a sampler wait for its compilation"


def seconds_text(start: float) -> str:
    """The time since `start`, of time.monotonic."""
    return f"{time.monotonic() - start:.1f} s"


def count_text(number: int) -> str:
    """A number of images."""
    return "1 image" if number == 1 else f"{number:,} images"
