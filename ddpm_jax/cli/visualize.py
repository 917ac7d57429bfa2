"""--mode=visualize: the pictures that explain DDPM, as strips.

forward.png takes real images to noise and draws what the schedule does beneath; it needs no network. reverse.png takes
noise back to images, with the network's estimate of the image (pred_xstart) at each stage; chain.png shows both
directions on one line.

Each image has one sample of the noise ε ~ N(0, I), and a column is q_sample(x_start, t, ε): exactly what the network is
trained on at that t. The Markov chain itself would add fresh noise at each step, and every column would flicker; with
one ε only the shares of signal and noise change from column to column, which is what the closed form (6) states. ε is
the noise that the reverse chain of the same row starts from, so that both halves of chain.png meet in one picture. The
pictures state both, which sampler made the reverse chain, and the class that a conditional model was asked for.
"""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, config_validation
from ddpm_jax.cli import load_params, sample
from ddpm_jax.diffusion import gaussian, likelihood, pixels
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.spacings import trailing_timesteps
from ddpm_jax.plotting import filmstrip, image_grid
from ddpm_jax.runtime import distributed, manifest, rng, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.samplers.sampler import per_image_noise
from ddpm_jax.user_messages import UsageError

MOST_IMAGES = 16
PICTURES = ("forward.png", "reverse.png", "chain.png")
STAGES = (5, 24)  # at least and at most: fewer leave no room for words
CHAINS_ON_A_SLIDE = 3  # rows of chain.png
CURVE_POINTS = 1000  # of the T steps, at which curves are computed
ODE_SOLVERS = ("dpmpp_2m", "unipc", "ode")  # samplers that add no noise, whatever their options
ONE_NOISE = (
    r"Forward: each row has one noise $\epsilon$, the same in all columns; the Markov chain adds new noise at every step."
)


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Draw the pictures that config.visualize and config.sampling ask for; the exit code.

    Args:
      config: resolved.
      folder: workdir of a run; where it holds no checkpoint (or nothing at all), forward.png is all there is.
      output: where to write; by default a folder in the workdir's samples/.
      defaults: values of fields that the workdir's config is too old to have.

    Raises:
      UserError, UsageError: wrong fields, no data set, another model, an output folder that cannot be written.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        check_illustrate(config)
        sample.check_output(output)
    config = with_few_images(config)
    run_folder = distributed.prepare_workdir(folder, config.to_dict(), write=False, defaults=build.as_dict(defaults))
    mesh = meshes.make_mesh()
    with distributed.raise_on_all_processes():
        schedule = build.build_schedule(config)
        images = real_images(config)
    t = forward_timesteps(schedule, config.visualize.num_stages)
    x_t = forward_stages(schedule, images, t, starting_noise(config))
    pictures = {"forward.png": forward_picture(config, schedule, images, t, x_t)}
    name, said = "visualize-forward", f"no checkpoint in {run_folder} yet: only forward.png, which needs no network"
    identity = {"mode": "visualize", "diffusion": config.diffusion.to_dict()}

    trained = distributed.all_processes(has_checkpoint(config, run_folder))
    if trained:
        params, step = load_params.restore(config, run_folder, mesh)
        with distributed.raise_on_all_processes():
            generator, reverse_t = build_reverse(config, mesh)
        name = f"visualize-{sample.run_name(config, step)}"
        said = (
            f"step {step:,}, {config.sampling.params} weights, {sample.describe_sampling(config)}, seed {config.sampling.seed}"
        )
        identity = sample.identity_of(config, "visualize", step, params)
    identity |= {"visualize": config.visualize.to_dict(), "images_sha256": hashlib.sha256(images).hexdigest()}
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            default = workdir.sample_folder(run_folder) / name
            target = manifest.claim(identity, names=PICTURES, default=default, output=output)

    if trained:
        drawn = sample.draw_with_progress(config, generator, params)
        classes = class_labels(config, drawn, sample.class_names_of(run_folder))
        pictures["reverse.png"] = reverse_picture(config, reverse_t, drawn, classes)
        pictures["chain.png"] = chain_picture(config, t, x_t, reverse_t, drawn, classes)

    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            with sample.translate_write_errors(target):
                for file, picture in pictures.items():
                    image_grid.save_png(target / file, picture)
            print(said)
            print(f"pictures in {target}: {', '.join(pictures)}")
    return 0


