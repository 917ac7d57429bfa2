"""--mode=sample: generate images from a checkpoint, into images.npz or PNG files, and a grid.

Images are written piece by piece as they are made: any number of them takes the memory of one batch, and a command that was
killed continues where it stopped.
"""

import contextlib
import functools
import logging
import math
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, config_validation, data_config
from ddpm_jax.cli import load_params
from ddpm_jax.cli.sample_files import CHAINS_SHOWN, KEPT_IMAGES, OUTPUTS, SampleFolder, trajectory_images
from ddpm_jax.diffusion import initial_noise
from ddpm_jax.runtime import distributed, manifest, paths, rng, workdir
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import FileAccessError
from ddpm_jax.runtime.metric_logger import Progress
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.user_messages import UserError

logger = logging.getLogger(__name__)

__all__ = ["CHAINS_SHOWN", "draw", "draw_with_progress", "generate_missing", "run", "trajectory_images"]

GRAY = 0.1  # of the way to mid-gray: what images may be pulled further by the spacing without a note
WARN_STEP_FRACTION = 10  # parts of the chain: below one of them, the variance of fixed_large is known to spoil images
# Fields of config.sampling that change no picture, so that images made with other values of them may be mixed.
FREE = ("num_images", "batch_size", "num_intermediates", "checkpoint_step", "format")


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Generate config.sampling.num_images images; the exit code.

    Args:
      config: resolved.
      folder: workdir of the run that trained the model.
      output: where to write; by default a folder in the workdir's samples/ named after what is generated.
      defaults: values of fields that the workdir's config is too old to have.

    Raises:
      UserError, UsageError: no checkpoint, another model, an output folder that cannot be written or holds other results.
    """
    with distributed.raise_on_all_processes():
        config_validation.check_config(config)
        workdir.read_config(folder)  # there must be a run
        check_output(output)
    run_folder = distributed.prepare_workdir(folder, config.to_dict(), write=False, defaults=build.as_dict(defaults))
    mesh = meshes.make_mesh()
    with distributed.raise_on_all_processes():
        generator = build.build_batched_sampler(config, mesh)

    sampling, number = config.sampling, config.sampling.num_images
    params, step = load_params.restore(config, run_folder, mesh)
    labels = data_config.sampling_labels(config)
    default = workdir.sample_folder(run_folder) / folder_name(config, step)
    files, gaps = None, []
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            identity = identity_of(config, "sample", step, params) | {
                "num_images": number,
                "num_intermediates": sampling.num_intermediates,
            }
            target = manifest.claim(identity, names=OUTPUTS, default=default, output=output)
            files = SampleFolder(
                target,
                identity,
                num_images=number,
                image_shape=build.image_shape(config),
                labels=labels,
                class_names=class_names_of(run_folder),
                formats=build.FORMATS[sampling.format],
                keeps_stages=bool(sampling.num_intermediates),
            )
            gaps = files.missing()

    def write(first: int, batch: GeneratedBatch) -> None:
        with translate_write_errors(target):
            files.write(first, batch)

    @functools.cache
    def without_stages() -> BatchedSampler:
        return build.build_batched_sampler(config, mesh, ())

    def generator_at(first: int) -> BatchedSampler:
        return without_stages() if sampling.num_intermediates and first >= KEPT_IMAGES else generator

    generate_missing(
        config, generator_at, params, gaps, labels, write, split_at=KEPT_IMAGES if sampling.num_intermediates else 0
    )
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            with translate_write_errors(target):
                files.finish()
                contents = files.contents()
            print(f"step {step:,}, {sampling.params} weights, {describe_sampling(config)}, seed {sampling.seed}")
            print(f"{number:,} image{'s' * (number != 1)} in {target}: {', '.join(contents)}")
            for note in [*sampling_warnings(config), *keep_notes(config)]:
                print(f"note: {note}")
    return 0


def generate_missing(
    config: ConfigDict,
    generator_at: Callable[[int], BatchedSampler],
    params: Any,
    gaps: Sequence[range],
    labels: np.ndarray | None,
    write: Callable[[int, GeneratedBatch], None],
    *,
    split_at: int = 0,
) -> None:
    """Generate the images that are missing of config.sampling.num_images, and write each batch before the next is begun.

    Every process calls this; what the first one holds and says decides for all.

    Args:
      config: whose sampling section names the seed and the number of images.
      generator_at: index of an image -> the generator for the range that begins there.
      params: what the generator takes.
      gaps: of the first process, the missing indices as ranges; not read in the others.
      labels: int32 [num_images], or None.
      write: (index of the first image, batch), called in the first process alone.
      split_at: a range does not cross this index, so that images from there on can have another generator.

    Raises:
      NotFinite: images hold NaN; those written before stay.
      UserError: what `write` raises.
    """
    number = config.sampling.num_images
    bounds = distributed.broadcast_ints([bound for gap in gaps for bound in (gap.start, gap.stop)])
    missing = []
    for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
        middle = [split_at] if start < split_at < stop else []
        missing += zip([start, *middle], [*middle, stop], strict=True)
    there = number - sum(stop - start for start, stop in missing)
    if there:
        logger.info(f"{there:,} of {number:,} images are there already")
    key = rng.purpose_key(config.sampling.seed, "sample")
    with Progress(number, unit="images", out=sys.stderr) as progress:
        tell = progress.update if distributed.is_primary_process() else lambda images: None
        for start, stop in missing:
            batches = generator_at(start).generate(
                params,
                key,
                num_images=stop - start,
                first_image=start,
                labels=None if labels is None else labels[start:stop],
                report=offset_progress(tell, start),
            )
            for batch in batches:
                with distributed.raise_on_all_processes():
                    if distributed.is_primary_process():
                        write(start, batch)
                start += len(batch.images)


def draw(config: ConfigDict, generator: BatchedSampler, params: object, *, report=lambda images: None) -> GeneratedBatch:
    """All of config.sampling.num_images images in one."""
    batches = generator.generate(
        params,
        rng.purpose_key(config.sampling.seed, "sample"),
        num_images=config.sampling.num_images,
        labels=data_config.sampling_labels(config),
        report=report,
    )
    images, labels, saved_x, saved_pred_xstart = zip(*batches, strict=True)
    return GeneratedBatch(
        images=np.concatenate(images),
        labels=None if labels[0] is None else np.concatenate(labels),
        saved_x=np.concatenate(saved_x),
        saved_pred_xstart=np.concatenate(saved_pred_xstart),
    )


def draw_with_progress(config: ConfigDict, generator: BatchedSampler, params: object) -> GeneratedBatch:
    """As `draw`; the first process tells how far it is."""
    with Progress(config.sampling.num_images, unit="images", out=sys.stderr) as progress:
        report = progress.update if distributed.is_primary_process() else lambda images: None
        return draw(config, generator, params, report=report)


def offset_progress(tell: Callable[[float], None], first: int) -> Callable[[float], None]:
    """`tell` for a part of the work that begins at `first`."""
    return lambda images: tell(first + images)


def class_names_of(run_folder: pathlib.Path) -> tuple[str, ...]:
    """The names of label 0, 1, ... in the set that the run was trained on; () where they are not known."""
    return tuple((workdir.read_data_identity(run_folder) or {}).get("class_names", ()))


def identity_of(config: ConfigDict, mode: str, step: int, params: Any) -> dict[str, Any]:
    """Everything that decides what pictures a mode makes of a run, as JSON can hold it."""
    sampling = {name: value for name, value in config.sampling.to_dict().items() if name not in FREE}
    return {
        "mode": mode,
        "step": step,
        "weights_sha256": load_params.params_sha256(params),
        "sampling": sampling,
        "diffusion": config.diffusion.to_dict(),
        "dtype": config.model.dtype,
    }


def check_output(output: str) -> None:
    """Raise a UserError, before any work, where nothing can be written to the folder that --output names."""
    if output and distributed.is_primary_process():
        paths.make_output_folder(paths.output_path(output, ""))


@contextlib.contextmanager
def translate_write_errors(target: pathlib.Path) -> Iterator[None]:
    """Turn what the system says about a folder that cannot be written into one line."""
    try:
        yield
    except FileAccessError:  # the library has said which file
        raise
    except OSError as error:
        raise paths.cannot_write(target, error) from error
    except zipfile.BadZipFile as error:
        raise UserError(f"a file in {target} is damaged ({error}): remove the folder, or choose another --output") from error


def run_name(config: ConfigDict, step: int) -> str:
    """A folder's name that says how images are generated, but not how many."""
    sampling = config.sampling
    name = f"step_{step}-{sampling.sampler}-{sampling.num_steps}-seed_{sampling.seed}"
    for field, value in nondefault_options(config).items():
        name += f"-{value}" if field == "spacing" else f"-{field}_{value}"
    if sampling.params != "ema":
        name += f"-{sampling.params}"
    if sampling.label != -1:
        name += f"-label_{sampling.label}"
    return name


