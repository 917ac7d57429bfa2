"""--mode=evaluate: how good is the model? Numbers with their provenance, a table, pictures.

For each checkpoint, sampler and step count of config.evaluation: generate images, and compare their features with those of
the real ones. For each checkpoint: the variational bound in bits/dim on the images held out, with the rate and
distortion of the code that it corresponds to. Held-out real images are scored too: what can be hoped for.

Each result is kept in eval/results/; an evaluation adds to those before and replaces only what it measures again.
"""

import functools
import itertools
import logging
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import build, config_validation, data_config
from ddpm_jax.cli import evaluation_report, generated, load_params, sample
from ddpm_jax.cli.bound import measure_bound
from ddpm_jax.cli.flow import flow_notes, measure_flow
from ddpm_jax.cli.held_out import HeldOut, find_held_out
from ddpm_jax.cli.sample_metrics import NUM_NEIGHBORS, PROPORTIONS, SAMPLE_METRICS, SCORES, SampleScorer, loggable_scalars
from ddpm_jax.diffusion import likelihood
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import distributed, paths, report, rng, run_record, versions, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.metric_logger import Progress, TensorBoardWriter
from ddpm_jax.runtime.results import Result, Results, join
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.user_messages import UsageError

logger = logging.getLogger(__name__)

BOUNDS = ("bits_per_dim", "ode_bits_per_dim")  # of images held out
METRICS = (*SAMPLE_METRICS, *BOUNDS)


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Measure what config.evaluation names; the exit code.

    Args:
      config: resolved.
      folder: workdir of the run that trained the model.
      output: where to write; by default the workdir's eval/.
      defaults: values of fields that the workdir's config is too old to have.

    Raises:
      UserError, UsageError: wrong fields, no checkpoint, no data set, an output folder that cannot be written.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        check_evaluation(config)
        workdir.read_config(folder)  # there must be a run
        sample.check_output(output)
    run_folder = distributed.prepare_workdir(folder, config.to_dict(), write=False, defaults=build.as_dict(defaults))
    target = paths.output_path(output, workdir.evaluation_folder(run_folder))
    mesh = meshes.make_mesh()
    with distributed.raise_on_all_processes():
        load_params.check_available(config, run_folder)
        cases = [(case, build.build_batched_sampler(case, mesh)) for case in sampling_cases(config)]
        named = config.evaluation.metrics
        meter = build.build_vlb_evaluator(config, mesh) if "bits_per_dim" in named else None
        flow_meter = build.build_ode_likelihood_evaluator(config, mesh) if "ode_bits_per_dim" in named else None
        trained_on = workdir.read_data_identity(run_folder)
        held_out = find_held_out(config, trained_on)
        wanted = metrics_of(config, held_out)
        if distributed.is_primary_process():
            paths.make_output_folder(target)
    is_compared = bool(set(wanted) & set(SAMPLE_METRICS))
    comparison = SampleScorer(config, mesh, held_out.compared, trained_on) if is_compared else None
    measurement = Measurement(config, run_folder, target, build.as_dict(defaults), held_out)

    if comparison and held_out.source and not held_out.in_reference:
        measurement.of_real_images(comparison)
    with TensorBoardWriter(run_folder, fallback_file=f"{target}/step_N.json") as events:
        for checkpoint_step, name in itertools.product(config.evaluation.checkpoint_steps, weights_of(config)):
            config.sampling.update(checkpoint_step=checkpoint_step, params=name)
            params, step = load_params.restore(config, run_folder, mesh)
            found = {"step": step, "weights": name, "weights_sha256": load_params.params_sha256(params)}
            added = []
            for case, generator in cases if comparison else ():
                case.sampling.params = name
                added += measurement.of_generated(case, generator, params, found, comparison)
            if meter and held_out.source:
                added += measurement.of_bound(config, meter, params, found)
            if flow_meter and held_out.source:
                added += measurement.of_flow(config, flow_meter, params, found)
            with distributed.raise_on_all_processes():
                if distributed.is_primary_process():
                    measurement.write_reports()
                    for result in join(added) if config.train.tensorboard else ():
                        evaluation_report.record(events, result)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            measurement.print_summary()
    return 0


