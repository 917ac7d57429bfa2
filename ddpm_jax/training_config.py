"""Derived from config.train: what a training does between its steps, image grids and evaluations, and advice."""

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, choices, sampling_config
from ddpm_jax.data import identity
from ddpm_jax.data.source import ImageSource
from ddpm_jax.evaluation import sample_files
from ddpm_jax.interop import array_table
from ddpm_jax.interop.load_weights import load_weights
from ddpm_jax.interop.weights_file import Weights
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import config_changes, distributed, paths, storage, workdir
from ddpm_jax.runtime.errors import ExpectedError, as_text
from ddpm_jax.runtime.metric_logger import TrainLogger
from ddpm_jax.runtime.registry import is_custom
from ddpm_jax.samplers.batched import BatchedSampler, NonFiniteSamples
from ddpm_jax.sampling_conditions import sampling_inputs
from ddpm_jax.training import best_step, fsdp, param_patterns
from ddpm_jax.training.state import TrainState
from ddpm_jax.user_messages import UsageError, UserError

logger = logging.getLogger(__name__)

_DATA_SHAPES = ("data.image_size", "data.channels", "data.num_classes")  # fields of config.data that the network depends on


def check_params_are_trained(config: ConfigDict) -> None:
    """Raise a UsageError if config.sampling.params can only be computed after training."""
    if build.params_field(config) is None:
        kept = ", ".join((*build.STATE_FIELDS, *build.build_ema_tracker(config).names))
        raise UsageError(
            f"config.sampling.params={config.sampling.params} can only be computed after training: train with one of {kept}"
        )


def measured_scores(config: ConfigDict) -> list[str]:
    """The tags of the scores and losses that evaluations during training measure; eval/loss_* need held-out images."""
    train, found = config.train, []
    if train.eval_every and train.eval_num_samples:
        from ddpm_jax.evaluation.sample_metrics import SCORES  # imported lazily, as evaluation_config below

        columns = [column for metric in config.evaluation.metrics for column in SCORES.get(metric, ())]
        tags = [f"eval/{column.replace(' ', '_')}" for column in columns]  # as `report.loggable_scalars`
        found += [tag for tag in tags if tag in best_step.TAGS]
    if train.eval_every and train.eval_num_heldout:
        found += [f"eval/loss_{name}" for name in build.STATE_FIELDS]
    return found


def kept_score(config: ConfigDict) -> str:
    """The tag of the score whose best checkpoint is kept; "" for none.

    Raises:
      UsageError: config.train.keep_best is a score that is never measured.
    """
    tag, measured = config.train.keep_best, measured_scores(config)
    if tag == best_step.AUTO:
        return best_step.AUTO_TAG if best_step.AUTO_TAG in measured else ""
    if tag and tag not in measured:
        if config.train.eval_every:
            scores = ", ".join(measured) or "no score"
            why = f"config.evaluation.metrics, config.train.eval_num_samples and .eval_num_heldout measure {scores}"
        else:
            why = "config.train.eval_every is 0, so nothing is measured"
        raise UsageError(f"config.train.keep_best is {tag}, but {why}: change them, or set it to {best_step.AUTO}")
    return tag


def params_of(config: ConfigDict, state: TrainState, mesh: jax.sharding.Mesh) -> Any:
    """The parameters that config.sampling.params names, replicated over the mesh; see `check_params_are_trained`."""
    return fsdp.replicate(state.fields()[str(build.params_field(config))], mesh)


def remedies(config: ConfigDict) -> str:
    """Flags to suggest for a non-finite loss, and the user's own parts that may cause it."""
    flags = [f"a --config.optimizer.learning_rate below {config.optimizer.learning_rate:g}"]
    flags += [] if config.optimizer.clip_norm else ["--config.optimizer.clip_norm=1"]
    flags += [] if config.model.dtype == "float32" else ["--config.model.dtype=float32"]
    parts = (choices.NETWORK, choices.LOSS, choices.WEIGHTING, choices.OPTIMIZER)
    own = [name for choice in parts if is_custom(name := config[choice.section][choice.field])]
    return " or ".join(flags) + (f", or correct {' or '.join(own)}" if own else "")


