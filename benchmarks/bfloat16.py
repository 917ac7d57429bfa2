"""Compares training in bfloat16 with float32: the section "bfloat16 and float32" of docs/training.md.

    python benchmarks/bfloat16.py --folder=runs/bfloat16                  # configs/digits.py, 2,000 steps
    python benchmarks/bfloat16.py --folder=runs/bfloat16_t4000 --timesteps=4000
    ddpm-jax prepare --from=CIFAR10 --to=sets/cifar16 --size=16           # CIFAR10: a folder of its images
    python benchmarks/bfloat16.py --folder=runs/bfloat16_cifar --data=sets/cifar16 --steps=500

Trains the network with `model.dtype` float32 and bfloat16 and seeds 0, 1 and 2, evaluates each on 1,000 images by DDIM in 50
steps, prints the table, and writes losses.png and losses.json, the curves, to the folder. With --data a network of
1.0 million parameters learns the images of a prepared set. Start it again after a stop: runs that are done are kept.
"""

import argparse
import json
import pathlib
import statistics

import matplotlib.pyplot as plt
import training_runs

DTYPES = ("float32", "bfloat16")
SEEDS = (0, 1, 2)
LAST = 0.2  # the loss and the norm of the gradients are means over this part of the steps
DIGITS = "--config=configs/digits.py"
SMALL = (
    "--config=configs/cifar10.py --config.data.name=prepared --config.data.image_size=16 --config.model.unet.ch=32 "
    "--config.model.unet.ch_mult=(1,2) --config.model.unet.num_res_blocks=2 --config.model.unet.attn_resolutions=(8,) "
    "--config.optimizer.warmup_steps=100 --config.ema.decay=0.99 --config.sampling.sampler=ddim --config.sampling.num_steps=50 "
    "--config.evaluation.features=pixels --config.evaluation.num_images=1000"
)
TRAIN = (
    "--config.train.sample_every=0 --config.train.trackers=() --config.train.log_every=20 --config.train.checkpoint_every=500"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/bfloat16", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2000, help="number of training steps")
    parser.add_argument("--timesteps", type=int, default=1000, help="T")
    parser.add_argument("--data", default="", help="folder of a prepared set of 16x16 RGB images, instead of the digits")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time, each with its share of the CPU cores")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder).absolute()
    if not options.table:
        training_runs.run_all(folder, [run_of(options, dtype, seed) for seed in SEEDS for dtype in DTYPES], options.jobs)
    print_table(folder, options.steps)
    plot_losses(folder)


def run_of(options: argparse.Namespace, dtype: str, seed: int) -> training_runs.Run:
    data = f"{SMALL} --config.data.data_dir={pathlib.Path(options.data).absolute()}" if options.data else DIGITS
    chosen = f"--config.model.dtype={dtype} --config.seed={seed} --config.diffusion.num_timesteps={options.timesteps}"
    evaluate = "--config.evaluation.metrics=('frechet',)"
    return training_runs.Run(f"{dtype}_{seed}", f"{data} {TRAIN} {chosen} --config.train.num_steps={options.steps}", evaluate)


def measured(folder: pathlib.Path, dtype: str, seed: int, steps: int) -> dict[str, float] | None:
    """Loss, norm of the gradients and Fréchet distance of a run; None if it is not done."""
    workdir = folder / f"{dtype}_{seed}"
    row = training_runs.report(workdir)
    if "frechet" not in row:
        return None
    names = {"loss": "train/loss", "gradient norm": "train/grad_norm"}
    last = {name: training_runs.last_mean(workdir, scalar, int(LAST * steps)) for name, scalar in names.items()}
    return last | {"Fréchet distance": row["frechet"]}


def print_table(folder: pathlib.Path, steps: int) -> None:
    """The numbers of each dtype and seed, and the means over the seeds."""
    done = {(dtype, seed): measured(folder, dtype, seed, steps) for dtype in DTYPES for seed in SEEDS}
    print("| | dtype | seed 0 | seed 1 | seed 2 | mean |\n|---|---|---|---|---|---|")
    for name in ("loss", "gradient norm", "Fréchet distance"):
        for dtype in DTYPES:
            values = [row[name] for seed in SEEDS if (row := done[dtype, seed])]
            cells = [f"{value:.4g}" for value in values] + ["not run"] * (len(SEEDS) - len(values))
            mean = f"{statistics.mean(values):.4g}" if values else "not run"
            print(f"| {name} | {dtype} | {' | '.join(cells)} | {mean} |")


def plot_losses(folder: pathlib.Path) -> None:
    """The loss of every run over the steps, and the quotient of both dtypes at equal seeds."""
    curves = {
        f"{dtype}_{seed}": training_runs.history(folder / f"{dtype}_{seed}", "train/loss")
        for dtype in DTYPES
        for seed in SEEDS
        if (folder / f"{dtype}_{seed}" / "metrics.jsonl").exists()
    }
    (folder / "losses.json").write_text(json.dumps(curves))
    figure, (losses, quotient) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for dtype, color, style in zip(DTYPES, ("#1f5a96", "#b4532a"), ("-", "--"), strict=True):
        for seed in SEEDS:
            steps_and_losses = zip(*curves.get(f"{dtype}_{seed}", ((0, float("nan")),)), strict=True)
            losses.plot(*steps_and_losses, color=color, linestyle=style, linewidth=1, label="" if seed else dtype)
    for seed in SEEDS:
        pair = [dict(curves.get(f"{dtype}_{seed}", ())) for dtype in DTYPES]
        steps = sorted(pair[0].keys() & pair[1].keys())
        quotient.plot(steps, [pair[1][step] / pair[0][step] for step in steps], linewidth=1, label=f"seed {seed}")
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    quotient.axhline(1, color="#3c3c3c", linewidth=0.8)
    quotient.ticklabel_format(useOffset=False)
    quotient.set(xlabel="step", ylabel="loss in bfloat16 / loss in float32")
    losses.legend()
    quotient.legend()
    figure.savefig(folder / "losses.png", dpi=100)


if __name__ == "__main__":
    main()
