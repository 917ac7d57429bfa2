"""--mode=sample: generate images from a checkpoint, into images.npz or PNG files, and a grid.

Images are written piece by piece as they are made: any number of them takes the memory of one batch, and a command that was
killed continues where it stopped.
"""

import functools

from ml_collections import ConfigDict

from ddpm_jax import build, data_config, sampling_config
from ddpm_jax.cli import common
from ddpm_jax.evaluation import manifest
from ddpm_jax.evaluation.generation import generate_missing
from ddpm_jax.evaluation.sample_files import KEPT_IMAGES, OUTPUTS, SampleFolder
from ddpm_jax.runtime import distributed, rng, workdir
from ddpm_jax.samplers.batched import BatchedSampler, GeneratedBatch
from ddpm_jax.training import load_params


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Generate config.sampling.num_images images into a folder, by default one of the workdir's samples/."""
    run_folder, mesh = common.open_run(config, folder, output, defaults)
    with distributed.raise_on_all_processes():
        generator = build.build_batched_sampler(config, mesh)

    sampling, number = config.sampling, config.sampling.num_images
    params, step = common.restore_params(config, run_folder, mesh)
    labels = data_config.sampling_labels(config)
    default = workdir.sample_folder(run_folder) / sampling_config.folder_name(config, step)
    files, gaps = None, []
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            identity = sampling_config.identity_of(config, "sample", step, load_params.params_sha256(params)) | {
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
                class_names=common.class_names_of(run_folder),
                formats=build.FORMATS[sampling.format],
                keeps_stages=bool(sampling.num_intermediates),
            )
            gaps = files.missing()

    def write(first: int, batch: GeneratedBatch) -> None:
        with common.writing_to(target):
            files.write(first, batch)

    @functools.cache
    def without_stages() -> BatchedSampler:
        return build.build_batched_sampler(config, mesh, ())

    def generator_at(first: int) -> BatchedSampler:
        return without_stages() if sampling.num_intermediates and first >= KEPT_IMAGES else generator

    key, split_at = rng.purpose_key(sampling.seed, "sample"), KEPT_IMAGES if sampling.num_intermediates else 0
    generate_missing(generator_at, params, key, gaps, labels, write, num_images=number, split_at=split_at)
    with distributed.raise_on_all_processes():
        if distributed.is_primary_process():
            with common.writing_to(target):
                files.finish()
                contents = files.contents()
            words = sampling_config.describe_sampling(config)
            print(f"step {step:,}, {sampling.params} weights, {words}, seed {sampling.seed}")
            print(f"{number:,} image{'s' * (number != 1)} in {target}: {', '.join(contents)}")
            for note in [*sampling_config.sampling_warnings(config), *keep_notes(config)]:
                print(f"note: {note}")
    return 0


def keep_notes(config: ConfigDict) -> list[str]:
    """Of stages that are not kept of all images; empty where they are."""
    sampling = config.sampling
    if sampling.num_intermediates and sampling.num_images > KEPT_IMAGES:
        return [f"stages along the way (config.sampling.num_intermediates) are kept of the first {KEPT_IMAGES} images"]
    return []
