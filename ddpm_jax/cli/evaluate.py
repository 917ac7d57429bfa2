"""--mode=evaluate: evaluation metrics with their provenance, as JSON, a table and charts.

For each checkpoint, sampler and number of steps of config.evaluation, generate images and compare their features with those of
real images. For each checkpoint, compute the variational bound in bits/dim of held-out images, with its rate and distortion.
Held-out real images are scored too, for comparison.

Each result is a file in eval/results/. An evaluation adds results and replaces only those that it measures again.
"""

import functools
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, condition_config, config_validation, evaluation_config, sampling_config
from ddpm_jax.cli import common
from ddpm_jax.data import condition
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.generation import generate_into_cache
from ddpm_jax.evaluation.held_out import HeldOut
from ddpm_jax.evaluation.heldout_likelihood import measure_ode_likelihood, measure_vlb
from ddpm_jax.evaluation.reconstruction import measure_reconstruction
from ddpm_jax.evaluation.results import Result, Results, join
from ddpm_jax.evaluation.sample_metrics import SAMPLE_METRICS, SCORES, SampleScorer
from ddpm_jax.evaluation.tables import markdown_table
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import distributed, exchange, paths, rng, run_record, workdir
from ddpm_jax.runtime.mesh import images_per_batch
from ddpm_jax.runtime.trackers import TrackerGroup, run_name
from ddpm_jax.sampling_conditions import SamplingInputs, sampling_inputs
from ddpm_jax.training import load_params

logger = logging.getLogger(__name__)

