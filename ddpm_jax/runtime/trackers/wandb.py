"""Weights & Biases. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and its other environment variables apply.

All values have the x axis `trainer_step`, not the counter of W&B, which only increases: a resumed run logs the steps after its
checkpoint again, and an evaluation logs earlier steps.
"""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import UnavailableError

logger = logging.getLogger(__name__)

PROJECT = "ddpm_jax"  # without WANDB_PROJECT
STEP = "trainer_step"
RUN_ID = "wandb_id.txt"  # in the workdir: a resume continues this run


class WandbTracker:
    """Logs to Weights & Biases; see `runtime.trackers.Tracker`.

    Args:
      workdir: the run's folder, for wandb/ and the id of the run.

    Raises:
      UnavailableError: the package wandb is not installed. It is not part of the defaults, so the user has asked for it.
    """

    def __init__(self, workdir: Path) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise UnavailableError(
                "`trackers` contains wandb, but the package wandb is not installed: pip install wandb, or leave it out"
            )
        self._workdir = workdir
        self._run: Any = None

    def start(self, config: Mapping[str, Any], name: str, step: int | None) -> None:
        """Starts the run of this workdir, or continues it under its id."""
        import wandb  # lazily: it takes a second

        self._wandb = wandb
        file = self._workdir / RUN_ID
        self._run = wandb.init(
            dir=tempfile.mkdtemp() if storage.is_remote(self._workdir) else self._workdir,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=file.read_text().strip() if file.exists() else None,
            resume="allow",
            config=None if step is None else dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        write_atomically(file, self._run.id + "\n")
        if step is not None:
            self._run.config.update(dict(config), allow_val_change=True)  # a resume may change fields
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        logger.info(f"Weights & Biases: {self._run.url or self._run.dir}")

    def log_scalars(self, step: int, values: Mapping[str, float], curve: str = "") -> None:
        """Records scalars; the name of a curve is in front of its tags."""
        prefix = f"{curve}/" if curve else ""
        self._log(step, {prefix + tag: value for tag, value in values.items()})

    def log_image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records an image, uint8 [H, W, C]."""
        self._log(step, {name: self._wandb.Image(Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid))})

    def log_text(self, step: int, name: str, text: str) -> None:
        """Records a text, as it is."""
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        self._log(step, {name: self._wandb.Html(f"<pre>{escaped}</pre>", inject=False)})

    def close(self) -> None:
        """Uploads what is left and ends the run."""
        if self._run is not None:
            self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({STEP: step, **values})
