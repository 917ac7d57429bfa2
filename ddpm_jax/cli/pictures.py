"""The pictures that training makes of its own samples: small ones along the way, a full one at the end where that is cheap.

What a picture costs is counted in training steps: a step computes the network forward and backward, about three times a
forward pass, for each image of its batch. So the decision is the same on every machine and after every resume.
"""

import logging
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import load_params, sample, sample_files
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import distributed, workdir
from ddpm_jax.runtime.metric_logger import TrainLogger
from ddpm_jax.samplers.batched import BatchedSampler, NonFiniteSamples
from ddpm_jax.training.state import TrainState
from ddpm_jax.user_messages import UsageError

logger = logging.getLogger(__name__)

FORWARD_PASSES = 3  # a training step on an image, in network evaluations of it
QUICK = (("dpmpp_2m", "logsnr"), ("ddim", "trailing"))  # the first that the schedule and prediction allow


class Pictures:
    """Makes samples/step_N.png, with the weights and classes of config.sampling.

    Along the way by `quick` settings, at the end by config.sampling's own where that costs no more than the training did.

    Args:
      config: resolved.
      mesh: whose devices generate.
      run_folder: the workdir; the pictures go into its samples/.
      logbook: what is said is said there, and TensorBoard gets the pictures.
      class_names: of label 0, 1, ...; () where the data set has none.

    Raises:
      UsageError: config.sampling names a sampler that cannot be built.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: jax.sharding.Mesh,
        run_folder: pathlib.Path,
        logbook: TrainLogger,
        class_names: Sequence[str] = (),
    ):
        self._config, self._mesh, self._logbook = config, mesh, logbook
        self._folder = workdir.sample_folder(run_folder)
        self._run_folder = run_folder
        self._class_names = class_names
        self._quick, self._full = quick_config(config), few_images(config)
        self._generators: dict[str, BatchedSampler] = {}

    def along_the_way(self, state: TrainState) -> None:
        """A picture of few solver steps."""
        self._draw(self._quick, state)

    def last(self, state: TrainState) -> str:
        """The picture of the finished run; the line that says where it is, or with which command to make it."""
        done, full = f"done: {int(state.step):,} steps", self._full.sampling
        affordable = [config for config in (self._full, self._quick) if cost_in_steps(config) <= self._config.train.num_steps]
        if not affordable:
            command = sample_command(self._run_folder, *self._quick_flags(), "--config.sampling.num_images=16")
            return f"{done}; no picture was made, since it would take longer than the training; make one with: {command}"
        files = self._draw(affordable[0], state)
        seen = f"see {' and '.join(map(str, files))}" if files else "no picture was made"
        if affordable[0] is self._full and files:
            return f"{done}; {seen}"
        command = sample_command(self._run_folder)
        return f"{done}; {seen}; {full.num_images} images by {full.sampler} in {full.num_steps:,} steps: {command}"

    def _quick_flags(self) -> list[str]:
        """The flags that change config.sampling to the settings of the quick pictures."""
        sampling, quick = self._full.sampling, self._quick.sampling
        return [f"--config.sampling.{name}={quick[name]}" for name in sampling if quick[name] != sampling[name]]

    def _draw(self, config: ConfigDict, state: TrainState) -> list[pathlib.Path]:
        step = int(state.step)
        try:
            drawn = sample.draw_with_progress(config, self._generator(config), load_params.from_state(config, state))
        except NonFiniteSamples as error:  # the weights train on: their loss has a check of its own
            logger.info(f"no picture of step {step:,}: {error}")
            return []
        names = sample_files.row_names(drawn.labels, self._class_names)
        pictures = {"": image_grid.grid_of_classes(drawn.images, drawn.labels, names)}
        for name, stages in sample.trajectory_images(drawn).items():
            pictures[f"-{name}"] = sample_files.chain_strip(stages)
        files = [self._folder / f"step_{step:08d}{suffix}.png" for suffix in pictures]
        with distributed.raise_on_all_processes():
            if distributed.is_primary_process():
                with sample.translate_write_errors(self._folder):
                    self._folder.mkdir(exist_ok=True)
                    for file, image in zip(files, pictures.values(), strict=True):
                        image_grid.save_png(file, image)
        self._logbook.log_image(step, "samples", pictures[""])
        return files

    def _generator(self, config: ConfigDict) -> BatchedSampler:
        key = config.sampling.to_json()
        if key not in self._generators:
            self._generators[key] = build.build_batched_sampler(config, self._mesh)
        return self._generators[key]


def few_images(config: ConfigDict) -> ConfigDict:
    """The config with config.sampling generating no more images than a grid shows."""
    config = config.copy_and_resolve_references()
    config.sampling.num_images = min(config.sampling.num_images, image_grid.MAX_IMAGES)
    return config


def quick_config(config: ConfigDict) -> ConfigDict:
    """As `few_images`, with config.train.sample_num_steps solver steps, where config.sampling takes more evaluations.

    Raises:
      UsageError: config.sampling names a sampler that cannot be built.
    """
    full, steps = few_images(config), config.train.sample_num_steps
    if not steps or build.build_sampler(full).evaluations <= steps:
        return full
    for sampler, spacing in QUICK:
        quick = full.copy_and_resolve_references()
        quick.sampling.update(sampler=sampler, spacing=spacing, num_steps=min(steps, config.diffusion.num_timesteps))
        quick.sampling.update(eta=0.0, order=2, churn=0.0)  # which only other samplers read
        quick.sampling.num_intermediates = min(quick.sampling.num_intermediates, quick.sampling.num_steps)
        try:
            build.build_sampler(quick)
        except UsageError:
            continue
        return quick
    return full


def cost_in_steps(config: ConfigDict) -> float:
    """What a picture by config.sampling costs, in training steps."""
    sampling = config.sampling
    evaluations = build.build_sampler(config).evaluations * (1 if sampling.guidance_scale == 1 else 2)
    return evaluations * sampling.num_images / (FORWARD_PASSES * config.train.batch_size)


def sample_command(run_folder: pathlib.Path, *flags: str) -> str:
    """The command line that generates images from this run, as it works when pasted."""
    program = ["python", "main.py"]
    if pathlib.Path(sys.argv[0]).name == "main.py":
        program = [_short(sys.executable), sys.argv[0]]
    return shlex.join([*program, f"--workdir={_short(str(run_folder))}", "--mode=sample", *flags])


def _short(path: str) -> str:
    """The path relative to the current folder, where it is below it."""
    here = str(pathlib.Path.cwd()) + "/"
    return path.removeprefix(here) or path


def parameter_count(params: object) -> int:
    """How many numbers the parameters are."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