def check_illustrate(config: ConfigDict) -> None:
    """Raises a UsageError that names the field of config.illustrate that is wrong."""
    visualize, steps, (least, most) = config.visualize, config.diffusion.num_timesteps, STAGES
    if not 1 <= visualize.num_images <= MOST_IMAGES:
        raise UsageError(f"config.visualize.num_images is {visualize.num_images}: choose 1..{MOST_IMAGES}")
    if steps < least - 1:
        raise UsageError(
            f"config.diffusion.num_timesteps is {steps}: too few for the {least} stages that pictures have at least"
        )
    if not least <= visualize.num_stages <= min(most, steps + 1):
        raise UsageError(f"config.visualize.num_stages is {visualize.num_stages}: choose {least}..{min(most, steps + 1)}")
    if visualize.start_index < 0:
        raise UsageError(f"config.visualize.start_index is {visualize.start_index}: it must be 0 or more")


def with_few_images(config: ConfigDict) -> ConfigDict:
    """The config with config.sampling drawing as many images as config.visualize shows, and no set decoded for them."""
    config = config.copy_and_resolve_references()
    config.data.in_memory = "never"
    config.sampling.num_images = config.sampling.batch_size = config.visualize.num_images
    return config


def has_checkpoint(config: ConfigDict, run_folder: pathlib.Path) -> bool:
    """Whether there is a network to sample from, or one was asked for by its step (which then must be there)."""
    with CheckpointManager(workdir.checkpoint_folder(run_folder), max_to_keep=1, read_only=True) as checkpoints:
        return checkpoints.latest_step() is not None or config.sampling.checkpoint_step != -1


# Forward: real images, and the closed form.


def real_images(config: ConfigDict) -> np.ndarray:
    """The images of the run's own data set that are shown: uint8 [N, H, W, C].

    Raises:
      UsageError: the set ends before.
    """
    source = build.build_source(config)
    first, number = config.visualize.start_index, config.visualize.num_images
    if first + number > len(source):
        raise UsageError(
            f"{source.name} holds {len(source):,} images: config.visualize.start_index={first} with "
            f"config.visualize.num_images={number} asks for more"
        )
    return source.batch(np.arange(first, first + number))["image"]


def forward_timesteps(schedule: NoiseSchedule, num_stages: int) -> np.ndarray:
    """The t of each column, int [S]: -1 stands for the image itself, the others are in equal steps up to T-1."""
    return np.append(-1, trailing_timesteps(schedule.num_timesteps, num_stages - 1))


def starting_noise(config: ConfigDict) -> jax.Array:
    """ε of each row, float32 [N, H, W, C]: what its reverse chain starts from."""
    root = rng.purpose_key(config.sampling.seed, "sample")
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, jnp.arange(config.visualize.num_images))
    return per_image_noise(keys, 0, build.image_shape(config))


def forward_stages(schedule: NoiseSchedule, images: np.ndarray, t: np.ndarray, noise: jax.Array) -> np.ndarray:
    """x_t of each image at each stage.

    Args:
      schedule: of T steps.
      images: uint8 [N, H, W, C].
      t: [S], from `forward_timesteps`: first -1, the image itself, then S-1 timesteps.
      noise: float32 [N, H, W, C], one draw for each image.

    Returns:
      float32 [N, S, H, W, C].
    """
    x_start = pixels.from_uint8(jnp.asarray(images))
    number = len(images)
    noisy = [gaussian.q_sample(schedule, x_start, jnp.full(number, step, jnp.int32), noise) for step in t[1:].tolist()]
    return np.stack([np.asarray(x) for x in (x_start, *noisy)], axis=1)


