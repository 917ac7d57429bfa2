"""--mode=visualize: figures of the forward and the reverse process, as filmstrips, or a page to explore them in a browser.

forward.png shows real images being noised above curves of the noise schedule; it needs no network. reverse.png shows images
being generated, with the predicted x_start (pred_xstart) at each stage. chain.png shows both directions in one row. images.npz
has the arrays that they show, in the type and range of the data. forward.webp, reverse.webp and chain.webp (or .gif) are
animations of the same chains in more stages.

Each image has one sample of the noise ε ~ N(0, I), and each column is q_sample(x_start, t, ε), the network input in training.
The Markov chain would add new noise at each step, so that the columns would flicker; with a fixed ε only the amounts of signal
and noise change, as in the closed form (6). The reverse chain of a row starts from the same ε, so that both halves of chain.png
meet. The figures state this, the sampler of the reverse chain, and the class given to a conditional model.

With format html, explorer.html has all of this and more, to be moved and played: see `explorer_config`.
"""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import (
    animation_config,
    build,
    explorer_config,
    explorer_identity,
    explorer_network,
    sampling_config,
    visualize_config,
)
from ddpm_jax.cli import common
from ddpm_jax.data.source import Batch
from ddpm_jax.diffusion import conditioning, gaussian, vlb
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.spacings import trailing_timesteps
from ddpm_jax.evaluation import manifest
from ddpm_jax.evaluation.sample_files import trajectory_images
from ddpm_jax.plotting import animation, filmstrip, image_grid
from ddpm_jax.runtime import distributed, npz, paths, run_record, workdir
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.sampling_conditions import sampling_inputs
from ddpm_jax.training import load_params

