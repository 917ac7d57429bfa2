"""Several runs side by side: what differs in their configs, and their losses, scores and speed.

Reads the files of the workdirs. Needs no JAX, so that it starts at once and works on a machine without an accelerator.
"""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.evaluation.results import Result, Results, digest, join
from ddpm_jax.evaluation.tables import markdown_table
from ddpm_jax.plotting.score_charts import draw_scores
from ddpm_jax.runtime import run_record, workdir
from ddpm_jax.runtime.config_changes import flatten
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError, error_line
from ddpm_jax.runtime.trackers import jsonl, run_name

LOSS = "train/loss"
SPEEDS = ("perf/steps_per_second", "perf/images_per_second", "perf/mfu")
COUNTS = ("eval/count", "eval/num_compared", "eval/repeated")  # of the images of an evaluation; not scores


class Run(NamedTuple):
    """What the workdir of a run has.

    Attributes:
      name: the last two parts of the folder, or the whole path if two runs have the same.
      config: field -> value, and file of the user's own parts -> hash.
      rows: lines of metrics.jsonl.
      parameters: number of parameters; None if not recorded.
      results: results of --mode=evaluate.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    parameters: int | None
    results: list[Result]


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Reads the runs.

    Raises:
      InvalidArgumentError: fewer than two folders, or a repeated one.
      FileAccessError, InvalidDataError: a folder has no run, or a file is damaged.
    """
    paths = [workdir.absolute(folder) for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise InvalidArgumentError("compare needs the workdirs of two or more different runs, such as compare runs/a runs/b")
    names = [run_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read(name, path) for name, path in zip(names, paths, strict=True)]


def _read(name: str, folder: Path) -> Run:
    return Run(
        name,
        flatten(workdir.read_config(folder, advice="check its name")) | _own_files(folder),
        jsonl.read_metrics(folder),
        _number_of_parameters(folder / "parameters.txt"),
        join(Results(workdir.evaluation_folder(folder) / "results").read()),
    )


def _own_files(folder: Path) -> dict[str, str]:
    """File of the user's own parts -> hash of the code with which the last start trained."""
    starts = run_record.read_history(folder)
    versions = starts[-1].get("versions", {}) if starts else {}
    return {name: version for name, version in versions.items() if "." in name}  # no library has a dot in its name


def _number_of_parameters(file: Path) -> int | None:
    """The total in parameters.txt; None if the file is missing or damaged."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error
    total = re.search(r"^Total: (\d[\d,]*)", text, re.MULTILINE)
    return int(total[1].replace(",", "")) if total else None


def differing_fields(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A row for each config field that differs: field, and the value of each run; "not set" for an option that it lacks."""
    rows = []
    for field in sorted({field for run in runs for field in run.config}):
        values = [str(run.config[field]).replace("|", "/") if field in run.config else "not set" for run in runs]
        if len(set(values)) > 1:
            rows.append({"field": field} | {run.name: value for run, value in zip(runs, values, strict=True)})
    return rows


def training_summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run: steps, parameters, the last loss and scores that it logged, and the median of its speed."""
    rows = []
    for run in runs:
        last: dict[str, Any] = {}
        for row in run.rows:
            last |= {tag: value for tag, value in row.items() if value is not None}
        found = {"run": run.name, "steps": last.get("step"), "parameters": run.parameters}
        found |= {tag: last[tag] for tag in (LOSS, *scores_of(run)) if tag in last}
        for tag in SPEEDS:
            values = [row[tag] for row in run.rows if row.get(tag) is not None]
            found |= {tag: statistics.median(values)} if values else {}
        rows.append(found)
    order = ["run", "steps", "parameters", LOSS]
    order += sorted({tag for row in rows for tag in row if tag.startswith("eval/")}) + list(SPEEDS)
    return [{tag: row.get(tag) for tag in order if any(other.get(tag) is not None for other in rows)} for row in rows]


def evaluation_rows(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each result of --mode=evaluate that depends on a checkpoint, and notes on what cannot be compared."""
    rows, compared = [], set()
    for run in runs:
        for result in sorted(run.results, key=lambda result: (result.kind, str(result.row.get("step", "")).zfill(12))):
            if result.kind == "real" or "step" not in result.row:
                continue
            rows.append({"run": run.name} | {name: value for name, value in result.row.items() if name != "images"})
            if result.kind == "generated":
                reference, features = result.key["reference"], result.key["features"]
                compared.add(digest([reference, features]))
                rows[-1]["compared with"] = f"{reference.get('set')} {reference.get('split')}, {features.get('features')}"
    notes = []
    if len(compared) > 1:
        notes.append("These scores have different references or features: compare only rows that have the same.")
    if len({row["count"] for row in rows if "compared with" in row}) > 1:
        notes.append("Fréchet distances of different numbers of images cannot be compared.")
    return rows, notes


def scores_of(run: Run) -> list[str]:
    """The tags of scores and losses that a run logged in its evaluations."""
    return sorted({tag for row in run.rows for tag in row if tag.startswith("eval/") and tag not in COUNTS})


def report(runs: Sequence[Run]) -> str:
    """The comparison in Markdown."""
    fields, (evaluations, notes) = differing_fields(runs), evaluation_rows(runs)
    text = "## Config\n\n" + (markdown_table(fields) if fields else "The configs are the same.\n")
    text += f"\n## Training\n\n{markdown_table(training_summary(runs))}"
    if evaluations:
        text += f"\n## Evaluation\n\n{markdown_table(evaluations)}" + "".join(f"\n{note}\n" for note in notes)
    return text


def draw_curves(runs: Sequence[Run]) -> np.ndarray | None:
    """The loss and the scores of all runs over steps: uint8 [H, W, 3]; None if none has two logged steps."""
    names = [LOSS, *sorted({tag for run in runs for tag in scores_of(run)})]
    return draw_scores({run.name: run.rows for run in runs}, names, log_scores=(LOSS,))