def bits_to_noise(schedule: NoiseSchedule, images: np.ndarray, t: np.ndarray) -> np.ndarray:
    """KL(q(x_t | x_0) ‖ N(0, I)) in bits per dimension: float64 [K, N] for t [K] and images uint8 [N, H, W, C]."""
    with jax.enable_x64(True):  # near T-1 it is a millionth of what it is at t=0
        x_start = jnp.asarray(images, jnp.float64) / 127.5 - 1.0

        def at(step: jax.Array) -> jax.Array:
            return likelihood.prior_bits_per_dim(schedule, x_start, jnp.full(len(images), step, jnp.int32))

        return np.asarray(jax.lax.map(at, jnp.asarray(t, jnp.int32)))


def forward_picture(
    config: ConfigDict, schedule: NoiseSchedule, images: np.ndarray, column_t: np.ndarray, x_t: np.ndarray
) -> np.ndarray:
    """The strip of x_t [N, S, H, W, C], and beneath what the schedule does: uint8 [H', W', 3]."""
    steps = schedule.num_timesteps
    t = np.unique(np.linspace(0, steps - 1, min(steps, CURVE_POINTS)).round().astype(int))
    signal = schedule.alphas_cumprod[t]
    noise = np.square(schedule.sqrt_one_minus_alphas_cumprod[t])
    decibel = -20 * np.log10(schedule.sqrt_recipm1_alphas_cumprod[t])
    bits = bits_to_noise(schedule, images, t)
    panels = [
        filmstrip.Panel(
            r"What $x_t$ is made of: power of signal and noise",
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
        to_uint8(x_t),
        title=r"Forward: an image becomes noise,   $x_t=\sqrt{\bar\alpha_t}\,x_\mathrm{start}+\sqrt{1-\bar\alpha_t}\,\epsilon$"
        f"   ({config.diffusion.schedule} schedule)",
        column_labels=["image", *time_labels(column_t[1:])],
        column_t=column_t,
        panels=panels,
        notes=[ONE_NOISE, "Values beyond [-1, 1] are shown as the darkest and brightest."],
    )


# Reverse: the network.


def build_reverse(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[BatchedSampler, np.ndarray]:
    """The driver that keeps the stages to be shown, and the t of each of them, int [S-1]; the last column is the image."""
    sampler = build.build_sampler(config)
    stages = min(config.visualize.num_stages - 1, sampler.num_steps)
    save_steps = np.arange(stages) * sampler.num_steps // stages
    return build.build_batched_sampler(config, mesh, save_steps), sampler.schedule.timesteps[sampler.num_steps - 1 - save_steps]


def reverse_picture(config: ConfigDict, t: np.ndarray, drawn: GeneratedBatch, classes: list[str]) -> np.ndarray:
    """For each chain a row of x_t, and beneath it the network's estimate of the image: uint8 [H', W', 3]."""
    stages = sample.trajectory_images(drawn)
    rows = np.stack([stages["x_t"], stages["pred_xstart"]], axis=1)
    clipped = ", clipped to [-1, 1]" if config.diffusion.clip_denoised else ""
    return filmstrip.sheet(
        rows.reshape(-1, *rows.shape[2:]),
        title=r"Reverse: noise becomes an image; below each $x_t$ the network's estimate of the image"
        f"   ({sample.describe_sampling(config)}, seed {config.sampling.seed})",
        column_labels=[*time_labels(t), "sample"],
        row_labels=[r"$x_t$", "pred_xstart"] * len(rows),
        end_labels=[label for name in classes for label in (name, "")],
        group=2,
        notes=[f"pred_xstart is made of the network's output at this $x_t$ and $t${clipped}.", *class_note(config)],
    )


def chain_picture(
    config: ConfigDict,
    forward_t: np.ndarray,
    x_t: np.ndarray,
    reverse_t: np.ndarray,
    drawn: GeneratedBatch,
    classes: list[str],
) -> np.ndarray:
    """Image, noise, image, on one line for each of a few chains: uint8 [H', W', 3]."""
    reverse = sample.trajectory_images(drawn)["x_t"]
    half = min(config.visualize.num_stages // 2, reverse.shape[1] - 1)
    there = np.linspace(0, x_t.shape[1] - 1, half + 1).round().astype(int)
    back = np.linspace(0, reverse.shape[1] - 1, half + 1).round().astype(int)[1:]
    rows = np.concatenate([to_uint8(x_t[:, there]), reverse[:, back]], axis=1)
    return filmstrip.sheet(
        rows[:CHAINS_ON_A_SLIDE],
        title="An image becomes noise, and from the same noise the network makes another image",
        column_labels=[
            "image",
            *time_labels(forward_t[there[1:-1]]),
            r"noise $\epsilon$",
            *time_labels(reverse_t[back[:-1]]),
            "sample",
        ],
        end_labels=classes[:CHAINS_ON_A_SLIDE],
        spans=[
            (0, half - 1, r"forward, $q(x_t|x_\mathrm{start})$"),
            (half + 1, 2 * half, reverse_words(config)),
        ],
        notes=[ONE_NOISE, *class_note(config)],
    )


# Text.


def reverse_words(config: ConfigDict) -> str:
    """The distribution or the method by which the steps of the reverse chain were made, as config.sampling has it.

    Only ancestral sampling without guidance draws x_{t-1} from the network's p_θ. DDIM without noise and the solvers of
    the probability-flow ODE share the network and the marginals of the chain, but not its steps.
    """
    sampling, steps = config.sampling, config.diffusion.num_timesteps
    name = f"{sampling.sampler}, {sampling.num_steps:,} steps"
    if sampling.guidance_scale != 1:
        return f"reverse: {name}, guidance {sampling.guidance_scale:g}"
    if sampling.sampler == "ancestral":
        earlier = "t-1" if sampling.num_steps == steps else "s"  # of a shortened chain the next t is not t-1
        condition = r",\,\mathrm{class}" if config.model.class_conditional else ""
        return rf"reverse, $p_\theta(x_{{{earlier}}}|x_t{condition})$: {name}"
    deterministic = (
        sampling.sampler in ODE_SOLVERS
        or (sampling.sampler == "ddim" and not sampling.eta)
        or (sampling.sampler == "heun" and not sampling.churn)
    )
    return f"reverse: {name}" + (r", no noise added (not $p_\theta$)" if deterministic else "")


def class_labels(config: ConfigDict, drawn: GeneratedBatch, names: tuple[str, ...] = ()) -> list[str]:
    """For each image the class that was asked for, by its name or number; empty for a model without classes."""
    if drawn.labels is None:
        return []
    if config.sampling.guidance_scale == 0:
        return ["no class"] * len(drawn.labels)
    return [f"class {names[label] if label < len(names) else label}" for label in drawn.labels.tolist()]


def class_note(config: ConfigDict) -> list[str]:
    """A line about the classes at the right of a picture, of a model that has any."""
    if not config.model.class_conditional or config.sampling.guidance_scale == 0:
        return []
    return ["Reverse: the class at the right is an input of the network, chosen beforehand; the noise does not decide it."]


def time_labels(t: np.ndarray) -> list[str]:
    """The labels over the columns of these t."""
    return [f"$t={step}$" for step in t.tolist()]


def scientific(value: float) -> str:
    """Two digits and a power of ten, as mathematics."""
    digits, exponent = f"{value:.1e}".split("e")
    return rf"${digits}\times10^{{{int(exponent)}}}$"


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Floats to what is shown: values beyond [-1, 1] are clipped."""
    return np.asarray(pixels.to_uint8(jnp.asarray(x)))
