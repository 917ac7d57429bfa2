"""--mode=sample: draw images from a checkpoint, into images.npz and pictures."""

import contextlib
import math
import pathlib
import sys
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, check, visualize
from ddpm_jax.process import initial_noise, pixels
from ddpm_jax.programs import weights
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import processes, randomness, workdir
from ddpm_jax.runtime.errors import PersonError
from ddpm_jax.runtime.logbook import Progress
from ddpm_jax.samplers.generate import GeneratedBatch, Generator

CHAINS_SHOWN = 8  # rows of a picture of chains
GRAY = 0.1  # of the way to mid-gray: what images may be pulled further by the spacing without a note
FEW = 10  # parts of the chain: below one of them, the variance of fixed_large is known to spoil images


@processes.one_job()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Draw config.sampling.num_images images; the exit code.

    Args:
      config: resolved.
      folder: workdir of the run that trained the model.
      output: where to write; by default a folder in the workdir's samples/ named after what was drawn.
      defaults: values of fields that the workdir's config is too old to have.

    Raises:
      PersonError, UsageError: no checkpoint, another model, an output folder that cannot be written.
    """
    with processes.together():
        check.check_config(config)
        workdir.read_config(folder)  # there must be a run
    run_folder = processes.prepare_workdir(folder, config.to_dict(), write=False, defaults=build.as_dict(defaults))
    mesh = meshes.make_mesh()
    with processes.together():
        generator = build.build_generator(config, mesh)

    sampling = config.sampling
    params, step = weights.restore(config, run_folder, mesh)
    drawn = draw_with_progress(config, generator, params)

    default = workdir.sample_folder(run_folder) / name_of(config, step)
    target = pathlib.Path(output).expanduser().absolute() if output else default
    with processes.together():
        if processes.is_writer():
            with writing_to(target):
                write(target, drawn)
            print(f"{step=:,} of {sampling.weights} weights, {sampling_words(config)}, seed {sampling.seed}")
            print(f"pictures in {target}: {', '.join(sorted(file.name for file in target.iterdir()))}")
            for note in sampling_notes(config):
                print(f"note: {note}")
    return 0


def draw(config: ConfigDict, generator: Generator, params: object, *, report=lambda images: None) -> GeneratedBatch:
    """All of config.sampling.num_images images in one."""
    batches = generator.generate(
        params,
        randomness.purpose_key(config.sampling.seed, "sample"),
        num_images=config.sampling.num_images,
        labels=build.sampling_labels(config),
        report=report,
    )
    images, labels, kept_x, kept_pred_xstart = zip(*batches, strict=True)
    return GeneratedBatch(
        images=np.concatenate(images),
        labels=None if labels[0] is None else np.concatenate(labels),
        kept_x=np.concatenate(kept_x),
        kept_pred_xstart=np.concatenate(kept_pred_xstart),
    )


def draw_with_progress(config: ConfigDict, generator: Generator, params: object) -> GeneratedBatch:
    """As `draw`; the first process tells how far it is."""
    with Progress(config.sampling.num_images, unit="images", out=sys.stderr) as progress:
        report = progress.update if processes.is_writer() else lambda images: None
        return draw(config, generator, params, report=report)


def shifted(tell: Callable[[float], None], first: int) -> Callable[[float], None]:
    """`tell` for a part of the work that begins at `first`."""
    return lambda images: tell(first + images)


def write(target: pathlib.Path, drawn: GeneratedBatch) -> None:
    """images.npz, grid.png and, where stages were kept, chain.png and pred_xstart.png.

    images.npz holds `images` uint8 [N, H, W, C], `labels` int32 [N] where there are any, and the kept stages as
    uint8 [N, S, H, W, C]: `x_t`, and `pred_xstart`, the guess of x_start made there.
    """
    target.mkdir(parents=True, exist_ok=True)
    arrays = {"images": drawn.images}
    if drawn.labels is not None:
        arrays["labels"] = drawn.labels
    chains = chain_pictures(drawn)
    arrays |= chains
    partial = target / "images.npz.partial"
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(target / "images.npz")
    visualize.save_png(target / "grid.png", visualize.grid_of_classes(drawn.images, drawn.labels))
    for name, stages in chains.items():
        visualize.save_png(target / f"{name}.png", visualize.strip(stages[:CHAINS_SHOWN]))


def chain_pictures(drawn: GeneratedBatch) -> dict[str, np.ndarray]:
    """The kept stages, the finished image after them: name -> uint8 [N, S + 1, H, W, C]; empty where none were kept."""
    if not drawn.kept_x.shape[1]:
        return {}
    finished = drawn.images[:, None]
    stages = {"x_t": drawn.kept_x, "pred_xstart": drawn.kept_pred_xstart}
    return {name: np.concatenate([np.asarray(pixels.to_uint8(x)), finished], axis=1) for name, x in stages.items()}


@contextlib.contextmanager
def writing_to(target: pathlib.Path) -> Iterator[None]:
    """Turn what the system says about a folder that cannot be written into one line."""
    try:
        yield
    except OSError as error:
        raise PersonError(f"cannot write to {target}: {error.strerror or error}; choose another --output") from error


def name_of(config: ConfigDict, step: int) -> str:
    """A folder's name that says what was drawn."""
    sampling = config.sampling
    name = f"step_{step}-{sampling.sampler}-{sampling.num_steps}-seed_{sampling.seed}"
    for field, value in options_of(config).items():
        name += f"-{value}" if field == "spacing" else f"-{field}_{value}"
    if sampling.weights != "ema":
        name += f"-{sampling.weights}"
    if sampling.label != -1:
        name += f"-label_{sampling.label}"
    return name


