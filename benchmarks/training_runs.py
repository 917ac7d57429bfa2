"""Trains and evaluates runs by main.py, several at a time: shared by the benchmarks that compare trained networks."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Run(NamedTuple):
    """A run of a comparison.

    Attributes:
      name: folder of its workdir.
      train: flags of training, separated by spaces.
      evaluate: flags of the evaluation.
    """

    name: str
    train: str
    evaluate: str


def run_all(folder: pathlib.Path, runs: Sequence[Run], jobs: int) -> None:
    """Train and evaluate the runs that are not done in `folder`; one that was stopped is resumed.

    Args:
      folder: parent of the workdirs and of their logs.
      runs: in the order of their start.
      jobs: number of runs at a time; with more than one, each has its share of the CPU cores.
    """
    todo = [run for run in runs if not report(folder / run.name)]
    cores = sorted(os.sched_getaffinity(0)) if jobs > 1 and hasattr(os, "sched_getaffinity") else []
    free = [cores[job::jobs] for job in range(jobs)]

    def train_and_evaluate(run: Run) -> tuple[str, float]:
        started, share = time.monotonic(), free.pop()
        try:
            _program(folder / run.name, run.train, share)
            _program(folder / run.name, f"--mode=evaluate {run.evaluate} --output={folder / run.name / 'eval'}", share)
        finally:
            free.append(share)
        return run.name, time.monotonic() - started

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for number, (name, took) in enumerate(pool.map(train_and_evaluate, todo), 1):
            print(f"run {number} of {len(todo)}: {name} done in {took:.0f} s", file=sys.stderr, flush=True)


def _program(workdir: pathlib.Path, fields: str, cores: Sequence[int]) -> None:
    """Runs main.py in this repository; its output goes to a log beside the run."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        command = [sys.executable, "main.py", f"--workdir={workdir}", *fields.split()]
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log, preexec_fn=pin)


def report(workdir: pathlib.Path) -> dict[str, float]:
    """The metrics of the run's evaluation, by their names in the report; {} before it."""
    row: dict[str, float] = {}
    for path in (workdir / "eval" / "results").glob("step_*.json"):
        row |= json.loads(path.read_text())["row"]
    return row


def history(workdir: pathlib.Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar of metrics.jsonl."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def last_mean(workdir: pathlib.Path, name: str, steps: int) -> float:
    """The mean of a scalar over the last `steps` steps of a run."""
    values = history(workdir, name)
    chosen = [value for step, value in values if step > values[-1][0] - steps]
    return sum(chosen) / len(chosen)