class Measurement:
    """What one call measures, into the folder of results.

    Args:
      config: of the call.
      run_folder: of the run that is measured.
      target: folder of the evaluation.
      defaults: values of fields that the run's config is too old to have.
      held_out: images.
    """

    def __init__(
        self,
        config: ConfigDict,
        run_folder: pathlib.Path,
        target: pathlib.Path,
        defaults: dict[str, Any],
        held_out: HeldOut,
    ):
        self._config, self._run_folder = config, run_folder
        self._target, self._defaults, self._held_out = target, defaults, held_out
        self._results = Results(target / "results")
        self._wanted = metrics_of(config, held_out)
        self._added: list[Result] = []

    def of_real_images(self, comparison: SampleScorer) -> None:
        """Scores of the images held out, which are those of no checkpoint."""
        source = self._held_out.source
        row = {"images": f"real, {source.split}", **comparison.of_source(source)}
        key = {"split": source.split, "images_sha256": self._held_out.sha256, "count": len(source)}
        self._add_scores("real", key, row, {"config": self._record(None)}, comparison, "real")

    def of_generated(
        self, case: ConfigDict, generator: Any, params: Any, found: dict[str, Any], comparison: SampleScorer
    ) -> list[Result]:
        """Scores of images by one sampler."""
        number, counts = case.evaluation.num_images, comparison.class_counts
        identity = generated.identity(case, self._trained(found["step"]), found["step"], found["weights_sha256"], counts)
        shards = generated.generate_into_cache(
            case, generator, params, identity, counts, self._target, self._defaults.get("sampling", {})
        )
        row = {"images": "drawn", "step": found["step"], "weights": found["weights"], "sampler": sampler_words(case)}
        row["evaluations"] = generator.sampler.evaluations
        row |= self._changed_words(case, found)
        row |= comparison.of_batches(shards.batches(number, case.evaluation.batch_size), number)
        classes = comparison.classes(data_config.sampling_labels(case, counts))
        key = found | {"sampling": {name: value for name, value in identity.items() if name != "class_counts"}, "count": number}
        if classes:
            key["class_proportions"] = classes["proportions"]
        details = {
            "weights_sha256": found["weights_sha256"],
            "sampling": case.sampling.to_dict() | self._changed(case, found),
            "classes": classes,
            "config": self._record(found["step"], case),
            "notes": comparison.notes() + sample.sampling_warnings(case),
        }
        return self._add_scores("drawn", key, row, details, comparison, evaluation_report.stem(found["step"], found["weights"]))

    def of_bound(self, config: ConfigDict, meter: Any, params: Any, found: dict[str, Any]) -> list[Result]:
        """The variational bound of the images held out."""
        split = self._held_out.source.split
        bound = measure_bound(config, meter, params, self._held_out.source)
        row = {"images": f"real, {split}", "step": found["step"], "weights": found["weights"], **bound.row}
        row |= self._changed_words(config, found)
        key = found | {"split": split, "seed": config.sampling.seed, **self._changed(config, found)}
        key |= {name: bound.numbers[name] for name in ("images", "images_sha256", "terms_per_image", "decoder")}
        notes = [] if config.evaluation.vlb_decoder == "exact" else ["bits/dim by the tanh decoder of improved-diffusion"]
        return self._add_bound("bits_per_dim", key, row, {"split": split, **bound.numbers}, notes, bound.picture)

    def of_flow(self, config: ConfigDict, meter: Any, params: Any, found: dict[str, Any]) -> list[Result]:
        """The likelihood of the images held out under the probability flow."""
        split = self._held_out.source.split
        numbers, row = measure_flow(config, meter, params, self._held_out.source)
        row = {"images": f"real, {split}", "step": found["step"], "weights": found["weights"], **row}
        row |= self._changed_words(config, found)
        key = found | {"split": split, "seed": config.sampling.seed, **self._changed(config, found)}
        key |= {name: numbers[name] for name in ("images", "images_sha256", "trace", "tolerance")}
        return self._add_bound("ode_bits_per_dim", key, row, {"split": split, **numbers}, flow_notes(meter))

    def write_reports(self) -> None:
        """Reports, table and curves of all results in the folder."""
        with sample.translate_write_errors(self._target):
            evaluation_report.write(self._target, join(self._results.read()))

    def print_summary(self) -> None:
        """The table of this call, its notes, and where all results are."""
        rows, notes = evaluation_report.rows_and_notes(join(self._added))
        print(report.markdown_table(rows) + "".join(f"note: {note}\n" for note in notes), end="")
        print(f"in {self._target}: {', '.join(sorted(file.name for file in self._target.iterdir()))}")
        print("table.md has these results and all others that were measured into this folder")

    def _add_scores(
        self, kind: str, key: dict[str, Any], row: dict[str, Any], details: dict[str, Any], comparison: SampleScorer, words: str
    ) -> list[Result]:
        """A result for each metric, which another call may measure without the others."""
        say(row)
        scores = {name for names in SCORES.values() for name in names}
        shared = {name: value for name, value in row.items() if name not in scores}
        details |= {"reference": comparison.reference.provenance or comparison.reference.identity()}
        details |= {"features": comparison.extractor.provenance}
        added = []
        for metric in (metric for metric in SAMPLE_METRICS if metric in self._wanted):
            own = shared | {name: row[name] for name in SCORES[metric]}
            added.append(self._result(kind, metric, key | comparison.key(row["count"]), own, dict(details)))
        self._write(added, words)
        return added

    def _add_bound(
        self,
        kind: str,
        key: dict[str, Any],
        row: dict[str, Any],
        numbers: dict[str, Any],
        notes: list[str],
        picture: Any = None,
    ) -> list[Result]:
        say(row)
        details = numbers | {"weights_sha256": key["weights_sha256"], "config": self._record(key["step"]), "notes": notes}
        added = [self._result(kind, kind, key, row, details)]
        self._write(added, evaluation_report.stem(key["step"], key["weights"]), picture)
        return added

    def _result(self, kind: str, metric: str, key: dict[str, Any], row: dict[str, Any], details: dict[str, Any]) -> Result:
        notes = list(details.get("notes", ()))
        if kind != "drawn" or not self._held_out.source:  # without images held out there is no other row to note it at
            notes += self._held_out.notes
        return Result(kind, metric, key, row, details | {"notes": notes, "provenance": {metric: provenance()}})

    def _write(self, added: list[Result], words: str, picture: Any = None) -> None:
        self._added += added
        with distributed.raise_on_all_processes():
            if distributed.is_primary_process():
                for result in added:
                    with sample.translate_write_errors(self._target):
                        file = self._results.add(result, words)
                        if picture is not None:
                            image_grid.save_png(file.with_suffix(".png"), picture)

    def _trained(self, step: int) -> dict[str, Any]:
        """The config that the checkpoint of `step` was trained with. That of config.json may be younger, and change again."""
        return run_record.config_at(self._run_folder, step) or {}

    def _changed_words(self, config: ConfigDict, found: dict[str, Any]) -> dict[str, str]:
        """A column that tells such rows apart from those of the model as it was trained; empty where nothing is changed."""
        words = ", ".join(f"{field}={value}" for field, value in self._changed(config, found).items())
        return {"changed": words} if words else {}

    def _changed(self, config: ConfigDict, found: dict[str, Any]) -> dict[str, Any]:
        """Fields in which this call differs from the training of a checkpoint, which results depend on."""
        return generated.changed_fields(config, self._trained(found["step"]))

    def _record(self, step: int | None, case: ConfigDict | None = None) -> dict[str, Any]:
        """The config that the run was trained with until `step`, and how this call samples and measures."""
        config = (case or self._config).to_dict()
        return run_record.report_config(self._run_folder, config, step, self._defaults)


