"""--mode=evaluate: how good is the model? Numbers with their provenance, a table, pictures.

For each checkpoint, sampler and step count of config.evaluation: draw images, compare their features with those of
the real ones. For each checkpoint: the variational bound in bits/dim on the images held out, with the rate and
distortion of the code that it stands for. What held-out real images score stands beside it, as what can be hoped for.
"""

import hashlib
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import build, charts, check, visualize
from ddpm_jax.data.source import ImageSource
from ddpm_jax.metrics import features, frechet
from ddpm_jax.metrics import reference as reference_file
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.kernel import kernel_distance
from ddpm_jax.metrics.precision_recall import precision_recall
from ddpm_jax.metrics.statistics import gaussian_of, sample_warnings
from ddpm_jax.programs import reference, sample, weights
from ddpm_jax.programs.bound import measure_bound
from ddpm_jax.programs.flow import measure_flow
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import processes, randomness, report, workdir
from ddpm_jax.runtime import shards as shards_file
from ddpm_jax.runtime.errors import PersonError, UsageError
from ddpm_jax.runtime.logbook import Progress
from ddpm_jax.samplers.generate import Generator
from ddpm_jax.training.averages import std_of

DRAWN_METRICS = ("frechet", "kid", "inception_score", "precision_recall")  # of drawn images against real ones
METRICS = (*DRAWN_METRICS, "bits_per_dim", "flow_bits_per_dim")
NEIGHBOUR = 3  # of precision and recall


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
    run_folder = processes.prepare_workdir(folder, config.to_dict(), write=False, defaults=build.as_dict(defaults))
    target = pathlib.Path(output).expanduser().absolute() if output else workdir.evaluation_folder(run_folder)
    mesh, wanted = meshes.make_mesh(), config.evaluation.metrics
    with processes.together():
        cases = [(case, build.build_generator(case, mesh)) for case in sampling_cases(config)]
        held_out = held_out_source(config)
        comparison = Comparison(config, mesh) if set(wanted) & set(DRAWN_METRICS) else None
        meter = build.build_bound_meter(config, mesh) if "bits_per_dim" in wanted else None
        flow_meter = build.build_flow_meter(config, mesh) if "flow_bits_per_dim" in wanted else None
        if (meter or flow_meter) and held_out is None:
            raise UsageError("config.evaluation.held_out is empty: bits/dim needs images, name a split")

    rows, points = [], []
    if comparison and held_out:
        rows.append({"images": f"real, {held_out.split}", **comparison.of_source(held_out)})
        say(rows[-1])
    names = config.evaluation.averages or (config.sampling.weights,)
    for checkpoint_step, name in itertools.product(config.evaluation.checkpoint_steps, names):
        config.sampling.update(checkpoint_step=checkpoint_step, weights=name)
        params, step = weights.restore(config, run_folder, mesh)
        result = {
            "step": step,
            "weights": name,
            "weights_sha256": weights_digest(params),
            "config": config.to_dict(),
            "provenance": provenance(),
        }
        result["real"] = rows[0] if comparison and held_out else None
        if comparison:
            result |= {"reference": comparison.reference.provenance, "features": comparison.extractor.provenance, "drawn": []}
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
    with processes.together():
        if processes.is_writer():
            with sample.writing_to(target):
                table = report.markdown_table(rows)
                notes = warnings_of(config, comparison)
                (target / "table.md").write_text(table + "".join(f"\n{note}\n" for note in notes), encoding="utf-8")
                if "frechet" in wanted:
                    for file, picture in sweep_pictures(points, rows[0] if held_out else None).items():
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
    for name, least in (("num_images", NEIGHBOUR + 1), ("batch_size", 1), ("held_out_images", 0), ("bound_timesteps", 0)):
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


