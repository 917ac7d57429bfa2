"""Output of --mode=evaluate: a report per checkpoint, a table, charts and TensorBoard events.

All of it is regenerated from the results in the folder on each call.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.evaluation.results import Result, digest, write_json
from ddpm_jax.evaluation.tables import markdown_table
from ddpm_jax.plotting import charts, image_grid, score_charts
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.config_changes import flatten
from ddpm_jax.runtime.trackers import Tracker
from ddpm_jax.training.ema_tracker import parse_power_std

logger = logging.getLogger(__name__)

KINDS = ("generated", "psnr", "bits_per_dim", "ode_bits_per_dim")  # these depend on a checkpoint
OTHERS = ("real", "images")  # these do not: held-out real images, and images of any origin (--mode=score)
STEP_SCORES = ("frechet", "sfid", "kid", "inception score", "precision", "recall", "psnr", "bits/dim")  # a chart each
ABOUT = "All results of this folder. Each is a file in results/; step_N.json has the details of a checkpoint."
# Fields of the keys that every table shows in its columns anyway.
SHOWN = (
    "step",
    "weights",
    "weights_sha256",
    "count",
    "num_compared",
    "sampling.step",
    "sampling.params",
    "sampling.weights_sha256",
)
# Shown in the column of the sampler, with the options of the sampler, sampling.SAMPLER.OPTION.
SHOWN_BY_SAMPLER = ("sampler", "num_steps", "spacing", "guidance_scale", "guidance_interval", "guidance_rescale")


def write(target: pathlib.Path, results: list[Result]) -> None:
    """Write step_N.json for each checkpoint, scores.json, table.md and the charts of all joined results of a folder.

    Raises:
      FileAccessError: a file cannot be written.
    """
    known = [result for result in results if result.kind in (*OTHERS, *KINDS)]
    if others := len(results) - len(known):
        logger.warning(f"skipping {others} results in {target} that another version of this program wrote: measure them again")
    results = sorted(known, key=_order)
    stems: dict[str, list[Result]] = {}
    for result in results:
        if result.kind in KINDS:
            stems.setdefault(stem(result.key["step"], result.key["weights"]), []).append(result)
    for name, some in stems.items():
        write_json(target / f"{name}.json", checkpoint_report(some, [result for result in results if result.kind == "real"]))
    if scored := [result.row | result.details for result in results if result.kind == "images"]:
        write_json(target / "scores.json", {"images": scored})
    write_atomically(target / "table.md", f"{table(results)}\n{ABOUT}\n")
    for file, picture in (sweep_charts(results) | step_charts(results)).items():
        image_grid.save_png(target / file, picture)


def stem(step: int, weights: str) -> str:
    """Prefix of the file names of a checkpoint's results."""
    return f"step_{step}" + ("" if weights == "ema" else f"-{weights}")


def checkpoint_report(results: list[Result], real: list[Result]) -> dict[str, Any]:
    """All results of one checkpoint and one choice of its parameters, and the scores of held-out real images."""
    key = results[0].key
    found: dict[str, Any] = {"step": key["step"], "weights": key["weights"]}
    for kind in KINDS:
        found[kind] = [result.row | result.details for result in results if result.kind == kind]
    references = [result.key["reference"] for result in results if result.kind == "generated"]
    found["real"] = [result.row | result.details for result in real if result.key["reference"] in references]
    return found


def table(results: list[Result]) -> str:
    """Results as a Markdown table, followed by their notes."""
    rows, notes = rows_and_notes(results)
    return markdown_table(rows) + "".join(f"\n{note}\n" for note in notes)