def check_evaluation(config: ConfigDict) -> None:
    """Raises a UsageError that names the field of config.evaluation that is wrong."""
    evaluation = config.evaluation
    for metric in evaluation.metrics:
        config_validation.check_choice("evaluation.metrics", metric, METRICS)
    if not evaluation.metrics:
        raise UsageError(f"config.evaluation.metrics is empty: choose of {', '.join(METRICS)}")
    config_validation.check_choice("evaluation.class_proportions", evaluation.class_proportions, PROPORTIONS)
    config_validation.check_choice("evaluation.vlb_decoder", evaluation.vlb_decoder, likelihood.DECODERS)
    for name, least in (("num_images", NUM_NEIGHBORS + 1), ("num_heldout_images", 0), ("vlb_num_timesteps", 0)):
        if evaluation[name] < least:
            raise UsageError(f"config.evaluation.{name} is {evaluation[name]}: it must be {least} or more")
    if not evaluation.checkpoint_steps:
        raise UsageError("config.evaluation.checkpoint_steps is empty: name steps, or -1 for the latest")
    for sampler in evaluation.samplers:
        config_validation.check_choice("evaluation.samplers", sampler, SAMPLERS)
    for steps in evaluation.num_steps:
        if not 1 <= steps <= (most := config.diffusion.num_timesteps):
            words = f"it must be from 1 to config.diffusion.num_timesteps, which is {most}"
            raise UsageError(f"config.evaluation.num_steps holds {steps}: {words}")
    load_params.check_names(config)