def folder_name(config: ConfigDict, step: int) -> str:
    """As `name_of`, with the number of images and of stages kept: the name of the folder that holds exactly these."""
    sampling = config.sampling
    keep = f"-keep_{sampling.num_intermediates}" if sampling.num_intermediates else ""
    return f"{run_name(config, step)}-{sampling.num_images}_images{keep}"


def describe_sampling(config: ConfigDict) -> str:
    """The sampler, its steps and what else decides on the images."""
    sampling, options = config.sampling, nondefault_options(config)
    words = f"{sampling.sampler} in {sampling.num_steps} steps"
    return ", ".join([words, *(f"{field} {value}" for field, value in options.items())])


def sampling_warnings(config: ConfigDict) -> list[str]:
    """Of a choice that is known to spoil the images; empty where there is none."""
    process, sampling = config.diffusion, config.sampling
    steps, trained = sampling.num_steps, process.num_timesteps
    notes = []
    if sampling.sampler == "ancestral" and process.variance == "fixed_large" and steps <= trained // WARN_STEP_FRACTION:
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


def keep_notes(config: ConfigDict) -> list[str]:
    """Of stages that are not kept of all images; empty where they are."""
    sampling = config.sampling
    if sampling.num_intermediates and sampling.num_images > KEPT_IMAGES:
        return [f"stages along the way (config.sampling.num_intermediates) are kept of the first {KEPT_IMAGES} images"]
    return []


def nondefault_options(config: ConfigDict) -> dict[str, str]:
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