# Likelihoods of held-out images: builds the evaluator, and runs and summarizes it.
LIKELIHOODS = {
    "bits_per_dim": (evaluation_config.build_vlb_evaluator, measure_vlb),
    "ode_bits_per_dim": (evaluation_config.build_ode_likelihood_evaluator, measure_ode_likelihood),
}


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Run the evaluation of config.evaluation, write it to a folder, by default eval/ in the workdir, and print it."""
    measurement = evaluate(config, folder, output)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            measurement.print_summary()
    return 0


def evaluate(config: ConfigDict, folder: str, output: str = "") -> "Measurement":
    """Run the evaluation of config.evaluation and write it to a folder.

    Args:
      config: resolved; config.sampling is changed.
      folder: workdir of the run.
      output: folder of the results; "": eval/ in the workdir.

    Returns:
      The measurement with its results.

    Raises:
      ExpectedError: a field is invalid, or a data set, checkpoint or file cannot be read or written.
    """
    run_folder, mesh = common.open_run(config, folder, output, check=evaluation_config.check_evaluation)
    target = paths.output_path(output, workdir.evaluation_folder(run_folder))
    with distributed.raise_on_all_processes():
        fields = evaluation_config.params_fields(config)
        steps = common.checkpoint_steps(config, run_folder, config.evaluation.checkpoint_steps)
        load_params.check_available(workdir.checkpoint_folder(run_folder), steps, fields)
        cases = [(case, build.build_batched_sampler(case, mesh)) for case in sampling_cases(config)]
        evaluators = {kind: make(config, mesh) for kind, (make, _) in LIKELIHOODS.items() if kind in config.evaluation.metrics}
        trained_on = workdir.read_data_identity(run_folder)
        held_out = evaluation_config.find_held_out(config, trained_on)
        wanted = evaluation_config.metrics_of(config, held_out)
        if distributed.is_primary_process():
            paths.make_output_folder(target)
    is_compared = bool(set(wanted) & set(SAMPLE_METRICS))
    comparison = evaluation_config.build_scorer(config, mesh, held_out.compared, trained_on) if is_compared else None
    measurement = Measurement(config, run_folder, target, held_out)

    if comparison and held_out.source and not held_out.in_reference:
        measurement.of_real_images(comparison)
    names = config.train.trackers if distributed.is_primary_process() else ()
    with TrackerGroup(names, run_folder, fallback_file=f"{target}/step_N.json") as tracker:
        tracker.start(config.to_dict(), run_name(run_folder), None)
        for checkpoint_step, name in itertools.product(steps, fields):
            config.sampling.update(checkpoint_step=checkpoint_step, params=name)
            params, step = common.restore_params(config, run_folder, mesh)
            found = {"step": step, "weights": name, "weights_sha256": load_params.params_sha256(params)}
            added = []
            for case, generator in cases if comparison or "psnr" in wanted else ():
                case.sampling.params = name
                added += measurement.of_generated(case, generator, params, found, comparison)
            for kind, evaluator in evaluators.items() if held_out.source else ():
                added += measurement.of_held_out(kind, config, evaluator, params, found)
            with distributed.raise_on_all_processes():
                if distributed.is_primary_process():
                    measurement.write_reports()
                    for result in join(added):
                        report.record(tracker, result)
    return measurement


class Measurement:
    """The measurements of one call, written to `target`, the folder of the evaluation."""

    def __init__(self, config: ConfigDict, run_folder: pathlib.Path, target: pathlib.Path, held_out: HeldOut):
        self._config, self._run_folder, self._target, self._held_out = config, run_folder, target, held_out
        self._results = Results(target / "results")
        self._wanted = evaluation_config.metrics_of(config, held_out)
        self._added: list[Result] = []
        self._inputs: SamplingInputs | None = None  # the same for all samplers

    def of_real_images(self, comparison: SampleScorer) -> None:
        """Score the held-out real images; independent of the checkpoint."""
        source = self._held_out.source
        row = {"images": f"real, {source.split}", **comparison.of_source(source)}
        key = {"split": source.split, "images_sha256": self._held_out.sha256, "count": len(source)}
        self._add_scores("real", key, row, {"config": self._record(None)}, comparison, "real")

    def of_generated(
        self, case: ConfigDict, generator: Any, params: Any, found: dict[str, Any], comparison: SampleScorer | None
    ) -> list[Result]:
        """Score the images generated by one sampler."""
        number, counts, step = case.evaluation.num_images, comparison.classes.counts if comparison else None, found["step"]
        with distributed.raise_on_all_processes():
            self._inputs = inputs = self._inputs or sampling_inputs(case, counts)
        identity = sampling_config.cache_identity(case, self._trained(step), step, found["weights_sha256"], counts)
        identity |= inputs.identity
        cache = generate_into_cache(
            self._target / "images" / sampling_config.cache_name(case, identity),
            identity,
            generator,
            params,
            rng.purpose_key(case.sampling.seed, "sample"),
            inputs.cond,
            num_images=number,
        )
        row = {"images": "generated", "step": step, "weights": found["weights"], "sampler": sampling_config.sampler_label(case)}
        row["evaluations"] = generator.sampler.nfe
        row |= self._changed_column(case, found)
        own = exchange.own_part(number)
        batches = functools.partial(cache.batches, own.stop, images_per_batch(case.evaluation.batch_size), first=own.start)
        settings = {name: value for name, value in identity.items() if name != "class_counts"}
        added = self._of_psnr(case, row, found, settings, inputs, batches) if "psnr" in self._wanted else []
        if comparison is None:
            return added
        row |= comparison.of_cache(cache, number)
        classes = comparison.classes.report(inputs.labels)
        if classes and inputs.given and inputs.given.labels is not None:
            classes["proportions"] = "conditions"
        key = found | {"sampling": settings, "count": number}
        if classes:
            key["class_proportions"] = classes["proportions"]
        details = {
            "weights_sha256": found["weights_sha256"],
            "sampling": case.sampling.to_dict() | self._changed(case, found),
            "classes": classes,
            "config": self._record(step, case),
            "notes": comparison.notes(number) + sampling_config.sampling_warnings(case) + condition_notes(inputs),
        }
        return added + self._add_scores("generated", key, row, details, comparison, report.stem(step, found["weights"]))

    def _of_psnr(
        self,
        case: ConfigDict,
        row: dict[str, Any],
        found: dict[str, Any],
        settings: dict[str, Any],
        inputs: SamplingInputs,
        batches: Callable[[], Iterator[np.ndarray]],
    ) -> list[Result]:
        """Compare generated images with the originals of their condition images."""
        conditions, shape, given = build.build_condition(case), build.image_shape(case), inputs.given
        measured = measure_reconstruction(
            batches(),
            given.images,
            given.originals,
            first=exchange.own_part(case.evaluation.num_images).start,
            enlarge=lambda images: condition.enlarge(images, shape),
            condition_of=conditions.of_images and jax.jit(conditions.of_images),
            baseline="bicubic" if conditions.shape[:2] != shape[:2] else "condition",
        )
        row = row | measured.row
        log_row(row)
        key = found | {"sampling": settings, "count": row["count"]}
        details = {**measured.row, "conditions": given.description, "weights_sha256": found["weights_sha256"]}
        details |= {"config": self._record(found["step"], case), "notes": measured.notes + condition_notes(inputs)}
        added = [self._result("psnr", "psnr", key, row, details)]
        self._write(added, report.stem(found["step"], found["weights"]))
        return added

    def of_held_out(self, kind: str, config: ConfigDict, evaluator: Any, params: Any, found: dict[str, Any]) -> list[Result]:
        """Compute the likelihood of the held-out images: the variational bound, or the density under the ODE."""
        source, seed = self._held_out.source, config.sampling.seed
        number, conditions = config.evaluation.num_heldout_images, build.build_condition(config)
        cond_of = lambda batch, first: condition_config.batch_cond(config, conditions, batch, first_image=first)  # noqa: E731
        measured = LIKELIHOODS[kind][1](evaluator, params, source, num_images=number, seed=seed, cond_of=cond_of)
        if conditions:
            measured.notes.append(f"the likelihood is p(x | condition image), config.data.condition={config.data.condition}")
        row = {"images": f"real, {source.split}", "step": found["step"], "weights": found["weights"], **measured.row}
        row |= self._changed_column(config, found)
        log_row(row)
        key = found | {"split": source.split, "seed": seed, **self._changed(config, found)}
        key |= {name: measured.numbers[name] for name in measured.depends_on}
        details = {"split": source.split, **measured.numbers, "weights_sha256": found["weights_sha256"]}
        details |= {"config": self._record(found["step"]), "notes": measured.notes}
        added = [self._result(kind, kind, key, row, details)]
        self._write(added, report.stem(found["step"], found["weights"]), measured.picture)
        return added

    def write_reports(self) -> None:
        """Write reports, table and charts of all results in the folder."""
        with paths.write_errors(self._target):
            report.write(self._target, join(self._results.read()))

    def results(self) -> list[Result]:
        """The joined results of this call."""
        return join(self._added)

    def print_summary(self) -> None:
        """Print the table of this call, its notes, and the output files."""
        rows, notes = report.rows_and_notes(self.results())
        print(markdown_table(rows) + "".join(f"note: {note}\n" for note in notes), end="")
        print(f"files in {self._target}: {', '.join(sorted(file.name for file in self._target.iterdir()))}")
        print("table.md contains all results in this folder, including earlier ones")

    def _add_scores(
        self,
        kind: str,
        key: dict[str, Any],
        row: dict[str, Any],
        details: dict[str, Any],
        comparison: SampleScorer,
        prefix: str,
    ) -> list[Result]:
        """Add one result per metric, since later calls may compute metrics separately."""
        log_row(row)
        scores = {name for names in SCORES.values() for name in names}
        shared = {name: value for name, value in row.items() if name not in scores}
        details |= {"reference": comparison.reference.provenance or comparison.reference.identity()}
        details |= {"features": comparison.extractor.provenance}
        added = []
        for metric in (metric for metric in SAMPLE_METRICS if metric in self._wanted):
            own = shared | {name: row[name] for name in SCORES[metric]}
            added.append(self._result(kind, metric, key | comparison.key(row["count"]), own, dict(details)))
        self._write(added, prefix)
        return added

    def _result(self, kind: str, metric: str, key: dict[str, Any], row: dict[str, Any], details: dict[str, Any]) -> Result:
        notes = list(details.get("notes", ()))
        if kind != "generated" or not self._held_out.source:  # without held-out images no other row has these notes
            notes += self._held_out.notes
        return Result(kind, metric, key, row, details | {"notes": notes, "provenance": {metric: common.provenance()}})

    def _write(self, added: list[Result], prefix: str, picture: Any = None) -> None:
        self._added += added
        with distributed.raise_on_all_processes():
            if distributed.is_primary_process():
                for result in added:
                    with paths.write_errors(self._target):
                        file = self._results.add(result, prefix)
                        if picture is not None:
                            image_grid.save_png(file.with_suffix(".png"), picture)

    def _trained(self, step: int) -> dict[str, Any]:
        """The config with which the checkpoint of `step` was trained; config.json may have changed since."""
        return run_record.config_at(self._run_folder, step) or {}

    def _changed_column(self, config: ConfigDict, found: dict[str, Any]) -> dict[str, str]:
        """The column that lists changed fields; empty if there are none."""
        changed = ", ".join(f"{field}={value}" for field, value in self._changed(config, found).items())
        return {"changed": changed} if changed else {}

    def _changed(self, config: ConfigDict, found: dict[str, Any]) -> dict[str, Any]:
        """Fields that affect the results and differ from the config with which the checkpoint was trained."""
        return sampling_config.changed_fields(config, self._trained(found["step"]))

    def _record(self, step: int | None, case: ConfigDict | None = None) -> dict[str, Any]:
        """The training config up to `step`, with the sampling and evaluation settings of this call."""
        return run_record.report_config(self._run_folder, (case or self._config).to_dict(), step)


def sampling_cases(config: ConfigDict) -> list[ConfigDict]:
    """A config for each sampler and number of steps, with config.evaluation.num_images images."""
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


def condition_notes(inputs: SamplingInputs) -> list[str]:
    """A note on the condition images of generated images; empty without them."""
    return [f"each generated image has a condition image: {inputs.given.description}"] if inputs.given else []


def log_row(row: dict[str, Any]) -> None:
    """Log a result as soon as it is available."""
    cells = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    logger.info(" · ".join(cells))