def metrics_of(config: ConfigDict, held_out: HeldOut) -> tuple[str, ...]:
    """Those of config.evaluation.metrics that can be measured: without images held out, no bits/dim.

    Raises:
      UsageError: none can.
    """
    wanted = tuple(metric for metric in config.evaluation.metrics if held_out.source or metric not in BOUNDS)
    if not wanted:
        raise UsageError(f"bits/dim needs images that were not trained on: {'; '.join(held_out.notes)}")
    return wanted


def weights_of(config: ConfigDict) -> tuple[str, ...]:
    """Names of the weights of each checkpoint to measure."""
    return tuple(config.evaluation.params) or (config.sampling.params,)


def sampling_cases(config: ConfigDict) -> list[ConfigDict]:
    """A config for each sampler and step count, drawing config.evaluation.num_images."""
    evaluation, sampling = config.evaluation, config.sampling
    cases = []
    for sampler, steps in itertools.product(
        evaluation.samplers or (sampling.sampler,), evaluation.num_steps or (sampling.num_steps,)
    ):
        case = config.copy_and_resolve_references()
        case.sampling.update(sampler=sampler, num_steps=steps, num_images=evaluation.num_images, num_intermediates=0)
        config_validation.check_config(case)
        cases.append(case)
    return cases


class PeriodicEvaluator:
    """Scores of images drawn while a model trains: of config.train.eval_num_samples, by config.sampling's sampler.

    It draws from the keys of --mode=sample, and from none of training: a run is the same with it and without.

    Raises:
      UsageError: a field of config.evaluation is wrong, or none of its metrics is of drawn images.
    """

    def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
        self._config = config.copy_and_resolve_references()
        self._config.sampling.update(num_images=config.train.eval_num_samples, num_intermediates=0)
        with distributed.raise_on_all_processes():
            check_evaluation(config)
            if not set(config.evaluation.metrics) & set(SAMPLE_METRICS):
                raise UsageError(f"config.train.eval_every needs {' or '.join(SAMPLE_METRICS)} in config.evaluation.metrics")
            if config.train.eval_num_samples <= NUM_NEIGHBORS:
                raise UsageError(
                    f"config.train.eval_num_samples is {config.train.eval_num_samples}: it must be above {NUM_NEIGHBORS}"
                )
            self._generator = build.build_batched_sampler(self._config, mesh)
        self._comparison = SampleScorer(config, mesh)

    def scores(self, params: Any) -> dict[str, float]:
        """Of images drawn with these weights: {"evaluation/frechet": ...}."""
        config, labels = self._config, data_config.sampling_labels(self._config, self._comparison.class_counts)
        with Progress(config.sampling.num_images, unit="images", out=sys.stderr) as progress:
            batches = self._generator.generate(
                params,
                rng.purpose_key(config.sampling.seed, "sample"),
                num_images=config.sampling.num_images,
                labels=labels,
                report=progress.update if distributed.is_primary_process() else lambda images: None,
            )
            images = np.concatenate([batch.images for batch in batches])
        return loggable_scalars(self._comparison.of_images(images))


def sampler_words(config: ConfigDict) -> str:
    """The sampler with what changes its images."""
    sampling = config.sampling
    options = {field: value for field, value in sample.nondefault_options(config).items() if field != "spacing"}
    words = f"{sampling.sampler} {sampling.num_steps} {sampling.spacing}"
    return " ".join([words, *(f"{field}={value}" for field, value in options.items())])


def provenance() -> dict[str, Any]:
    """The program that measured, and when."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return _program() | {"platform": jax.default_backend(), "date": date}


@functools.cache
def _program() -> dict[str, Any]:
    return {"ddpm_jax": ddpm_jax.__version__, "commit": versions.program_commit(), "jax": jax.__version__}


def say(row: dict[str, Any]) -> None:
    """Print a result as soon as it is there."""
    words = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    logger.info(" · ".join(words))