def build_evaluation(
    config: ConfigDict, mesh: jax.sharding.Mesh, run_folder: pathlib.Path, source: ImageSource
) -> Callable[[TrainState], dict[str, float]]:
    """state -> {"eval/loss_ema": ..., "eval/loss_raw": ..., "eval/frechet": ...}: losses of held-out images, and scores.

    `source` is the training set.

    Raises:
      UsageError: a field is invalid, or there is nothing to compute.
    """
    from ddpm_jax import evaluation_config  # imported lazily: it takes half a second

    scores = evaluation_config.build_periodic_scores(config, mesh, source)
    heldout_loss = evaluation_config.build_heldout_loss(config, mesh, workdir.read_data_identity(run_folder))
    if scores is None and heldout_loss is None:
        raise UsageError("config.train.eval_every is set, but no images are generated or held out: set it to 0")
    if heldout_loss is None and kept_score(config).startswith("eval/loss_"):
        raise UsageError(
            f"config.train.keep_best is {config.train.keep_best}, but there are no held-out images: set it to auto"
        )

    def evaluate(state: TrainState) -> dict[str, float]:
        values: dict[str, float] = {}
        if heldout_loss is not None:
            values = {
                f"eval/loss_{name}": heldout_loss(fsdp.replicate(state.fields()[field], mesh))
                for name, field in build.STATE_FIELDS.items()
            }
        try:
            return values | (scores(params_of(config, state, mesh)) if scores is not None else {})
        except NonFiniteSamples as error:  # training continues: the loss is checked separately
            logger.info(f"no scores for step {int(state.step):,}: {error}")
            return values

    return evaluate


def grid_file(run_folder: pathlib.Path, step: int, suffix: str = "") -> pathlib.Path:
    """The file of the image grid of a step; with a suffix, of one of its intermediate steps."""
    return workdir.sample_folder(run_folder) / f"step_{step:08d}{suffix}.png"


class InitialWeights(NamedTuple):
    """What a new run takes from config.train.init_from.

    Attributes:
      taken: path -> array, instead of the initial value of this parameter.
      record: where they are from, JSON-compatible, for history.jsonl.
      line: the same, for the log.
    """

    taken: dict[str, np.ndarray]
    record: dict[str, Any]
    line: str


def load_initial_weights(config: ConfigDict, params: Any, class_names: Sequence[str]) -> InitialWeights:
    """Read config.train.init_from for a network with parameters of the shapes `params`. On all processes together.

    `class_names` are those of the new run's data set; () if unknown.

    Raises:
      ExpectedError: the weights cannot be read, or do not fit the network; the message names arrays and fields.
    """
    given = config.train.init_from
    try:
        weights = load_weights(given)
    except ExpectedError as error:
        raise type(error)(f"config.train.init_from: {error}") from error
    if not distributed.all_processes(
        distributed.broadcast_ints([int(weights.sha256[:7], 16)])[0] == int(weights.sha256[:7], 16)
    ):
        raise UserError(f"config.train.init_from={given} is different weights in different processes: use one shared file")
    classes = _class_changes(weights, config, class_names)
    arrays = array_table.flatten(weights.params)
    found = param_patterns.select(params, arrays, config.train.init_new, same_classes=not classes)
    differing = _network_changes(weights.config, config.to_dict())
    if found.wrong:
        more = f" and {len(found.wrong) - 3} more" if len(found.wrong) > 3 else ""
        fields = [f"config.{field} was {as_text(a)} there, is {as_text(b)} here" for field, (a, b) in differing.items()]
        cause = f" ({'; '.join(fields)})" if fields else ""
        raise UsageError(
            f"config.train.init_from={given} does not fit the network: {'; '.join(found.wrong[:3])}{more}{cause}. Use the "
            "values of the source, or list these parameters in config.train.init_new, which then get initial values"
        )
    record = {"path": weights.source, "step": weights.step, "params": weights.name, "weights_sha256": weights.sha256}
    record |= {"new": found.new, "left": found.left}
    line = f"starting from {weights.source}, step {weights.step:,}, {weights.name}, sha256 {weights.sha256[:12]}"
    line += "".join(
        f"; {words}: {', '.join(paths)}"
        for words, paths in (("with initial values", found.new), ("not used", found.left))
        if paths
    )
    line += f"; other classes: {classes}" if classes and param_patterns.CLASS_EMBEDDING in found.new else ""
    differing = {field: pair for field, pair in differing.items() if not field.startswith("data.")}
    line += f"; changed: {config_changes.describe(differing)}" if differing else ""
    return InitialWeights(found.taken, record, line)


