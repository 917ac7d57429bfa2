"""Draws the figures of docs/how-ddpm-works.md that no mode of the program draws, and prints the numbers beside them.

python docs/tutorial_figures.py unet --output=DIR                         # the network of configs/digits.py with its shapes
python docs/tutorial_figures.py steps --output=DIR                        # the true reverse step of one pixel
python docs/tutorial_figures.py gaussians --output=DIR                    # Gaussians in the plane and their distance
python docs/tutorial_figures.py loss --workdir=runs/digits --output=DIR   # the loss of a run over its steps

Each writes DIR/NAME.png. `make figures` calls them.
"""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax import build
from ddpm_jax.configs import digits
from ddpm_jax.diffusion.schedules import NoiseSchedule, make_schedule
from ddpm_jax.metrics.frechet import Gaussian, fit_gaussian, frechet_distance

BLUE, ORANGE, GREEN, GRAY, RED = "#4878a8", "#e08a3c", "#5a9e6f", "#8c8c8c", "#b5443c"
LIGHT = {"conv": "#e3e3e3", "block": "#cfe0f0", "attention": "#fbdcc0", "resample": "#d2ebd8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*FIGURES, "loss"])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the figure")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits"), help="of the run, for loss")
    options = parser.parse_args()
    figure = draw_loss(options.workdir) if options.name == "loss" else FIGURES[options.name]()
    options.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output / f"{options.name}.png", dpi=110)


# The network.


def layer_shapes() -> tuple[dict[str, tuple[int, ...]], int]:
    """Name of each layer of the network of configs/digits.py -> shape [H, W, C] of its output; the number of parameters."""
    config = digits.get_config()
    model = build.build_model(config)
    x_t, t, label = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)

    def layers(key: jax.Array) -> tuple[dict, dict]:
        variables = model.init(key, x_t, t, label)
        return model.apply(variables, x_t, t, label, capture_intermediates=True)[1]["intermediates"], variables["params"]

    outputs, params = jax.eval_shape(layers, jax.random.key(0))
    shapes = {name: layer["__call__"][0].shape[1:] for name, layer in outputs.items() if name != "__call__"}
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {name: shape for name, shape in shapes.items() if len(shape) == 3}, count


def draw_unet() -> Figure:
    """The U-Net of configs/digits.py: layers, shapes, skip connections and the path of t."""
    shapes, num_params = layer_shapes()
    print(f"{num_params:,} parameters")
    attended = {name.removesuffix("_attn") for name in shapes if name.endswith("_attn")}
    encoder = ["conv_in", "down0_block0", "down0_downsample", "down1_block0"]
    decoder = ["up0_block1", "up0_block0", "up1_block1", "up1_block0"]  # each gets the output of the encoder in its row
    words = {"conv_in": "convolution", "down0_downsample": "halve the resolution", "mid_attn": "attention"}

    figure, axes = plt.subplots(figsize=(9.6, 6.4), layout="constrained")
    left, middle, right, width = 0.0, 5.0, 10.0, 3.9

    def box(x: float, y: float, text: str, kind: str, shape: tuple[int, ...] | None) -> None:
        axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.3), width, 0.6, boxstyle="round,pad=0.04", fc=LIGHT[kind], ec=GRAY))
        label = text if shape is None else f"{text}\n{' × '.join(map(str, shape))}"
        axes.text(x, y, label, ha="center", va="center", fontsize=9.5)

    def arrow(start: tuple[float, float], end: tuple[float, float], **style: object) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.1} | style)

    def layer(x: float, y: float, name: str) -> None:
        kind = "resample" if "sample" in name else "conv" if name.startswith("conv") else "block"
        kind = "attention" if name in attended or name.endswith("_attn") else kind
        default = "residual block" + (", attention" if name in attended else "")
        box(x, y, words.get(name, default), kind, shapes[name])

    box(left, 5.0, "noisy image x_t", "conv", (8, 8, 1))
    box(right, 6.0, "estimate of the noise", "conv", shapes["conv_out"])
    for row, (down, up) in enumerate(zip(encoder, decoder, strict=True)):
        y, above = (4.0, 3.0, 1.0, 0.0)[row], (5.0, 4.0, 3.0, 1.0)[row]
        layer(left, y, down)
        layer(right, y, up)
        arrow((left, above - 0.34), (left, y + 0.34))
        arrow((right, y + 0.34), (right, y + 0.66))
        arrow((left + width / 2 + 0.05, y), (right - width / 2 - 0.05, y), color=BLUE, linestyle="--")
    box(right, 5.0, "norm, swish, convolution", "conv", shapes["conv_out"])
    box(right, 2.0, "double the resolution", "resample", shapes["up1_upsample"])
    arrow((right, 2.34), (right, 2.66))
    arrow((right, 5.34), (right, 5.66))
    for row, name in enumerate(("mid_block0", "mid_attn", "mid_block1")):
        layer((left, middle, right)[row], -1.2, name)
    arrow((left, -0.34), (left, -0.86))
    arrow((left + width / 2 + 0.05, -1.2), (middle - width / 2 - 0.05, -1.2))
    arrow((middle + width / 2 + 0.05, -1.2), (right - width / 2 - 0.05, -1.2))
    arrow((right, -0.86), (right, -0.34))
    axes.text(middle, 4.16, "skip connections: concatenated", color=BLUE, ha="center", fontsize=9.5)
    axes.text(
        middle,
        5.35,
        "t: sines and cosines, two dense layers,\nplus an embedding of the class: 64 numbers,\nan input of each residual block",
        ha="center",
        va="center",
        fontsize=9.5,
        bbox={"boxstyle": "round,pad=0.4", "fc": "#f4ecd8", "ec": GRAY},
    )
    axes.set(xlim=(left - 2.2, right + 2.2), ylim=(-1.7, 6.5))
    axes.axis("off")
    return figure


