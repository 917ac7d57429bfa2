"""Compares optimizers and learning-rate schedules: the tables "Optimizer and learning rate" of docs/recipes.md.

    python benchmarks/optimizers.py --folder=runs/optimizers            # trains, evaluates and prints the table
    python benchmarks/optimizers.py --folder=runs/optimizers --table    # prints the table of the runs that are done
    python benchmarks/optimizers.py --folder=runs/optimizers_fashion --data=fashion_mnist --jobs=4   # four runs at a time

Trains configs/digits.py, or the same network on Fashion-MNIST at 8x8, for 2,500 steps with each optimizer, each schedule
and seeds 0, 1 and 2, one seed after the other, and evaluates each run on 1,000 images, 100 of each class, by DDIM in 50
steps, and on held-out images: the 297 of the digits, or the first 300. Start it again after a stop: runs that are done are
kept, and one that was stopped is resumed.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPTIMIZERS = ("adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine")
SEEDS = (0, 1, 2)
_free_cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
LAST_STEPS = 500  # the loss is the mean over these
TRAIN = "--config=configs/digits.py --config.train.sample_every=0 --config.train.trackers=()"
DATA = {
    "digits": "",
    "fashion_mnist": "--config.data.name=fashion_mnist --config.data.image_size=8 --config.data.random_flip=True "
    "--config.evaluation.num_heldout_images=300",
}
EVALUATE = (
    "--mode=evaluate --config.evaluation.class_proportions=uniform --config.evaluation.vlb_num_timesteps=40 "
    "--config.evaluation.metrics=('frechet','bits_per_dim')"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/optimizers", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2500, help="number of training steps")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--data", default="digits", choices=DATA, help="the images")
    parser.add_argument("--data_dir", default="", help="folder of TFDS's sets")
    parser.add_argument(
        "--jobs", type=int, default=1, help="number of runs at a time; with more than one, each has one CPU core"
    )
    options = parser.parse_args()
    folder = pathlib.Path(options.folder).absolute()
    runs = [(optimizer, schedule, seed) for seed in SEEDS for optimizer in OPTIMIZERS for schedule in SCHEDULES]
    todo = [run for run in runs if not options.table and not result(run_folder(folder, *run))]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for number, (name, took) in enumerate(pool.map(lambda run: train_and_evaluate(options, folder, *run), todo), 1):
            print(f"run {number} of {len(todo)}: {name} done in {took:.0f} s", file=sys.stderr, flush=True)
    print_table(folder)


def train_and_evaluate(options, folder: pathlib.Path, optimizer: str, schedule: str, seed: int) -> tuple[str, float]:
    """Train and evaluate one run; returns its name and seconds."""
    started, workdir = time.monotonic(), run_folder(folder, optimizer, schedule, seed)
    data = f"{DATA[options.data]} --config.data.data_dir={options.data_dir}"
    chosen = f"--config.optimizer.name={optimizer} --config.optimizer.schedule={schedule} --config.seed={seed}"
    one_core = options.jobs > 1
    program(workdir, f"{TRAIN} {data} {chosen} --config.train.num_steps={options.steps}", one_core)
    program(workdir, f"{EVALUATE} --output={workdir / 'eval'}", one_core)
    return workdir.name, time.monotonic() - started


def run_folder(folder: pathlib.Path, optimizer: str, schedule: str, seed: int) -> pathlib.Path:
    return folder / f"{optimizer}_{schedule}_{seed}"


def program(workdir: pathlib.Path, fields: str, one_core: bool) -> None:
    """Runs main.py in this repository; its output goes to a log beside the run."""
    workdir.mkdir(parents=True, exist_ok=True)
    core = _free_cores.pop() if one_core else None
    try:
        with (workdir.parent / f"{workdir.name}.log").open("a") as log:
            command = [sys.executable, "main.py", f"--workdir={workdir}", *fields.split()]
            pin = (lambda: os.sched_setaffinity(0, {core})) if one_core else None
            subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log, preexec_fn=pin)
    finally:
        if one_core:
            _free_cores.append(core)


def result(workdir: pathlib.Path) -> dict[str, float] | None:
    """Loss, Fréchet distance and bits/dim of a run; None if it is not done."""
    row: dict[str, float] = {}
    for report in (workdir / "eval" / "results").glob("step_*.json"):
        row |= json.loads(report.read_text())["row"]
    if not row.keys() >= {"frechet", "bits/dim"}:
        return None
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [
        line["train/loss"] for line in losses if line.get("train/loss") and line["step"] > losses[-1]["step"] - LAST_STEPS
    ]
    return {"loss": statistics.mean(losses), "distance": row["frechet"], "bits/dim": row["bits/dim"]}


def print_table(folder: pathlib.Path) -> None:
    """Means over the seeds that are done, and each of them."""
    print("| optimizer | schedule | loss | distance | bits/dim |\n|---|---|---|---|---|")
    for optimizer in OPTIMIZERS:
        for schedule in SCHEDULES:
            done = [found for seed in SEEDS if (found := result(run_folder(folder, optimizer, schedule, seed)))]
            cells = []
            for name, digits in (("loss", 4), ("distance", 4), ("bits/dim", 3)):
                values = [f"{row[name]:.{digits}f}" for row in done]
                mean = statistics.mean(row[name] for row in done) if done else None
                cells.append(f"{mean:.{digits}f} ({' '.join(values)})" if done else "not run")
            print(f"| {optimizer} | {schedule} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
