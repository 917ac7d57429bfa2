"""Experiment trackers: where the scalars, images and texts of a run are shown. `metrics.jsonl` is written in any case."""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ddpm_jax.runtime import registry, storage
from ddpm_jax.runtime.errors import InvalidArgumentError, error_line
from ddpm_jax.runtime.trackers.tensorboard import TensorBoardTracker
from ddpm_jax.runtime.trackers.wandb import WandbTracker

logger = logging.getLogger(__name__)

JSONL = "jsonl"  # the file metrics.jsonl: `jsonl.py`


class Tracker(Protocol):
    """What a tracker does. It is made by `factory(workdir)`, with the absolute path of the run's folder.

    Any exception turns the tracker off with one log line; training continues.
    """

    def start(self, config: Mapping[str, Any], name: str, step: int | None) -> None:
        """Called once, before all other methods.

        Args:
          config: all fields of the run, nested and JSON-compatible.
          name: name of the run.
          step: the training step from which the run starts or resumes; the steps after it are logged again. None if no
            training starts: --mode=evaluate adds curves to a run, which may still be training in another process.
        """

    def log_scalars(self, step: int, values: Mapping[str, float], curve: str = "") -> None:
        """Records tag -> number at `step`. Tags are grouped by a prefix, such as train/loss and eval/frechet.

        `curve` "" is the run itself; another name is a separate curve with the same tags, of an evaluation.
        """

    def log_image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records an image, uint8 [H, W, C], C being 1 or 3."""

    def log_text(self, step: int, name: str, text: str) -> None:
        """Records a text in Markdown."""

    def close(self) -> None:
        """Flushes and ends; the last call, also after an exception of another method."""


TRACKERS = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}
NAMES = (JSONL, *TRACKERS)


class TrackerGroup(contextlib.AbstractContextManager):
    """Several trackers as one. A tracker that raises is turned off, with one log line.

    Args:
      names: keys of `TRACKERS`, or module:Class. "jsonl" is ignored here.
      workdir: the run's folder.
      fallback_file: name of the file that has the same numbers, for that line.

    Raises:
      InvalidArgumentError: a name is unknown, or a class of the user's own cannot be imported or made.
      UnavailableError: a tracker needs a package that is not installed.
    """

    def __init__(self, names: Sequence[str], workdir: str | os.PathLike, fallback_file: str) -> None:
        folder = storage.path(workdir)
        check_names(names)
        self._fallback_file = fallback_file
        self._trackers: dict[str, Tracker] = {
            name: registry.make(name, TRACKERS, "tracker", folder, options={}) for name in names if name != JSONL
        }

    def start(self, config: Mapping[str, Any], name: str, step: int | None) -> None:
        """As `Tracker.start`, of each."""
        self._call("start", config, name, step)

    def log_scalars(self, step: int, values: Mapping[str, float], curve: str = "") -> None:
        """As `Tracker.log_scalars`, of each."""
        self._call("log_scalars", int(step), values, curve)

    def log_image(self, step: int, name: str, grid: np.ndarray) -> None:
        """As `Tracker.log_image`, of each."""
        self._call("log_image", int(step), name, grid)

    def log_text(self, step: int, name: str, text: str) -> None:
        """As `Tracker.log_text`, of each."""
        self._call("log_text", int(step), name, text)

    def close(self) -> None:
        """Closes each tracker. May be called twice."""
        self._call("close")
        self._trackers = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # a server, a full disk, or the user's own code
                del self._trackers[name]
                line = f"the tracker {name} is off ({_reason(name, error)}); {self._fallback_file} has the same numbers"
                logger.warning(line)
                if method != "close":
                    with contextlib.suppress(Exception):
                        tracker.close()


def check_names(names: Sequence[str]) -> None:
    """Raises InvalidArgumentError for a name that is neither in `NAMES` nor module:Class."""
    for name in names:
        if name != JSONL and name not in TRACKERS and not registry.is_custom(name):
            listed = ", ".join(NAMES)
            raise InvalidArgumentError(f"`trackers` contains {name!r}: choose from {listed}, or module:Class of your own")


def run_name(workdir: str | os.PathLike) -> str:
    """The name of a run: the last two parts of its folder, such as runs/digits."""
    return "/".join(storage.path(workdir).parts[-2:]).lstrip("/")


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "tensorboard":
        return "for events: pip install tensorboard"
    return registry.fault(error) if registry.is_custom(name) else error_line(error)