FIGURES = [f"{name}.{ending}" for name in ("forward", "reverse", "chain") for ending in ("png", *animation.FORMATS)]
OUTPUTS = (*FIGURES, "images.npz")
PAGE = "explorer.html"
# Fields of config.visualize that determine the figures.
FIGURE_FIELDS = ("num_images", "num_stages", "start_index", "animation", "animation_frames", "animation_seconds")
CHAINS_ON_A_SLIDE = 3  # rows of chain.png
CURVE_POINTS = 1000  # largest number of timesteps at which the curves are computed
ODE_SOLVERS = ("dpmpp_2m", "unipc", "ode")  # samplers that never add noise
ONE_NOISE = (
    r"Forward: each row has one noise $\epsilon$, the same in all columns; the Markov chain adds new noise at every step."
)


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Write the figures of config.visualize and config.sampling; only forward.png if there is no checkpoint."""
    run_folder, mesh = common.open_run(config, folder, output, check=visualize_config.check_visualize, exists=False)
    config = visualize_config.with_few_images(config)
    with distributed.raise_on_all_processes():
        schedule = build.build_schedule(config)
        batch = visualize_config.real_images(config)
    if config.visualize.format == "html":
        return write_page(config, run_folder, mesh, batch, output)
    images = batch["image"]
    t = forward_timesteps(schedule, config.visualize.num_stages)
    pixel_format = build.pixel_format(config)
    x_start, noise = pixel_format.from_data(jnp.asarray(images)), visualize_config.starting_noise(config)
    x_t = forward_stages(schedule, x_start, t, noise)
    forward = np.asarray(pixel_format.to_data(jnp.asarray(x_t)))
    arrays = {"originals": images, "forward_t": t, "forward_x_t": forward}
    pictures = {"forward.png": forward_picture(config, schedule, t, x_t[:, 0], forward)}
    name, summary = "visualize-forward", f"no checkpoint in {run_folder} yet: only forward.png, which needs no network"
    identity = {"mode": "visualize", "diffusion": config.diffusion.to_dict(), "sampling": {"seed": config.sampling.seed}}

    trained = distributed.all_processes(has_checkpoint(config, run_folder))
    if trained:
        params, step = common.restore_params(config, run_folder, mesh)
        with distributed.raise_on_all_processes():
            sampler, saved_t, columns = build_reverse(config, mesh)
            reverse_t = saved_t[columns]
        name = f"visualize-{sampling_config.run_name(config, step)}"
        description, seed = sampling_config.describe_sampling(config), config.sampling.seed
        summary = f"step {step:,}, {config.sampling.params} weights, {description}, seed {seed}"
        with distributed.raise_on_all_processes():
            inputs = sampling_inputs(config)
        identity = sampling_config.identity_of(config, "visualize", step, load_params.params_sha256(params)) | inputs.identity
    identity |= {
        "visualize": {field: config.visualize[field] for field in FIGURE_FIELDS},
        "pixels": pixel_format._asdict(),
        "images_sha256": hashlib.sha256(np.ascontiguousarray(images)).hexdigest(),
    }
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            default = workdir.sample_folder(run_folder) / name
            target = manifest.claim(identity, names=OUTPUTS, default=default, output=output)

    if trained:
        generated = sampling_config.generate(config, sampler, params, inputs)
        classes = class_labels(config, generated, common.class_names_of(run_folder))
        saved = trajectory_images(generated, pixel_format)
        stages = {kind: images[:, [*columns, -1]] for kind, images in saved.items()}
        arrays |= {"images": generated.images, "reverse_t": reverse_t, **stages}
        pictures["reverse.png"] = reverse_picture(config, reverse_t, stages, classes)
        pictures["chain.png"] = chain_picture(config, t, forward, reverse_t, stages["x_t"], classes)

    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            with paths.write_errors(target):
                npz.write(target / "images.npz", arrays)
                for file, picture in pictures.items():
                    image_grid.save_png(target / file, picture)
                moving = []
                if config.visualize.animation:
                    t = forward_timesteps(schedule, min(config.visualize.animation_frames, schedule.num_timesteps) + 1)
                    x_t = forward_stages(schedule, x_start, t, noise)
                    first = animation_config.Chain(t, np.asarray(pixel_format.to_data(jnp.asarray(x_t))))
                    second = animation_config.Chain(saved_t, saved["x_t"], saved["pred_xstart"], classes) if trained else None
                    moving = animation_config.write_animations(config, target, schedule.num_timesteps, first, second)
            print(summary)
            print(f"figures in {target}: {', '.join([*pictures, *moving])}; arrays of the figures: images.npz")
    return 0


def write_page(
    config: ConfigDict,
    run_folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
    batch: Batch,
    output: str,
) -> int:
    """Write the page of format html; only its first part if there is no checkpoint."""
    trained = distributed.all_processes(has_checkpoint(config, run_folder))
    params, step = common.restore_params(config, run_folder, mesh) if trained else (None, None)
    with distributed.raise_on_all_processes():
        runtime = explorer_network.Runtime(None, "")
        if trained and distributed.is_primary_process():
            runtime = explorer_network.find_runtime(config, params)
    name, identity = explorer_identity.identity_of(config, params, step, batch, runtime.reason)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            target = manifest.claim(identity, names=(PAGE,), default=workdir.sample_folder(run_folder) / name, output=output)
            page, summary = explorer_config.make_page(
                config,
                params,
                step,
                batch,
                np.asarray(visualize_config.starting_noise(config)),
                common.class_names_of(run_folder),
                runtime,
                run_record.config_at(run_folder, step),
            )
            write_atomically(target / PAGE, page, advice=manifest.ADVICE)
            print(summary)
            print(f"wrote {target / PAGE} ({len(page.encode()) / 1e6:.1f} MB): open it in a browser")
    return 0


def has_checkpoint(config: ConfigDict, run_folder: pathlib.Path) -> bool:
    """Whether there is a checkpoint, or a step is given in the config (which then must exist)."""
    with CheckpointManager(workdir.checkpoint_folder(run_folder), max_to_keep=1, read_only=True) as checkpoints:
        return checkpoints.latest_step() is not None or config.sampling.checkpoint_step != -1


# Forward: real images and the closed form.


def forward_timesteps(schedule: NoiseSchedule, num_stages: int) -> np.ndarray:
    """The t of each column, int [S]: -1 for the image itself, then evenly spaced up to T-1."""
    return np.append(-1, trailing_timesteps(schedule.num_timesteps, num_stages - 1))


def forward_stages(schedule: NoiseSchedule, x_start: jax.Array, t: np.ndarray, noise: jax.Array) -> np.ndarray:
    """x_t of images [N, H, W, C] at each t [S] of `forward_timesteps`, from noise [N, ...]: float32 [N, S, H, W, C]."""
    number = len(x_start)
    noisy = [gaussian.q_sample(schedule, x_start, jnp.full(number, step, jnp.int32), noise) for step in t[1:].tolist()]
    return np.stack([np.asarray(x) for x in (x_start, *noisy)], axis=1)


def forward_picture(
    config: ConfigDict, schedule: NoiseSchedule, column_t: np.ndarray, x_start: np.ndarray, stages: np.ndarray
) -> np.ndarray:
    """Filmstrip of x_t, `stages` [N, S, H, W, C] in the data's type, above curves of the noise schedule: uint8 [H', W', 3]."""
    steps = schedule.num_timesteps
    t = np.unique(np.linspace(0, steps - 1, min(steps, CURVE_POINTS)).round().astype(int))
    signal = schedule.alphas_cumprod[t]
    noise = np.square(schedule.sqrt_one_minus_alphas_cumprod[t])
    decibel = -20 * np.log10(schedule.sqrt_recipm1_alphas_cumprod[t])
    bits = vlb.bits_to_noise(schedule, x_start, t)
    panels = [
        filmstrip.Panel(
            r"Power of the signal and the noise in $x_t$",
            t,
            [
                filmstrip.Curve(signal, r"$\bar\alpha_t$  signal (alphas_cumprod)", filmstrip.SIGNAL),
                filmstrip.Curve(noise, r"$1-\bar\alpha_t$  noise", filmstrip.NOISE),
            ],
        ),
        filmstrip.Panel(
            r"Signal-to-noise ratio $\bar\alpha_t\,/\,(1-\bar\alpha_t)$, in decibels", t, [filmstrip.Curve(decibel)]
        ),
        filmstrip.Panel(
            r"Distance to pure noise $\mathrm{KL}(\,q(x_t|x_\mathrm{start})\;\|\;\mathcal{N}(0,I)\,)$ "
            "of each image, in bits per dimension",
            t,
            [
                filmstrip.Curve(
                    bits, f"{scientific(bits[-1].mean())} on average at $t={t[-1]}$:  $L_T$ of the variational bound"
                )
            ],
            log=True,
            legend="lower left",
        ),
    ]
    return filmstrip.sheet(
        build.pixel_format(config).shown(stages),
        title=r"Forward: an image becomes noise,   $x_t=\sqrt{\bar\alpha_t}\,x_\mathrm{start}+\sqrt{1-\bar\alpha_t}\,\epsilon$"
        f"   ({config.diffusion.schedule} schedule)",
        column_labels=["image", *time_labels(column_t[1:])],
        column_t=column_t,
        panels=panels,
        notes=[ONE_NOISE, "Values outside [-1, 1] are clipped for display.", *shown_note(config)],
    )