def held_out_source(config: ConfigDict) -> ImageSource | None:
    """The images that the model has not seen; None where the config names none."""
    if not config.evaluation.held_out:
        return None
    other = config.copy_and_resolve_references()
    other.data.split = config.evaluation.held_out
    return build.build_source(other, report=lambda line: print(line, file=sys.stderr, flush=True))


def draw_into_shards(
    config: ConfigDict, generator: Generator, params: Any, step: int, target: pathlib.Path
) -> shards_file.ImageShards:
    """Draw what the folder of this case does not hold yet; a run that was killed goes on where it stopped."""
    free = ("num_images", "batch_size", "keep", "checkpoint_step")
    identity = {name: value for name, value in config.sampling.to_dict().items() if name not in free} | {"step": step}
    identity["weights_sha256"] = weights_digest(params)
    number = config.sampling.num_images
    with processes.together():
        shards = shards_file.ImageShards(
            target / "images" / sample.name_of(config, step), identity, is_writer=processes.is_writer(), report=say_line
        )
        gaps = shards.missing(number) if processes.is_writer() else []
    bounds = processes.first_says([bound for gap in gaps for bound in (gap.start, gap.stop)])
    missing = list(zip(bounds[::2], bounds[1::2], strict=True))
    kept = number - sum(stop - start for start, stop in missing)
    if 0 < kept < number:
        say_line(f"{kept:,} of {number:,} images are there already")
    key, labels = randomness.purpose_key(config.sampling.seed, "sample"), build.sampling_labels(config)
    with Progress(number, unit="images", out=sys.stderr) as progress:
        tell = progress.update if processes.is_writer() else lambda images: None
        for start, stop in missing:
            some = None if labels is None else labels[start:stop]
            batches = generator.generate(
                params, key, num_images=stop - start, first_image=start, labels=some, report=sample.shifted(tell, start)
            )
            for batch in batches:
                with processes.together():
                    if processes.is_writer():
                        shards.write(start, batch.images, batch.labels)
                start += len(batch.images)
    return shards


class Comparison:
    """Of images with the real ones of config.data.split, through features.

    Raises:
      PersonError: config.evaluation.reference holds statistics of something else, or too little.
    """

    def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
        self.extractor = features.make_extractor(
            config.evaluation.features, weights=config.evaluation.weights, progress=Progress
        )
        self._config, self._mesh, self._wanted = config, mesh, config.evaluation.metrics
        if file := config.evaluation.reference:
            self.reference = reference_file.load(file)
            reference_file.check_matches(file, self.reference.provenance, reference.identity(config, self.extractor))
            if self.reference.features is None and set(self._wanted) & {"kid", "precision_recall"}:
                raise PersonError(f"{file} holds no features, which kid and precision_recall need: make it by --mode=reference")
        else:
            source = build.build_source(config, report=lambda line: print(line, file=sys.stderr, flush=True))
            self.reference = reference.measure(config, source, self.extractor, mesh)

    def of_source(self, source: ImageSource) -> dict[str, Any]:
        """Scores of all images of a source."""
        return self.of_batches(reference.batches_of(source, self._config.evaluation.batch_size), len(source))

    def of_images(self, images: np.ndarray) -> dict[str, Any]:
        """Scores of images, uint8 [N, H, W, C]."""
        size = self._config.evaluation.batch_size
        return self.of_batches((images[first : first + size] for first in range(0, len(images), size)), len(images))

    def of_batches(self, batches: Iterator[np.ndarray], count: int) -> dict[str, Any]:
        """Scores of `count` images that come in batches, uint8 [b, H, W, C]."""
        vectors, logits = reference.extract_all(self._config, self.extractor, self._mesh, batches, count)
        scores: dict[str, Any] = {"count": len(vectors)}
        try:
            if "frechet" in self._wanted:
                scores["frechet"] = frechet.frechet_distance(gaussian_of(vectors), self.reference.gaussian)
            if "kid" in self._wanted:
                distance = kernel_distance(self.reference.features, vectors)
                scores["kid"], scores["kid error"] = distance.mean, distance.standard_error
            if "inception_score" in self._wanted:
                if logits is None:
                    raise UsageError(f"{self.extractor.name} gives no logits: leave inception_score out of evaluation.metrics")
                scores["inception score"], scores["is deviation"], _ = inception_score(logits)
            if "precision_recall" in self._wanted:
                scores["precision"], scores["recall"] = precision_recall(self.reference.features, vectors, k=NEIGHBOUR)
        except (ValueError, PersonError) as error:  # of the reference's dimension, or too few
            raise PersonError(f"cannot compare {count:,} images: {error}") from error
        return scores


