"""Compares optimizers and learning-rate schedules on the digits: the table "Optimizer and learning rate" of docs/recipes.md.

    python benchmarks/optimizers.py --folder=runs/optimizers            # trains, evaluates and prints the table
    python benchmarks/optimizers.py --folder=runs/optimizers --table    # prints the table of the runs that are done

Trains configs/digits.py (2,500 steps) with each optimizer, each schedule and seeds 0, 1 and 2, one seed after the other, and
evaluates each run on 1,000 images, 100 of each digit, by DDIM in 50 steps, and on the 297 held-out images. Start it again
after a stop: runs that are done are kept, and one that was stopped is resumed.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPTIMIZERS = ("adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine")
SEEDS = (0, 1, 2)
LAST_STEPS = 500  # the loss is the mean over these
TRAIN = "--config=configs/digits.py --config.train.sample_every=0 --config.train.trackers=()"
EVALUATE = (
    "--mode=evaluate --config.evaluation.class_proportions=uniform --config.evaluation.vlb_num_timesteps=40 "
    "--config.evaluation.metrics=('frechet','bits_per_dim')"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/optimizers", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2500, help="number of training steps")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder).absolute()
    runs = [(optimizer, schedule, seed) for seed in SEEDS for optimizer in OPTIMIZERS for schedule in SCHEDULES]
    for number, (optimizer, schedule, seed) in enumerate(runs, 1):
        workdir = run_folder(folder, optimizer, schedule, seed)
        if options.table or result(workdir):
            continue
        started = time.monotonic()
        print(f"run {number} of {len(runs)}: {workdir.name}", file=sys.stderr, flush=True)
        chosen = f"--config.optimizer.name={optimizer} --config.optimizer.schedule={schedule} --config.seed={seed}"
        program(workdir, f"{TRAIN} {chosen} --config.train.num_steps={options.steps}")
        program(workdir, f"{EVALUATE} --output={workdir / 'eval'}")
        print(f"run {number} done in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print_table(folder)


def run_folder(folder: pathlib.Path, optimizer: str, schedule: str, seed: int) -> pathlib.Path:
    return folder / f"{optimizer}_{schedule}_{seed}"


def program(workdir: pathlib.Path, fields: str) -> None:
    """Runs main.py in this repository; its output goes to log.txt beside the run."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        command = [sys.executable, "main.py", f"--workdir={workdir}", *fields.split()]
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)


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