def rows_and_notes(results: list[Result]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a table and their notes. Notes are numbered if they differ between rows of one kind."""
    results = sorted(results, key=_order)
    extra, own = _distinguishing(results), [tuple(result.details.get("notes", ())) for result in results]
    notes = list(dict.fromkeys(note for some in own for note in some))
    kinds = [result.kind for result in results]
    rows = [result.row | extra[result.group] for result in results]
    if len(set(zip(kinds, own, strict=True))) == len(set(kinds)):
        return rows, notes
    for row, some in zip(rows, own, strict=True):
        row["notes"] = ", ".join(str(notes.index(note) + 1) for note in some)
    return rows, [f"{number}. {note}" for number, note in enumerate(notes, 1)]


def _distinguishing(results: list[Result]) -> dict[str, dict[str, Any]]:
    """For each result, the fields of its key that differ between rows of its kind and have no column of their own."""
    extra: dict[str, dict[str, Any]] = {}
    for kind in {result.kind for result in results}:
        some = {result.group: flatten(result.key) for result in results if result.kind == kind}
        hidden = (*SHOWN, *(f"sampling.{name}" for name in SHOWN_BY_SAMPLER))
        fields = {field for key in some.values() for field in key if field not in hidden and not _is_option(field)}
        differing = sorted(field for field in fields if len({str(key.get(field)) for key in some.values()}) > 1)
        for group, key in some.items():
            extra[group] = {_column(field): _cell(key.get(field)) for field in differing if key.get(field) is not None}
    return extra


def _is_option(field: str) -> bool:
    return field.startswith("sampling.") and field.count(".") > 1


def _column(field: str) -> str:
    return field.removeprefix("sampling.").removeprefix("features.")


def _cell(value: Any) -> str:
    text = str(value).replace("|", "/")
    return f"{text[:8]}.." if len(text) >= 64 else text


def _order(result: Result) -> tuple:
    """Sort key: real images first, then by checkpoint."""
    kind = (*OTHERS, *KINDS).index(result.kind)
    key, row = result.key, result.row
    return (kind >= len(OTHERS), key.get("step", 0), str(key.get("weights", "")), kind, str(row.get("sampler")),
            row.get("evaluations", 0), str(sorted(flatten(key).items())))  # fmt: skip


def sweep_charts(results: list[Result]) -> dict[str, np.ndarray]:
    """Charts of the Fréchet distance over network evaluations and over EMA length, if these vary: file name -> image.

    Distances that cannot be compared (different references or features) get separate charts.
    """
    over = {"evaluations.png": "network evaluations per image", "lengths.png": "EMA length σ_rel"}
    found: dict[str, dict[str, list[Result]]] = {file: {} for file in over}
    for result in results:
        if result.kind == "generated" and result.row.get("frechet") is not None:
            for file, groups in found.items():
                if file != "lengths.png" or parse_power_std(result.row["weights"]) is not None:
                    groups.setdefault(_comparable(result), []).append(result)
    real = {_comparable(result): result for result in results if result.kind == "real" and "frechet" in result.row}
    pictures = {}
    for file, groups in found.items():
        panels = [
            _chart(some, over[file], file == "lengths.png", real.get(group), len(groups) > 1) for group, some in groups.items()
        ]
        panels = [chart for chart in panels if len({x for line in chart.lines for x in line.x}) > 1]
        if panels:
            pictures[file] = charts.draw(panels)
    return pictures


def step_charts(results: list[Result]) -> dict[str, np.ndarray]:
    """Scores over steps, if several checkpoints were evaluated: file name -> image. A curve for each way of measuring."""
    curves: dict[str, list[Result]] = {}
    for result in results:
        if result.kind in ("generated", "psnr", "bits_per_dim"):
            key = {name: value for name, value in flatten(result.key).items() if not name.endswith(("step", "weights_sha256"))}
            curves.setdefault(digest(key), []).append(result)
    extra, rows_of = _distinguishing(results), {}
    for some in curves.values():
        first = some[0]
        others = {name: value for name, value in extra[first.group].items() if name not in ("step", "weights")}
        parts = [str(first.row.get("sampler", "")), first.row["weights"], *(f"{k} {v}" for k, v in others.items())]
        label = ", ".join(part for part in parts if part)
        while label in rows_of:
            label += "'"
        rows_of[label] = [result.row for result in some]
    picture = score_charts.draw_scores(rows_of, STEP_SCORES)
    return {} if picture is None else {"steps.png": picture}


def _comparable(result: Result) -> str:
    """A digest that is equal for comparable distances. Real images are compared regardless of their number."""
    return digest([result.key["reference"], result.key["features"]])


def _chart(some: list[Result], x_label: str, lengths: bool, real: Result | None, titled: bool) -> charts.Chart:
    swept = len({result.row["weights"] for result in some}) > 1
    extra = _distinguishing(some)
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in some:
        row, others = result.row, extra[result.group]
        if lengths:
            label, x = f"{row['sampler']}, step {row['step']:,}", parse_power_std(row["weights"])
        else:
            weights = f", {row['weights']}" if swept else ""
            label, x = f"{row['sampler'].split()[0]}, step {row['step']:,}{weights}", row["evaluations"]
            options = row["sampler"].split()[2:]
            if len({tuple(other.row["sampler"].split()[2:]) for other in some}) > 1:
                label += f", {' '.join(options)}"
        if len({other.row["count"] for other in some}) > 1:
            label += f", {row['count']:,} images"
        label += "".join(f", {name} {value}" for name, value in others.items())
        lines.setdefault(label, []).append((x, row["frechet"]))
    curves = [charts.Line(*np.array(sorted(points)).T, label, points=True) for label, points in lines.items()]
    flat = [(real.row["frechet"], f"{real.row['count']:,} held-out real images")] if real else []
    key = some[0].key
    title = "Sample quality"
    if titled:
        reference = key["reference"]
        title += f": {key['features']['features']}, {reference.get('set')} {reference.get('split') or ''}"
    return charts.Chart(title, x_label, "Fréchet distance", curves, True, True, flat)


def loggable_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a table row as scalars for logging: {"eval/frechet": ...}."""
    left_out = ("step", "evaluations")  # the x axis, and a constant
    return {
        f"eval/{name.replace(' ', '_')}": float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in left_out
    }


def record(tracker: Tracker, result: Result) -> None:
    """Write the numbers of a result to the trackers, one curve per sampler, data set and choice of features."""
    key = {name: value for name, value in result.key.items() if name not in ("step", "weights_sha256")}
    if "sampling" in key:
        key["sampling"] = {n: value for n, value in key["sampling"].items() if n not in ("step", "weights_sha256")}
    if result.kind == "generated":
        label = f"{result.row['sampler']} {result.row['count']} {key['features']['features']}"
    else:
        label = f"{result.kind} {result.row['images'].removeprefix('real, ')} {result.row['count']}"
    curve = f"{result.key['weights']} {label} {digest(key)[:6]}".replace(" ", "-").replace("/", "_").replace(":", "_")
    numbers = result.row if result.kind == "generated" else result.details
    if result.kind == "ode_bits_per_dim":
        numbers = {f"ode_{name}": value for name, value in numbers.items()}
    tracker.log_scalars(result.key["step"], loggable_scalars(numbers), f"evaluate/{curve}")