def sampling_words(config: ConfigDict) -> str:
    """The sampler, its steps and what else decides on the images."""
    sampling, options = config.sampling, options_of(config)
    words = f"{sampling.sampler} in {sampling.num_steps} steps"
    return ", ".join([words, *(f"{field} {value}" for field, value in options.items())])


def sampling_notes(config: ConfigDict) -> list[str]:
    """Of a choice that is known to spoil the images; empty where there is none."""
    process, sampling = config.diffusion, config.sampling
    steps, trained = sampling.num_steps, process.num_timesteps
    notes = []
    if sampling.sampler == "ancestral" and process.variance == "fixed_large" and steps <= trained // FEW:
        notes.append(
            f"ancestral sampling in {steps:,} of {trained:,} steps under fixed_large leaves noise in the images (published for "
            "CIFAR-10: FID 367 in 10 steps, 33 in 50, 10 in 100, 3.2 in 1,000): take more steps, or ddim or dpmpp_2m"
        )
    dimension = math.prod(build.image_shape(config))
    chain, whole = build.sampling_schedule(config), build.build_schedule(config)
    pull, least = (initial_noise.pull_to_gray(schedule, dimension) for schedule in (chain, whole))
    if pull > least + GRAY:
        notes.append(
            f"spacing {sampling.spacing} starts from pure noise at t={chain.timesteps[-1]}, where x_t still contains a part of "
            f"the image: brightness and colors are pulled up to {pull:.0%} of the way to mid-gray, with "
            f"sampling.spacing=trailing {least:.0%} (docs/colors.md)"
        )
    return notes


def options_of(config: ConfigDict) -> dict[str, str]:
    """What else than the sampler and its steps decides on the images, where it is not as usual: name -> value in short."""
    sampling = config.sampling
    found = {}
    if sampling.sampler == "ddim" and sampling.eta:
        found["eta"] = f"{sampling.eta:g}"
    if sampling.sampler == "unipc" and sampling.order != 2:
        found["order"] = str(sampling.order)
    if sampling.sampler == "heun" and sampling.churn:
        low, high = sampling.churn_interval
        found["churn"] = f"{sampling.churn:g}" + (f"_{low:g}_{high:g}" if (low, high) != (0, 1e6) else "")
        if sampling.churn_noise != 1:
            found["noise"] = f"{sampling.churn_noise:g}"
    if sampling.spacing != "leading":
        found["spacing"] = sampling.spacing
    if sampling.guidance_scale != 1:
        low, high = sampling.guidance_interval
        found["guidance"] = f"{sampling.guidance_scale:g}" + (f"_{low:g}_{high:g}" if (low, high) != (0, 1) else "")
        if sampling.guidance_rescale:
            found["rescale"] = f"{sampling.guidance_rescale:g}"
    return found
