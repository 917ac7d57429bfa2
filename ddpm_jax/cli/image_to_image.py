"""--mode=image_to_image: add noise to images and denoise them again (SDEdit).

Noise destroys the details of an image first and its layout last. config.edit.strength is the fraction of the steps to run: a
small one changes details only, a large one keeps the layout only. 1 starts from pure noise and keeps nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import common
from ddpm_jax.runtime import distributed
from ddpm_jax.samplers.batched import BatchedSampler
from ddpm_jax.samplers.sampler import Sampler, SamplerState, init_state, init_state_sdedit


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Generate config.edit.samples_per_image images from each input image."""
    context = common.open_edit(config, folder, output)
    variants = config.edit.samples_per_image
    name = f"-strength_{config.edit.strength:g}-{variants}_variants"
    target = context.claim_folder(output, mode="image_to_image", name=name)
    with distributed.raise_on_all_processes():
        generator = build_generator(config, context.mesh, len(context.originals) * variants)
    generated = image_to_image(generator, context.params, context.key, context.originals, context.labels, variants)
    sampler = generator.sampler
    top = sampler.schedule.timesteps[-1]
    start = f"from t={top}" if config.edit.strength < 1 else "from pure noise"
    context.write_outputs(
        target,
        mode="image_to_image",
        description=f"strength {config.edit.strength:g}: {start}, {config.sampling.sampler} in {sampler.num_steps} steps",
        rows=[context.originals, *generated.swapaxes(0, 1)],
        arrays={"images": generated, "originals": context.originals},
    )
    return 0


def build_generator(config: ConfigDict, mesh: jax.sharding.Mesh, num_images: int) -> BatchedSampler:
    """The sampler of config.sampling over the fraction config.edit.strength of its steps; num_images: to generate."""
    sampler = build.build_sampler(config, strength=config.edit.strength)
    init, from_data = make_init_fn(sampler, config.edit.strength), build.pixel_format(config).from_data
    begin = lambda keys, images: init(keys, from_data(images))  # noqa: E731
    return build.build_batched_sampler(config, mesh, (), sampler=sampler, begin=begin, num_images=num_images)


def image_to_image(
    generator: BatchedSampler,
    params: Any,
    key: jax.Array,
    images: np.ndarray,
    labels: np.ndarray | None,
    samples_per_image: int,
) -> np.ndarray:
    """Generate images from images, with a progress line: [N, samples_per_image, H, W, C] in the type of the images.

    Args:
      generator: from `build_generator`.
      params: parameters of the network.
      key: the root key; sample j of image i has fold_in(key, i samples_per_image + j).
      images: [N, H, W, C] in the type and range of the data.
      labels: int32 [N] or None.
      samples_per_image: number of samples from each image.
    """
    given, labels = (common.repeat_rows(array, samples_per_image) for array in (images, labels))
    generated = common.generate_from(generator, params, key, given, labels)
    return generated.reshape(len(images), samples_per_image, *generated.shape[1:])


def make_init_fn(sampler: Sampler, strength: float) -> Callable[[jax.Array, jax.Array], SamplerState]:
    """(keys [B], x_start [B, H, W, C]) -> initial state: the noised images, or pure noise for strength 1."""
    if strength < 1:
        return lambda keys, x_start: init_state_sdedit(sampler, keys, x_start)
    return lambda keys, x_start: init_state(sampler, keys, x_start.shape[1:])
