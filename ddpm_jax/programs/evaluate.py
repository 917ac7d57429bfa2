"""--mode=evaluate: how good is the model? Numbers with their provenance, a table, pictures.

For each checkpoint, sampler and step count of config.evaluation: draw images, compare their features with those of
the real ones. For each checkpoint: the variational bound in bits/dim on the images held out, with the rate and
distortion of the code that it stands for. What held-out real images score stands beside it, as what can be hoped for.
"""

import itertools
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import build, charts, check, visualize
from ddpm_jax.programs import reference, sample, weights
from ddpm_jax.programs.bound import measure_bound
from ddpm_jax.programs.comparison import DRAWN_METRICS, NEIGHBOUR, Comparison, numbers_of
from ddpm_jax.programs.flow import measure_flow
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import paths, processes, report, run_record, workdir
from ddpm_jax.runtime import shards as shards_file
from ddpm_jax.runtime.errors import UsageError
from ddpm_jax.runtime.logbook import Events
from ddpm_jax.samplers.generate import Generator
from ddpm_jax.training.averages import std_of

METRICS = (*DRAWN_METRICS, "bits_per_dim", "flow_bits_per_dim")


@processes.one_job()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Measure what config.evaluation names; the exit code.

    Args:
      config: resolved.
      folder: workdir of the run that trained the model.
      output: where to write; by default the workdir's eval/.
      defaults: values of fields that the workdir's config is too old to have.

    Raises:
      PersonError, UsageError: wrong fields, no checkpoint, no data set, an output folder that cannot be written.
    """
    with processes.together():
        check.check_config(config)
        check_evaluation(config)
        workdir.read_config(folder)  # there must be a run
        sample.check_output(output)
    run_folder = processes.prepare_workdir(folder, config.to_dict(), write=False, defaults=build.as_dict(defaults))
    target = paths.output_path(output, workdir.evaluation_folder(run_folder))
    mesh, wanted = meshes.make_mesh(), config.evaluation.metrics
    with processes.together():
        cases = [(case, build.build_generator(case, mesh)) for case in sampling_cases(config)]
        held_out = reference.real_source(config, config.evaluation.held_out) if config.evaluation.held_out else None
        meter = build.build_bound_meter(config, mesh) if "bits_per_dim" in wanted else None
        flow_meter = build.build_flow_meter(config, mesh) if "flow_bits_per_dim" in wanted else None
        if (meter or flow_meter) and held_out is None:
            raise UsageError("config.evaluation.held_out is empty: bits/dim needs images, name a split")
    comparison = Comparison(config, mesh) if set(wanted) & set(DRAWN_METRICS) else None
    notes = [note for case, _ in cases for note in sample.sampling_notes(case)] + comparison.notes() if comparison else []

    rows, points, real = [], [], None
    if comparison and held_out and held_out.split != reference.split_of(config):  # nothing is near to images like themselves
        rows.append({"images": f"real, {held_out.split}", **comparison.of_source(held_out)})
        real = rows[-1]
        say(real)
    names = config.evaluation.averages or (config.sampling.weights,)
    with Events(run_folder, processes.say, beside=f"{target}/step_N.json") as events:
        for checkpoint_step, name in itertools.product(config.evaluation.checkpoint_steps, names):
            config.sampling.update(checkpoint_step=checkpoint_step, weights=name)
            params, step = weights.restore(config, run_folder, mesh)
            result = {
                "step": step,
                "weights": name,
                "weights_sha256": weights_digest(params),
                "config": run_record.report_config(run_folder, config.to_dict(), step, build.as_dict(defaults)),
                "provenance": provenance(),
                "real": real,
                "notes": notes,
            }
            if comparison:
                result |= {
                    "reference": comparison.reference.provenance,
                    "features": comparison.extractor.provenance,
                    "drawn": [],
                }
                for case, generator in cases:
                    case.sampling.weights = name
                    shards = draw_into_shards(case, generator, params, step, target)
                    row = {"images": "drawn", "step": step, "weights": name, "sampler": sampler_words(case)}
                    row["evaluations"] = generator.sampler.evaluations
                    number = config.evaluation.num_images
                    row |= comparison.of_batches(shards.batches(number, config.evaluation.batch_size), number)
                    result["drawn"].append({**row, "sampling": case.sampling.to_dict()})
                    rows.append(row)
                    points.append(row)
                    say(row)
            if meter:
                bound = measure_bound(config, meter, params, held_out)
                result["bits_per_dim"] = {"split": held_out.split, **bound.numbers}
                rows.append({"images": f"real, {held_out.split}", "step": step, "weights": name, **bound.row})
                say(rows[-1])
            if flow_meter:
                numbers, row = measure_flow(config, flow_meter, params, held_out)
                result["flow_bits_per_dim"] = {"split": held_out.split, **numbers}
                rows.append({"images": f"real, {held_out.split}", "step": step, "weights": name, **row})
                say(rows[-1])
            with processes.together():
                if processes.is_writer():
                    with sample.writing_to(target):
                        target.mkdir(parents=True, exist_ok=True)
                        stem = f"step_{step}" + ("" if name == "ema" else f"-{name}")
                        report.write_json(target / f"{stem}.json", result)
                        if meter:
                            visualize.save_png(target / f"{stem}-bound.png", bound.picture)
                    if config.train.tensorboard:
                        record(events, result)
    with processes.together():
        if processes.is_writer():
            with sample.writing_to(target):
                table = report.markdown_table(rows)
                (target / "table.md").write_text(table + "".join(f"\n{note}\n" for note in notes), encoding="utf-8")
                if "frechet" in wanted:
                    for file, picture in sweep_pictures(points, real).items():
                        visualize.save_png(target / file, picture)
            print(table + "".join(f"note: {note}\n" for note in notes), end="")
            print(f"in {target}: {', '.join(sorted(file.name for file in target.iterdir()))}")
    return 0


def check_evaluation(config: ConfigDict) -> None:
    """Raises a UsageError that names the field of config.evaluation that is wrong."""
    evaluation = config.evaluation
    for metric in evaluation.metrics:
        check.check_choice("evaluation.metrics", metric, METRICS)
    if not evaluation.metrics:
        raise UsageError(f"config.evaluation.metrics is empty: choose of {', '.join(METRICS)}")
    for name, least in (("num_images", NEIGHBOUR + 1), ("held_out_images", 0), ("bound_timesteps", 0)):
        if evaluation[name] < least:
            raise UsageError(f"config.evaluation.{name} is {evaluation[name]}: it must be {least} or more")
    if not evaluation.checkpoint_steps:
        raise UsageError("config.evaluation.checkpoint_steps is empty: name steps, or -1 for the latest")
    weights.check_names(config)


def sampling_cases(config: ConfigDict) -> list[ConfigDict]:
    """A config for each sampler and step count, drawing config.evaluation.num_images."""
    evaluation, sampling = config.evaluation, config.sampling
    cases = []
    for sampler, steps in itertools.product(
        evaluation.samplers or (sampling.sampler,), evaluation.num_steps or (sampling.num_steps,)
    ):
        case = config.copy_and_resolve_references()
        case.sampling.update(sampler=sampler, num_steps=steps, num_images=evaluation.num_images, keep=0)
        check.check_config(case)
        cases.append(case)
    return cases


def draw_into_shards(
    config: ConfigDict, generator: Generator, params: Any, step: int, target: pathlib.Path
) -> shards_file.ImageShards:
    """Draw what the folder of this case does not hold yet; a run that was killed goes on where it stopped."""
    identity = {name: value for name, value in config.sampling.to_dict().items() if name not in sample.FREE} | {"step": step}
    identity["weights_sha256"] = weights_digest(params)
    with processes.together():
        shards = shards_file.ImageShards(
            target / "images" / sample.name_of(config, step), identity, is_writer=processes.is_writer(), report=processes.say
        )
        gaps = shards.missing(config.sampling.num_images) if processes.is_writer() else []
    sample.generate_missing(
        config,
        lambda first: generator,
        params,
        gaps,
        build.sampling_labels(config),
        lambda first, batch: shards.write(first, batch.images, batch.labels),
    )
    return shards


class RunningEvaluation:
    """Scores of images drawn while a model trains: of config.train.evaluate_images, by config.sampling's sampler.

    It draws from the keys of --mode=sample, and from none of training: a run is the same with it and without.

    Raises:
      UsageError: a field of config.evaluation is wrong, or none of its metrics is of drawn images.
    """

    def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
        self._config = config.copy_and_resolve_references()
        self._config.sampling.update(num_images=config.train.evaluate_images, keep=0)
        with processes.together():
            check_evaluation(config)
            if not set(config.evaluation.metrics) & set(DRAWN_METRICS):
                raise UsageError(f"config.train.evaluate_every needs {' or '.join(DRAWN_METRICS)} in config.evaluation.metrics")
            if config.train.evaluate_images <= NEIGHBOUR:
                raise UsageError(
                    f"config.train.evaluate_images is {config.train.evaluate_images}: it must be above {NEIGHBOUR}"
                )
            self._generator = build.build_generator(self._config, mesh)
        self._comparison = Comparison(config, mesh)

    def scores(self, params: Any) -> dict[str, float]:
        """Of images drawn with these weights: {"evaluation/frechet": ...}."""
        drawn = sample.draw_with_progress(self._config, self._generator, params)
        return numbers_of(self._comparison.of_images(drawn.images))


# Words, curves and pictures.


def record(events: Events, result: dict[str, Any]) -> None:
    """The numbers of a report for TensorBoard, at its step: each sampler a curve, and the images held out another."""
    step, name = result["step"], result["weights"]
    for row in result.get("drawn", ()):
        events.scalars(step, numbers_of(row), f"evaluate/{name} {row['sampler']}".replace(" ", "-"))
    held_out = dict(result.get("bits_per_dim", {}))
    held_out |= {f"flow_{key}": value for key, value in result.get("flow_bits_per_dim", {}).items()}
    if held_out:
        events.scalars(step, numbers_of(held_out), f"evaluate/{name}")


def sampler_words(config: ConfigDict) -> str:
    """The sampler with what changes its images."""
    sampling = config.sampling
    options = {field: value for field, value in sample.options_of(config).items() if field != "spacing"}
    words = f"{sampling.sampler} {sampling.num_steps} {sampling.spacing}"
    return " ".join([words, *(f"{field}={value}" for field, value in options.items())])


def weights_digest(params: Any) -> str:
    """A fingerprint of the parameters: two runs of one config on other machines end with others at the same step."""
    return weights.digest(params)


def provenance() -> dict[str, Any]:
    """The program that measured."""
    return {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__, "platform": jax.default_backend()}


def sweep_pictures(points: list[dict[str, Any]], real: dict[str, Any] | None) -> dict[str, np.ndarray]:
    """Fréchet distance over network evaluations, and over the length of the average, where they differ: file -> picture."""
    flat = [(real["frechet"], f"{real['count']:,} held-out real images")] if real else []
    swept = len({point["weights"] for point in points}) > 1
    over = {"evaluations.png": ("network evaluations per image", {}), "lengths.png": ("length of the average, σ_rel", {})}
    for point in points:
        weights_words = f", {point['weights']}" if swept else ""
        label = f"{point['sampler'].split()[0]}, step {point['step']:,}{weights_words}"
        over["evaluations.png"][1].setdefault(label, []).append((point["evaluations"], point["frechet"]))
        if (std := std_of(point["weights"])) is not None:
            label = f"{point['sampler']}, step {point['step']:,}"
            over["lengths.png"][1].setdefault(label, []).append((std, point["frechet"]))
    pictures = {}
    for file, (x_label, lines) in over.items():
        if len({x for line in lines.values() for x, _ in line}) > 1:
            curves = [charts.Line(*np.array(sorted(line)).T, label, points=True) for label, line in lines.items()]
            pictures[file] = charts.draw(
                [charts.Chart("Sample quality", x_label, "Fréchet distance", curves, True, True, flat)]
            )
    return pictures


def say(row: dict[str, Any]) -> None:
    """Tell a result as soon as it is there."""
    words = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    processes.say(" · ".join(words))