# Why the steps are small.


def true_step(schedule: NoiseSchedule, t: int, x_t: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The reverse step q(x_{t-1} | x_t) of images of one pixel, which is -1 or 1 with equal probability, by Bayes' rule.

    Returns:
      a grid [N] of x_{t-1}, the density on it [N], and its mean and variance by the formulas of the page.
    """
    images, x = np.array([-1.0, 1.0]), np.linspace(-8, 8, 40_001)
    acp, prev = schedule.alphas_cumprod[t], schedule.alphas_cumprod[t - 1]
    density = np.exp(-((x_t - np.sqrt(schedule.alphas[t]) * x) ** 2) / (2 * schedule.betas[t])) * sum(
        np.exp(-((x - np.sqrt(prev) * image) ** 2) / (2 * (1 - prev))) for image in images
    )
    of_image = np.exp(-((x_t - np.sqrt(acp) * images) ** 2) / (2 * (1 - acp)))  # q(x_start | x_t)
    estimate = (of_image @ images) / of_image.sum()
    mean = schedule.posterior_mean_coef1[t] * estimate + schedule.posterior_mean_coef2[t] * x_t
    variance = schedule.posterior_variance[t] + schedule.posterior_mean_coef1[t] ** 2 * (1 - estimate**2)
    return x, density / np.trapezoid(density, x), mean, variance


def log_gaussian(x: np.ndarray, mean: float, variance: float) -> np.ndarray:
    return -((x - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)


def distance_from_gaussian(schedule: NoiseSchedule, t: int, x_t: float) -> float:
    """KL, in nats, of the true step of one pixel from the Gaussian with its mean and variance."""
    x, density, mean, variance = true_step(schedule, t, x_t)
    log_density = np.log(np.maximum(density, 1e-300))
    terms = np.where(density > 1e-300, density * (log_density - log_gaussian(x, mean, variance)), 0.0)
    return float(np.trapezoid(terms, x))


def draw_steps() -> Figure:
    """One true reverse step from half of the chain, of chains of 4, 10 and 100 steps, and the Gaussian of its moments."""
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.0), layout="constrained")
    for axes, steps in zip(panels, (4, 10, 100), strict=True):
        schedule, t = make_schedule("cosine", steps), steps // 2 - 1
        x, density, mean, variance = true_step(schedule, t, 0.05)
        shown = (x > mean - 4.5 * variance**0.5) & (x < mean + 4.5 * variance**0.5)
        axes.plot(x[shown], density[shown], color=BLUE, lw=3, alpha=0.6, label="true step")
        axes.plot(x[shown], np.exp(log_gaussian(x, mean, variance))[shown], "k--", lw=1.2, label="Gaussian")
        kl = distance_from_gaussian(schedule, t, 0.05)
        axes.set_title(f"T = {steps}: KL {kl:.1g}", fontsize=11)
        axes.set(xlabel="xₜ₋₁", yticks=[], ylim=(0, None))
    panels[0].set_ylabel("density given xₜ = 0.05")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    for steps in (4, 10, 100, 1000, 4000):
        schedule = make_schedule("cosine", steps)
        print(f"T = {steps}: KL of the step in the middle {distance_from_gaussian(schedule, steps // 2 - 1, 0.05):.1g} nats")
    return figure


# The Fréchet distance.


def draw_gaussians() -> Figure:
    """Two sets of points in the plane with their Gaussians, in four cases, and the distance of each."""
    cases = {
        "the same": ((0, 0), (1, 1), 0.0),
        "shifted by (2, 1)": ((2, 1), (1, 1), 0.0),
        "twice as wide": ((0, 0), (2, 2), 0.0),
        "correlated": ((0, 0), (1, 1), 0.9),
    }
    figure, panels = plt.subplots(1, 4, figsize=(9.6, 2.9), layout="constrained", sharex=True, sharey=True)
    real = Gaussian(np.zeros(2), np.eye(2))
    generator = np.random.default_rng(0)
    for axes, (name, (mean, (a, b), correlation)) in zip(panels, cases.items(), strict=True):
        covariance = np.array([[a * a, correlation * a * b], [correlation * a * b, b * b]], float)
        other = Gaussian(np.array(mean, float), covariance)
        for gaussian, color, line in ((real, BLUE, "-"), (other, ORANGE, "--")):  # two ellipses may be equal
            points = generator.multivariate_normal(gaussian.mean, gaussian.covariance, 200)
            axes.plot(*points.T, ".", color=color, ms=2.5, alpha=0.6)
            values, vectors = np.linalg.eigh(gaussian.covariance)
            angle = np.degrees(np.arctan2(*vectors[::-1, 1]))
            size = 4 * np.sqrt(values)  # two standard deviations to each side
            axes.add_patch(Ellipse(gaussian.mean, size[1], size[0], angle=angle, fill=False, ec=color, ls=line, lw=2))
        distance = frechet_distance(real, other)
        axes.set_title(f"{name}: {distance:.2f}", fontsize=10)
        axes.set(aspect="equal", xlim=(-5, 5), ylim=(-5, 5), xticks=[], yticks=[])
        points = [generator.multivariate_normal(g.mean, g.covariance, 1000) for g in (real, other)]
        print(f"{name}: {distance:.4f}; from 1,000 points of each: {frechet_distance(*map(fit_gaussian, points)):.4f}")
    return figure


# The loss.


def read_loss(workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> [(step, value)] of the mean loss and of the loss in each quarter of the chain."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = ("train/loss", *(f"train/loss_q{quarter}" for quarter in (1, 2, 3, 4)))
    return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}


def draw_loss(workdir: pathlib.Path) -> Figure:
    """The training loss, and the loss of the four quarters of t."""
    curves = read_loss(workdir)
    figure, (mean, quarters) = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    mean.plot(*zip(*curves["train/loss"], strict=True), color="black")
    mean.set(xlabel="step", ylabel="L_simple per pixel", title="all t", ylim=(0, None))
    for quarter, color in zip((1, 2, 3, 4), (RED, ORANGE, GREEN, BLUE), strict=True):
        points = curves[f"train/loss_q{quarter}"]
        label = f"quarter {quarter}" + {1: ": least noise", 4: ": most noise"}.get(quarter, "")
        quarters.plot(*zip(*points, strict=True), color=color)
        quarters.annotate(label, points[-1], (6, 0), textcoords="offset points", color=color, va="center", fontsize=9)
    quarters.set(xlabel="step", yscale="log", title="by quarters of the chain")
    quarters.spines[["top", "right"]].set_visible(False)
    for name, points in curves.items():
        print(f"{name}: {points[0][1]:.3f} at step {points[0][0]:,}, {points[-1][1]:.3f} at step {points[-1][0]:,}")
    return figure


FIGURES = {"unet": draw_unet, "steps": draw_steps, "gaussians": draw_gaussians}  # those that need no run


if __name__ == "__main__":
    main()