# Reverse: the network.


def build_reverse(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[BatchedSampler, np.ndarray, np.ndarray]:
    """A sampler that saves the stages to show, their t, int [S], and the indices of those in the strip."""
    sampler = build.build_sampler(config)
    saved, columns = animation_config.saved_steps(config, sampler.num_steps)
    t = sampler.schedule.timesteps[sampler.num_steps - 1 - saved]
    return build.build_batched_sampler(config, mesh, saved), t, columns


def reverse_picture(config: ConfigDict, t: np.ndarray, stages: dict[str, np.ndarray], classes: list[str]) -> np.ndarray:
    """For each chain a row of x_t above a row of the predicted x_start: uint8 [H', W', 3]."""
    rows = build.pixel_format(config).shown(np.stack([stages["x_t"], stages["pred_xstart"]], axis=1))
    clipped = ", clipped to [-1, 1]" if config.diffusion.clip_denoised else ""
    return filmstrip.sheet(
        rows.reshape(-1, *rows.shape[2:]),
        title=r"Reverse: noise becomes an image; below each $x_t$, the network's prediction of the image"
        f"   ({sampling_config.describe_sampling(config)}, seed {config.sampling.seed})",
        column_labels=[*time_labels(t), "sample"],
        row_labels=[r"$x_t$", "pred_xstart"] * len(rows),
        end_labels=[label for name in classes for label in (name, "")],
        group=2,
        notes=[
            f"pred_xstart is computed from the network's output at this $x_t$ and $t${clipped}.",
            *class_note(config),
            *shown_note(config),
        ],
    )


def chain_picture(
    config: ConfigDict,
    forward_t: np.ndarray,
    forward: np.ndarray,
    reverse_t: np.ndarray,
    reverse: np.ndarray,
    classes: list[str],
) -> np.ndarray:
    """Image to noise to image, in one row for each of a few chains: uint8 [H', W', 3]."""
    half = min(config.visualize.num_stages // 2, reverse.shape[1] - 1)
    forward_columns = np.linspace(0, forward.shape[1] - 1, half + 1).round().astype(int)
    reverse_columns = np.linspace(0, reverse.shape[1] - 1, half + 1).round().astype(int)[1:]
    rows = np.concatenate([forward[:, forward_columns], reverse[:, reverse_columns]], axis=1)
    return filmstrip.sheet(
        build.pixel_format(config).shown(rows[:CHAINS_ON_A_SLIDE]),
        title="An image becomes noise, and from the same noise the network generates another image",
        column_labels=[
            "image",
            *time_labels(forward_t[forward_columns[1:-1]]),
            r"noise $\epsilon$",
            *time_labels(reverse_t[reverse_columns[:-1]]),
            "sample",
        ],
        end_labels=classes[:CHAINS_ON_A_SLIDE],
        spans=[(0, half - 1, r"forward, $q(x_t|x_\mathrm{start})$"), (half + 1, 2 * half, reverse_label(config))],
        notes=[ONE_NOISE, *class_note(config), *shown_note(config)],
    )


# Text.


def reverse_label(config: ConfigDict) -> str:
    """Label of the reverse chain: the distribution of its steps, or the method of config.sampling.

    Only ancestral sampling without guidance samples x_{t-1} from p_θ. DDIM with eta 0 and the solvers of the probability-flow
    ODE use the same network and marginals, but different steps.
    """
    sampling, steps = config.sampling, config.diffusion.num_timesteps
    name = f"{sampling.sampler}, {sampling.num_steps:,} steps"
    if sampling.guidance_scale != 1:
        return f"reverse: {name}, guidance {sampling.guidance_scale:g}"
    if sampling.sampler == "ancestral":
        earlier = "t-1" if sampling.num_steps == steps else "s"  # with respacing the next t is not t-1
        condition = r",\,\mathrm{class}" if config.model.class_conditional else ""
        return rf"reverse, $p_\theta(x_{{{earlier}}}|x_t{condition})$: {name}"
    deterministic = (
        sampling.sampler in ODE_SOLVERS
        or (sampling.sampler == "ddim" and not sampling.ddim.eta)
        or (sampling.sampler == "heun" and not sampling.heun.churn)
    )
    return f"reverse: {name}" + (r", no noise added (not $p_\theta$)" if deterministic else "")


def class_labels(config: ConfigDict, generated: GeneratedBatch, names: tuple[str, ...] = ()) -> list[str]:
    """The class given for each image, by name or number; empty for a model without classes."""
    labels = conditioning.labels_of(generated.cond)
    if labels is None:
        return []
    if config.sampling.guidance_scale == 0:
        return ["no class"] * len(labels)
    return [f"class {names[label] if label < len(names) else label}" for label in labels.tolist()]


def class_note(config: ConfigDict) -> list[str]:
    """A note on the class labels at the right of a figure; empty for a model without classes."""
    if not config.model.class_conditional or config.sampling.guidance_scale == 0:
        return []
    return ["Reverse: the class at the right is an input of the network, chosen beforehand; the noise does not determine it."]


def shown_note(config: ConfigDict) -> list[str]:
    """A note on the channels and the range that a figure shows; empty for gray and RGB images of 8 bits."""
    note = build.pixel_format(config).describe_shown(config.data.channels)
    return [note] if note else []


def time_labels(t: np.ndarray) -> list[str]:
    """Column labels for these t."""
    return [f"$t={step}$" for step in t.tolist()]


def scientific(value: float) -> str:
    """Two digits and a power of ten, in mathtext."""
    digits, exponent = f"{value:.1e}".split("e")
    return rf"${digits}\times10^{{{int(exponent)}}}$"
