"""How accurate is each sampler for a number of network evaluations? On a Gaussian mixture with a closed-form denoiser.

python benchmarks/mixture.py --plot=docs/images/samplers.png             # 4 minutes on 2 cores
python benchmarks/mixture.py --against=diffusers --schedule=cosine       # pip install torch diffusers

Deterministic samplers: the root mean square distance to the solution of the probability-flow ODE from the same x_T, which is
solved down to t=0, where all samplers return the network's x̂_0. Stochastic samplers: the sliced Wasserstein distance to the
mixture, and that of as many samples of the mixture itself (the noise floor). The order is the slope of the error over the two
largest numbers of evaluations. All in float64, so that the method is measured, not the rounding.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax.diffusion import schedules, spacings
from ddpm_jax.diffusion.parameterization import DenoiseFn, Parameterization
from ddpm_jax.plotting import filmstrip
from ddpm_jax.samplers import make_sampler
from ddpm_jax.samplers import sampler as chain

# Five Gaussians in three dimensions: weights, means and standard deviations.
WEIGHTS = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
MEANS = np.array([[-0.7, -0.5, 0.4], [0.6, 0.7, 0.1], [0.7, -0.4, -0.6], [-0.1, 0.2, -0.3], [-0.5, 0.8, 0.8]])
SCALES = np.array([0.15, 0.2, 0.1, 0.3, 0.12])
SHAPE = (1, 1, 3)

STEPS = 1000  # of the trained chain
BUDGETS = (5, 10, 20, 50, 100)
SPACINGS = ("trailing", "karras", "logsnr")
DETERMINISTIC = {  # deterministic samplers: label -> name, options
    "ddim": ("ddim", {}),
    "dpmpp_2m": ("dpmpp_2m", {}),
    "unipc": ("unipc", {}),
    "unipc, order 3": ("unipc", {"order": 3}),
    "heun": ("heun", {}),
    "ode": ("ode", {}),
}
STOCHASTIC = {  # stochastic samplers
    "ancestral, fixed_small": ("ancestral", {"variance": "fixed_small"}),
    "ancestral, fixed_large": ("ancestral", {"variance": "fixed_large"}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "heun, churn 10": ("heun", {"churn": 10.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", choices=schedules.SCHEDULES, default="linear", help="noise schedule of the trained chain")
    parser.add_argument("--against", choices=["diffusers"], help="also measure its samplers")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="network evaluations per sample")
    parser.add_argument("--ode_samples", type=int, default=1000, help="samples compared with the ODE")
    parser.add_argument("--mixture_samples", type=int, default=50_000, help="samples compared with the mixture")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="seeds of the samples compared with the mixture, to average errors over",
    )
    parser.add_argument("--only", choices=[*DETERMINISTIC, *STOCHASTIC], nargs="+", help="only these samplers; all by default")
    parser.add_argument("--spacing", choices=spacings.SPACINGS, help="only this spacing")
    parser.add_argument("--plot", help="PNG file for the curves")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    trained = schedules.make_schedule(options.schedule, STEPS)
    network = make_network(trained)
    keys = [jax.random.split(jax.random.key(seed), options.mixture_samples) for seed in range(options.seeds)]
    flow_keys = [keys[0][: options.ode_samples]]
    x_T = np.asarray(chain.per_image_noise(*flow_keys, 0, SHAPE))
    exact = solve_flow(trained, x_T)
    floor = np.mean([sliced_wasserstein(sample_mixture(options.mixture_samples, seed)) for seed in range(5)])

    def distance_to_flow(samples: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.sum(np.square(samples.reshape(exact.shape) - exact), axis=-1))))

    deterministic, stochastic = (
        {label: setting for label, setting in rows.items() if label in (options.only or rows)}
        for rows in (DETERMINISTIC, STOCHASTIC)
    )
    kinds = (  # (title, samplers, keys of each seed, error function, noise floor)
        ("distance from the probability-flow ODE", deterministic, flow_keys, distance_to_flow, 0.0),
        (f"sliced Wasserstein distance from the mixture; noise floor {floor:.1e}", stochastic, keys, sliced_wasserstein, floor),
    )
    if options.against:
        import mixture_diffusers

        mixture_diffusers.compare(trained, kinds, options.budgets, options.spacing)
        return
    panels = []
    for title, settings, seeds, error_of, least in kinds:
        rows = {}
        for label, setting in settings.items():
            for spacing in [options.spacing] if options.spacing else SPACINGS:
                samplers = [sampler_within(trained, setting, spacing, budget) for budget in options.budgets]
                errors = [
                    np.mean([error_of(run(sampler, network, keys)) for keys in seeds]) if sampler else np.nan
                    for sampler in samplers
                ]
                rows[label, spacing] = [(sampler.nfe if sampler else 0) for sampler in samplers], errors
        print_table(title, rows, options.budgets, least)
        panels.append((title, rows, least))
    if options.plot:
        plot(options.plot, panels)


# The mixture.


def exact_denoiser(x_t: jax.Array, signal: jax.Array, spread: jax.Array) -> jax.Array:
    """E[x_0 | x_t], x_t = signal x_0 + spread eps: [..., 3]. For each component by Bayes' rule for Gaussians,

    m_i + signal s_i² / v_i (x_t - signal m_i),   v_i = signal² s_i² + spread²,

    weighted by the posterior of the component, proportional to w_i N(x_t; signal m_i, v_i).
    """
    variance = jnp.square(signal * SCALES) + jnp.square(spread)
    difference = x_t[..., None, :] - signal * jnp.asarray(MEANS)
    log_weight = jnp.log(WEIGHTS) - 1.5 * jnp.log(variance) - 0.5 * jnp.sum(jnp.square(difference), axis=-1) / variance
    means = jnp.asarray(MEANS) + (signal * np.square(SCALES) / variance)[:, None] * difference
    return jnp.sum(jax.nn.softmax(log_weight)[..., None] * means, axis=-2)


def make_network(trained: schedules.NoiseSchedule) -> DenoiseFn:
    """(x_t, t [B], all equal) -> x_start: the output of a perfect network for the mixture."""
    signals, spreads = trained.sqrt_alphas_cumprod, trained.sqrt_one_minus_alphas_cumprod

    def network(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return exact_denoiser(x_t, *(jnp.asarray(table)[t[0]] for table in (signals, spreads)))

    return network


def solve_flow(trained: schedules.NoiseSchedule, x_T: np.ndarray, steps: int = 4000) -> np.ndarray:
    """The probability-flow ODE from T-1 down to t=0, followed by x̂_0: the classical Runge-Kutta method in log sigma.

    In x / sqrt(alphas_cumprod) it is dx / d log sigma = x - E[x_0 | x]. Half the steps change the samples by less than 1e-10.
    """
    sigmas = np.geomspace(*trained.sqrt_recipm1_alphas_cumprod[[-1, 0]], 2 * steps + 1)
    signals, spreads = trained.sqrt_alphas_cumprod, trained.sqrt_one_minus_alphas_cumprod
    h = np.log(sigmas[2] / sigmas[0])

    def slope(x, sigma):
        signal = 1 / jnp.sqrt(1 + sigma**2)
        return x - exact_denoiser(signal * x, signal, signal * sigma)

    def step(x, interval):
        start, middle, end = interval
        k1 = slope(x, start)
        k2 = slope(x + h / 2 * k1, middle)
        k3 = slope(x + h / 2 * k2, middle)
        k4 = slope(x + h * k3, end)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    x, _ = jax.jit(lambda x: jax.lax.scan(step, x, (sigmas[:-2:2], sigmas[1:-1:2], sigmas[2::2])))(x_T / signals[-1])
    return np.asarray(exact_denoiser(signals[0] * x, signals[0], spreads[0])).reshape(-1, 3)


def sample_mixture(count: int, seed: int) -> np.ndarray:
    """Samples of the mixture: [count, 3]."""
    random = np.random.default_rng(seed)
    component = random.choice(len(WEIGHTS), size=count, p=WEIGHTS)
    return MEANS[component] + SCALES[component, None] * random.normal(size=(count, 3))


def sliced_wasserstein(samples: np.ndarray, directions: int = 32) -> float:
    """Root mean square, over directions, of the Wasserstein-2 distance between samples and mixture along each.

    Along a direction the mixture is a one-dimensional mixture of five Gaussians; its quantiles are interpolated.
    """
    samples = np.asarray(samples).reshape(-1, 3)
    units = np.random.default_rng(0).normal(size=(directions, 3))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    grid, levels = np.linspace(-4, 4, 8001), (np.arange(len(samples)) + 0.5) / len(samples)
    squares = []
    for unit in units:
        below = np.asarray(jax.scipy.stats.norm.cdf((grid[:, None] - MEANS @ unit) / SCALES)) @ WEIGHTS
        inside = np.concatenate([[True], np.diff(below) > 0])
        squares.append(np.mean(np.square(np.sort(samples @ unit) - np.interp(levels, below[inside], grid[inside]))))
    return float(np.sqrt(np.mean(squares)))


# The samplers.


def sampler_within(
    trained: schedules.NoiseSchedule, setting: tuple[str, dict], spacing: str, budget: int
) -> chain.Sampler | None:
    """The sampler with the most steps within `budget` evaluations; None if one step needs more."""
    name, options = setting
    options = {"variance": "fixed_small"} | options
    parameterization = Parameterization("x_start", options.pop("variance"), clip_denoised=False)
    for num_steps in range(budget, 0, -1):
        timesteps = spacings.spaced_timesteps(trained.num_timesteps, num_steps, spacing, schedule=trained)
        sampler = make_sampler(name, schedules.respace(trained, timesteps), parameterization, trained=trained, **options)
        if sampler.nfe <= budget:
            return sampler
    return None


def run(sampler: chain.Sampler, network: DenoiseFn, keys: jax.Array) -> np.ndarray:
    """Samples [B, 3], one for each key."""
    return np.asarray(jax.jit(lambda keys: chain.sample(sampler, network, keys, SHAPE).x)(keys)).reshape(-1, 3)


# Output.


def order(evaluations: list[int], errors: list[float]) -> float:
    """The slope between the last two errors."""
    return float(-np.diff(np.log(errors[-2:]))[0] / np.diff(np.log(evaluations[-2:]))[0])


def print_table(title: str, rows: dict, budgets: list[int], floor: float) -> None:
    """Prints one Markdown row per sampler and spacing."""
    print(f"\n{title}\n\n| sampler | spacing | {' | '.join(map(str, budgets))} | order |\n|{'---|' * (len(budgets) + 3)}")
    for (label, spacing), (evaluations, errors) in rows.items():
        cells = [f"{error:.1e}" if np.isfinite(error) else "" for error in errors]
        slope = f"{order(evaluations, errors):.1f}" if len(errors) > 1 and errors[-1] > 2 * floor else "at the floor"
        print(f"| {label} | {spacing} | {' | '.join(cells)} | {slope} |")


COLORS = ("#1f5a96", "#b4532a", "#3c3c3c", "#6b8f3a", "#8a4f9e", "#c99a2e")


def plot(file: str, panels: list) -> None:
    """One panel per kind of sampler; each sampler with its best spacing at the largest budget."""
    figure = Figure(figsize=(12, 5), dpi=110, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, rows, floor) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        labels = list(dict.fromkeys(label for label, _ in rows))
        for label, color in zip(labels, COLORS, strict=False):
            spacing = min((s for name, s in rows if name == label), key=lambda s: rows[label, s][1][-1])
            evaluations, errors = rows[label, spacing]
            text = f"{label} ({spacing}), order {order(evaluations, errors):.1f}"
            axes.loglog(evaluations, errors, "o-", color=color, label=text, linewidth=1.6, markersize=4)
        if floor:
            axes.axhline(floor, color=filmstrip.NEUTRAL, linestyle=":", linewidth=1.2)
            axes.text(5, 0.92 * floor, "as many samples of the mixture itself", color=filmstrip.INK, size=9, va="top")
        axes.set_title(title.split(";")[0], color=filmstrip.INK, size=12, loc="left")
        axes.set_xlabel("network evaluations per sample", color=filmstrip.INK)
        axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axes.xaxis.set_minor_locator(filmstrip.NullLocator())
        axes.grid(color=filmstrip.FAINT)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, labelcolor="linecolor", frameon=False, loc="upper right")
    canvas.draw()
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    print(f"\ncurves in {file}")


if __name__ == "__main__":
    main()
