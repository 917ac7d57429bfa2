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
import pathlib
import statistics

import training_runs

OPTIMIZERS = ("adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine")
SEEDS = (0, 1, 2)
LAST_STEPS = 500  # the loss is the mean over these
TRAIN = "--config=configs/digits.py --config.train.sample_every=0 --config.train.trackers=()"
DATA = {
    "digits": "",
    "fashion_mnist": "--config.data.name=fashion_mnist --config.data.image_size=8 --config.data.random_flip=True "
    "--config.evaluation.num_heldout_images=300",
}
EVALUATE = (
    "--config.evaluation.class_proportions=uniform --config.evaluation.vlb_num_timesteps=40 "
    "--config.evaluation.metrics=('frechet','bits_per_dim')"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/optimizers", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2500, help="number of training steps")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--data", default="digits", choices=DATA, help="the images")
    parser.add_argument("--data_dir", default="", help="folder of TFDS's sets")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time, each with its share of the CPU cores")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder).absolute()
    if not options.table:
        data = f"{DATA[options.data]} --config.data.data_dir={options.data_dir} --config.train.num_steps={options.steps}"
        grid = [(optimizer, schedule, seed) for seed in SEEDS for optimizer in OPTIMIZERS for schedule in SCHEDULES]
        training_runs.run_all(folder, [run_of(*chosen, data) for chosen in grid], options.jobs)
    print_table(folder)


def run_of(optimizer: str, schedule: str, seed: int, data: str) -> training_runs.Run:
    chosen = f"--config.optimizer.name={optimizer} --config.optimizer.schedule={schedule} --config.seed={seed}"
    return training_runs.Run(f"{optimizer}_{schedule}_{seed}", f"{TRAIN} {data} {chosen}", EVALUATE)


def result(workdir: pathlib.Path) -> dict[str, float] | None:
    """Loss, Fréchet distance and bits/dim of a run; None if it is not done."""
    row = training_runs.report(workdir)
    if not row.keys() >= {"frechet", "bits/dim"}:
        return None
    loss = training_runs.last_mean(workdir, "train/loss", LAST_STEPS)
    return {"loss": loss, "distance": row["frechet"], "bits/dim": row["bits/dim"]}


def print_table(folder: pathlib.Path) -> None:
    """Means over the seeds that are done, and each of them."""
    print("| optimizer | schedule | loss | distance | bits/dim |\n|---|---|---|---|---|")
    for optimizer in OPTIMIZERS:
        for schedule in SCHEDULES:
            done = [found for seed in SEEDS if (found := result(folder / f"{optimizer}_{schedule}_{seed}"))]
            cells = []
            for name, digits in (("loss", 4), ("distance", 4), ("bits/dim", 3)):
                values = [f"{row[name]:.{digits}f}" for row in done]
                mean = statistics.mean(row[name] for row in done) if done else None
                cells.append(f"{mean:.{digits}f} ({' '.join(values)})" if done else "not run")
            print(f"| {optimizer} | {schedule} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