def _class_changes(weights: Weights, config: ConfigDict, class_names: Sequence[str]) -> str:
    """How the meaning of the class embedding's rows differs from that in `weights`; "" if it does not, or is unknown.

    The number of rows alone does not show it: ten classes and nine with one row for no class have equally many.
    """
    if not config.model.class_conditional:
        return ""
    then = config_changes.flatten(weights.config)
    counts = [then.get("data.num_classes", config.data.num_classes), config.data.num_classes]
    dropouts = [bool(then.get("model.label_dropout", config.model.label_dropout)), bool(config.model.label_dropout)]
    names = [{"class_names": tuple(each)} for each in (weights.class_names, class_names)]
    if counts[0] == counts[1] and dropouts[0] == dropouts[1]:
        return identity.class_changes(*names) if all(each["class_names"] for each in names) else ""
    rows = [f"{count}{' and no class' * dropout}" for count, dropout in zip(counts, dropouts, strict=True)]
    return f"{rows[0]} there, {rows[1]} here"


def _network_changes(source: dict[str, Any], config: dict[str, Any]) -> dict[str, list[Any]]:
    """Field -> [value of the source, value here] for each that differs and affects the network or the meaning of its output."""
    if not source:
        return {}
    fields = [{name: each.get(name, {}) for name in ("data", "model", "diffusion")} for each in (source, config)]
    found = {}
    for field, (before, after) in config_changes.changes(*fields).items():
        part = config_changes.rule_of(field).resume
        is_data = field.startswith("data.")
        if field in _DATA_SHAPES or (not is_data and part(before) != part(after)):
            found[field] = [before, after]
    return found


class SampleGrids:
    """Saves image grids of samples, samples/step_N.png, with the parameters and classes of config.sampling.

    Grids during training use few solver steps. The last one uses config.sampling if that takes no longer than the training.
    `logbook` gets them too. `class_names` are those of label 0, 1, ...; () if the data set has none.

    Raises:
      UsageError: the sampler of config.sampling cannot be built.
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
        self._quick, self._full = sampling_config.quick_config(config), sampling_config.few_images(config)
        self._samplers: dict[str, BatchedSampler] = {}
        with distributed.raise_on_all_processes():
            self._inputs = sampling_inputs(self._full) if config.train.sample_every else None

    def save(self, state: TrainState) -> None:
        """Save a grid with few solver steps."""
        self._save_grid(self._quick, state)

    def save_last(self, state: TrainState) -> str:
        """Save the grid of the finished run; return a log line with its path, or with the command to generate it."""
        done, full = f"done: {int(state.step):,} steps", self._full.sampling
        affordable = [
            config
            for config in (self._full, self._quick)
            if sampling_config.cost_in_steps(config) <= self._config.train.num_steps
        ]
        if not affordable:
            flags = sampling_config.changed_flags(self._full, self._quick)
            command = sampling_config.sample_command(self._run_folder, *flags, "--config.sampling.num_images=16")
            return (
                f"{done}; no image grid was saved, since it would take longer than the training; generate one with: {command}"
            )
        files = self._save_grid(affordable[0], state)
        where = f"see {' and '.join(map(str, files))}" if files else "no image grid was saved"
        if affordable[0] is self._full and files:
            return f"{done}; {where}"
        command = sampling_config.sample_command(self._run_folder)
        return f"{done}; {where}; {full.num_images} images with {full.sampler} in {full.num_steps:,} steps: {command}"

    def _save_grid(self, config: ConfigDict, state: TrainState) -> list[pathlib.Path]:
        step = int(state.step)
        try:
            generated = sampling_config.generate(
                config, self._sampler(config), params_of(config, state, self._mesh), self._inputs
            )
        except NonFiniteSamples as error:  # training continues: the loss is checked separately
            logger.info(f"no image grid for step {step:,}: {error}")
            return []
        given = self._inputs.given if self._inputs else None
        pictures = sample_files.pictures_of(
            generated,
            self._class_names,
            conditions=given.images if given else None,
            originals=given.originals if given else None,
            pixel_format=build.pixel_format(config),
        )
        files = [grid_file(self._run_folder, step, suffix) for suffix in pictures]
        with distributed.raise_on_all_processes():
            if distributed.is_primary_process():
                with paths.write_errors(self._folder):
                    storage.make_folder(self._folder, parents=False)
                    for file, image in zip(files, pictures.values(), strict=True):
                        image_grid.save_png(file, image)
        self._logbook.log_image(step, "samples", pictures[""])
        return files

    def _sampler(self, config: ConfigDict) -> BatchedSampler:
        key = config.sampling.to_json()
        if key not in self._samplers:
            self._samplers[key] = build.build_batched_sampler(config, self._mesh)
        return self._samplers[key]