class RunningEvaluation:
    """Scores of images drawn while a model trains: of config.train.evaluate_images, by config.sampling's sampler.

    It draws from the keys of --mode=sample, and from none of training: a run is the same with it and without.

    Raises:
      UsageError: a field of config.evaluation is wrong, or none of its metrics is of drawn images.
    """

    def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
        check_evaluation(config)
        if not set(config.evaluation.metrics) & set(DRAWN_METRICS):
            raise UsageError(f"config.train.evaluate_every needs {' or '.join(DRAWN_METRICS)} in config.evaluation.metrics")
        if config.train.evaluate_images <= NEIGHBOUR:
            raise UsageError(f"config.train.evaluate_images is {config.train.evaluate_images}: it must be above {NEIGHBOUR}")
        self._config = config.copy_and_resolve_references()
        self._config.sampling.update(num_images=config.train.evaluate_images, keep=0)
        self._generator = build.build_generator(self._config, mesh)
        self._comparison = Comparison(config, mesh)

    def scores(self, params: Any) -> dict[str, float]:
        """Of images drawn with these weights: {"evaluation/frechet": ...}."""
        drawn = sample.draw_with_progress(self._config, self._generator, params)
        scores = self._comparison.of_images(drawn.images)
        return {f"evaluation/{name}": float(value) for name, value in scores.items()}


# Words and pictures.


def sampler_words(config: ConfigDict) -> str:
    """The sampler with what changes its images."""
    sampling = config.sampling
    options = {field: value for field, value in sample.options_of(config).items() if field != "spacing"}
    words = f"{sampling.sampler} {sampling.num_steps} {sampling.spacing}"
    return " ".join([words, *(f"{field}={value}" for field, value in options.items())])


def weights_digest(params: Any) -> str:
    """A fingerprint of the parameters: two runs of one config on other machines end with others at the same step."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf.addressable_data(0)))
    return digest.hexdigest()


def provenance() -> dict[str, Any]:
    """The program that measured."""
    return {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__, "platform": jax.default_backend()}


def warnings_of(config: ConfigDict, comparison: Comparison | None) -> list[str]:
    """What keeps the numbers from being compared with others."""
    if comparison is None:
        return []
    made_of, extractor = comparison.reference, comparison.extractor
    counted = (made_of.provenance or {}).get("images")
    published = extractor.name == "inception" and bool(extractor.provenance["weights_published"])
    notes = sample_warnings(config.evaluation.num_images, counted, made_of.gaussian.mean.size, published=published)
    if not published:
        notes.append(
            "a Fréchet distance falls as the number of images grows: this one compares only with one of as many, "
            f"{config.evaluation.num_images:,}"
        )
    if comparison.extractor.name != "inception":
        notes.append(f"features are {comparison.extractor.name}: the Fréchet distance is no FID")
    elif not comparison.extractor.provenance["weights_published"]:
        notes.append("Inception's weights are not the published ones: the Fréchet distance is no FID")
    return notes


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


def say_line(line: str) -> None:
    """Tell, once of all processes."""
    if processes.is_writer():
        print(line, file=sys.stderr, flush=True)


def say(row: dict[str, Any]) -> None:
    """Tell a result as soon as it is there."""
    words = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    say_line(" · ".join(words))
