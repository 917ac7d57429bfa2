"""--mode=sample: generate images from a checkpoint, as images.npz or PNG files, and an image grid.

Each batch is written while the next one is generated, so memory does not grow with the number of images, and rerunning an
interrupted command resumes it.
"""

import functools

from ml_collections import ConfigDict

from ddpm_jax import build, sampling_config
from ddpm_jax.cli import common
from ddpm_jax.evaluation import manifest
from ddpm_jax.evaluation.generation import generate_missing
from ddpm_jax.evaluation.sample_files import FORMATS, KEPT_IMAGES, OUTPUTS, SampleFolder
from ddpm_jax.runtime import distributed, paths, rng, workdir
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.sampling_conditions import sampling_inputs
from ddpm_jax.training import load_params


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Write config.sampling.num_images images to a folder, by default in samples/ of the workdir."""
    run_folder, mesh = common.open_run(config, folder, output)
    with distributed.raise_on_all_processes():
        sampler = build.build_batched_sampler(config, mesh)
        inputs = sampling_inputs(config)

    sampling, number = config.sampling, config.sampling.num_images
    params, step = common.restore_params(config, run_folder, mesh)
    default = workdir.sample_folder(run_folder) / sampling_config.folder_name(config, step)
    files, gaps = None, []
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            identity = sampling_config.identity_of(config, "sample", step, load_params.params_sha256(params)) | {
                "num_images": number,
                "num_intermediates": sampling.num_intermediates,
                **inputs.identity,
            }
            target = manifest.claim(identity, names=OUTPUTS, default=default, output=output)
            files = SampleFolder(
                target,
                identity,
                num_images=number,
                image_shape=build.image_shape(config),
                labels=inputs.labels,
                class_names=common.class_names_of(run_folder),
                formats=FORMATS[sampling.format],
                keeps_stages=bool(sampling.num_intermediates),
                conditions=inputs.given and inputs.given.images,
                originals=inputs.given and inputs.given.originals,
                pixel_format=build.pixel_format(config),
            )
            gaps = files.missing()

    def write(first: int, batch: GeneratedBatch) -> None:
        with paths.write_errors(target):
            files.write(first, batch)

    @functools.cache
    def sampler_without_stages() -> BatchedSampler:
        return build.build_batched_sampler(config, mesh, ())

    def sampler_at(first: int) -> BatchedSampler:
        return sampler_without_stages() if sampling.num_intermediates and first >= KEPT_IMAGES else sampler

    key, split_at = rng.purpose_key(sampling.seed, "sample"), KEPT_IMAGES if sampling.num_intermediates else 0
    generate_missing(sampler_at, params, key, gaps, inputs.cond, write, num_images=number, split_at=split_at)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            with paths.write_errors(target):
                files.finish()
                contents = files.contents()
            description = sampling_config.describe_sampling(config)
            print(f"step {step:,}, {sampling.params} weights, {description}, seed {sampling.seed}")
            print(f"{number:,} image{'s' * (number != 1)} in {target}: {', '.join(contents)}")
            for note in [*sampling_config.sampling_warnings(config), *keep_notes(config)]:
                print(f"note: {note}")
    return 0


def keep_notes(config: ConfigDict) -> list[str]:
    """A note if intermediate steps are not saved for all images; else empty."""
    sampling = config.sampling
    if sampling.num_intermediates and sampling.num_images > KEPT_IMAGES:
        return [f"intermediate steps (config.sampling.num_intermediates) are saved for the first {KEPT_IMAGES} images only"]
    return []
