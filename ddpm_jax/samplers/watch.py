"""Watch images while they are generated: a callback that gets the stages of a chain, and may stop it."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Stage(NamedTuple):
    """A batch of n images after some of their steps; NumPy.

    Attributes:
      first_image: index of the first image of the batch.
      step: number of steps taken, 1..num_steps.
      num_steps: number of steps of the chain.
      t: of x_t, 0..T-1 of the trained chain; None after the last step, and in inpainting and inversion.
      x_t: float32 [n, H, W, C], in [-1, 1] where it is an image.
      pred_xstart: float32 [n, H, W, C], the estimate of the image in the last step taken.
    """

    first_image: int
    step: int
    num_steps: int
    t: int | None
    x_t: np.ndarray
    pred_xstart: np.ndarray


class Watch(NamedTuple):
    """A callback, and about how many stages of a batch it gets."""

    callback: Callable[[Stage], None]
    stages: int


_CURRENT: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)


@contextlib.contextmanager
def watch(callback: Callable[[Stage], None], stages: int = 20) -> Iterator[None]:
    """Context manager: calls `callback` with stages of the images that methods of a `Run` generate inside, in this thread.

        with ddpm_jax.watch(lambda stage: print(stage.step, stage.pred_xstart.shape)):
            run.sample(16)

    The images are the same as without it. The steps between two stages are compiled once per sampler and number of steps.

    Args:
      callback: gets a `Stage` after each chunk of steps. An exception that it raises ends the call, before the next chunk.
      stages: about how many stages of each batch, 1 or more; at most one per step.

    Raises:
      ValueError: `stages` is less than 1.
    """
    if stages < 1:
        raise ValueError(f"stages is {stages}: it must be at least 1")
    token = _CURRENT.set(Watch(callback, stages))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Watch | None:
    """The innermost `watch` of this thread."""
    return _CURRENT.get()
