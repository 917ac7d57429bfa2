"""The part of --mode=evaluate that generates images: into a cache on the disk, so that a run that is killed resumes."""

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import data_config
from ddpm_jax.cli import sample
from ddpm_jax.evaluation import sample_cache as shards_file
from ddpm_jax.runtime import distributed, results
from ddpm_jax.samplers.batched import BatchedSampler

# Fields outside config.sampling that may differ from the trained run's, and change its images.
CHANGEABLE = ("diffusion.variance", "diffusion.clip_denoised", "model.dtype")


def identity(
    config: ConfigDict, trained: dict[str, Any], step: int, weights_sha256: str, class_counts: np.ndarray | None
) -> dict[str, Any]:
    """What decides on the images: two sets with the same are the same, image by image, as far as they go.

    Args:
      config: of this call.
      trained: the config with which that checkpoint was trained; fields outside of sampling are listed where the call differs.
      step: of the checkpoint.
      weights_sha256: of its parameters.
      class_counts: as `data_config.sampling_labels` takes them.
    """
    identity = {name: value for name, value in config.sampling.to_dict().items() if name not in sample.FREE} | {"step": step}
    identity["weights_sha256"] = weights_sha256
    identity |= changed_fields(config, trained)
    if takes_turns(config, class_counts):
        return identity
    return identity | {"class_counts": [int(count) for count in class_counts]}


def takes_turns(config: ConfigDict, class_counts: np.ndarray | None) -> bool:
    """Whether classes come 0, 1, .., K-1, 0, 1, .. or not at all, so that nothing has to say in which proportions they come."""
    fixed = not config.model.class_conditional or config.sampling.label >= 0
    return fixed or class_counts is None or len(set(np.asarray(class_counts).tolist())) == 1


def changed_fields(config: ConfigDict, trained: dict[str, Any]) -> dict[str, Any]:
    """Those of `CHANGEABLE` in which this call differs from the run that trained the model: dotted name -> value."""
    then = results.flatten(trained)
    now = {field: config[field.partition(".")[0]][field.partition(".")[2]] for field in CHANGEABLE}
    return {field: value for field, value in now.items() if then.get(field, value) != value}


def folder_name(config: ConfigDict, identity: dict[str, Any]) -> str:
    """A folder's name that says what images it holds."""
    name = sample.run_name(config, identity["step"])
    changed = {field: identity[field] for field in CHANGEABLE if field in identity}
    for field, value in changed.items():
        name += f"-{field.partition('.')[2]}_{value}"
    return name + (f"-classes_{results.digest(identity['class_counts'])}" if "class_counts" in identity else "")


def generate_into_cache(
    config: ConfigDict,
    generator: BatchedSampler,
    params: Any,
    identity: dict[str, Any],
    class_counts: np.ndarray | None,
    target: pathlib.Path,
    defaults: dict[str, Any],
) -> shards_file.SampleCache:
    """Generate what the folder of these images does not hold yet; a run that was killed resumes where it stopped.

    Args:
      config: whose sampling.num_images are wanted.
      generator: made of it.
      params: of the network.
      identity: of the images, from `identity`.
      class_counts: as `data_config.sampling_labels` takes them.
      target: the evaluation's folder.
      defaults: of the fields of config.sampling, for caches older than a field.
    """
    with distributed.raise_on_all_processes():
        shards = shards_file.SampleCache(
            target / "images" / folder_name(config, identity),
            identity,
            defaults=defaults,
            is_writer=distributed.is_primary_process(),
        )
        gaps = shards.missing(config.sampling.num_images) if distributed.is_primary_process() else []
    sample.generate_missing(
        config,
        lambda first: generator,
        params,
        gaps,
        data_config.sampling_labels(config, class_counts),
        lambda first, batch: shards.write(first, batch.images, batch.labels),
    )
    return shards
