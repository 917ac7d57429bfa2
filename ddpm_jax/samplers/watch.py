"""Watch images while they are generated: a callback that gets the stages of a chain, and may stop it."""

import contextlib
import contextvars
import numbers
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ddpm_jax.runtime.errors import InvalidArgumentError


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

    def show(self, stage: Stage) -> None:
        """Call the callback. Methods that it calls are not watched: each of their stages would call it again, without end."""
        token = _CURRENT.set(None)
        try:
            self.callback(stage)
        finally:
            _CURRENT.reset(token)


_CURRENT: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)


@contextlib.contextmanager
def watch(callback: Callable[[Stage], None], stages: int = 20) -> Iterator[None]:
    """Context manager: calls `callback` with stages of the images that methods of a `Run` generate inside, in this thread.

    These are `sample`, `trajectory`, `inpaint`, `image_to_image`, `interpolate` and `invert`. Methods that the callback itself
    calls are not watched.

        with ddpm_jax.watch(lambda stage: print(stage.step, stage.pred_xstart.shape)):
            run.sample(16)

    The images are the same as without it. The steps between two stages are compiled once per sampler and number of steps.

    Args:
      callback: gets a `Stage` after each chunk of steps. An exception that it raises ends the call, before the next chunk.
      stages: about how many stages of each batch, an integer of 1 or more; at most one per step.

    Raises:
      InvalidArgumentError: a ValueError: `callback` cannot be called, or `stages` is not such an integer.
    """
    if not callable(callback):
        raise InvalidArgumentError(f"callback is {callback!r}: it must be a function of one argument, a Stage")
    if not isinstance(stages, numbers.Integral) or isinstance(stages, bool) or stages < 1:
        raise InvalidArgumentError(f"stages is {stages!r}: it must be an integer of at least 1")
    token = _CURRENT.set(Watch(callback, int(stages)))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Watch | None:
    """The innermost `watch` of this thread."""
    return _CURRENT.get()
