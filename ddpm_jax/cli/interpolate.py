"""--mode=interpolate: interpolate between two images in the latent space of DDIM.

DDIM inversion maps each image to a latent, spherical interpolation gives the latents in between, and DDIM maps each of them to
an image (DDIM 2010.02502, section 5.3). Both ends are the input images, up to the error of the inversion.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import common
from ddpm_jax.runtime import distributed
from ddpm_jax.samplers.batched import BatchedSampler
from ddpm_jax.samplers.inversion import slerp
from ddpm_jax.samplers.sampler import init_state_from
from ddpm_jax.user_messages import UsageError


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Generate config.edit.num_frames images from each input image to the next one."""
    context = common.open_edit(config, folder, output, check=check_interpolation)
    if len(context.originals) < 2:
        raise UsageError(
            "interpolation needs two or more images: set config.edit.num_images=2, or give two files in config.edit.images"
        )
    name = f"-turns_{config.edit.inversion_iters}-{config.edit.num_frames}_frames"
    target = context.claim_folder(output, mode="interpolate", name=name)
    with distributed.raise_on_all_processes():
        count = len(context.originals)
        inverter = build_inverter(config, context.mesh, count)
        generator = build_generator(config, context.mesh, (count - 1) * config.edit.num_frames)
    latents = invert(inverter, context.params, context.key, context.originals, context.labels)
    generated = interpolate(generator, context.params, context.key, latents, context.labels, config.edit.num_frames)

    ends = generated[:, [0, -1]].astype(float) - np.stack([context.originals[:-1], context.originals[1:]], axis=1)
    context.write_outputs(
        target,
        mode="interpolate",
        description=(
            f"ddim in {generator.sampler.num_steps} steps, inversion in {inverter.sampler.nfe} evaluations, "
            f"reconstruction RMSE {np.sqrt(np.mean(ends**2)):.2g} of {context.pixel_format.describe_range()}"
        ),
        rows=[context.originals[:-1], *generated.swapaxes(0, 1), context.originals[1:]],
        arrays={"images": generated, "originals": context.originals, "latents": latents},
    )
    return 0


def build_inverter(config: ConfigDict, mesh: jax.sharding.Mesh, num_images: int) -> BatchedSampler:
    """DDIM inversion over the chain of config.sampling, for `invert`; num_images: to invert."""
    inversion = build.build_inversion(config)
    from_data = build.pixel_format(config).from_data
    begin = lambda keys, images: init_state_from(inversion, from_data(images))  # noqa: E731
    options: dict[str, Any] = {"finish": lambda x: x, "num_images": num_images}
    return build.build_batched_sampler(config, mesh, (), sampler=inversion, begin=begin, **options)


def build_generator(config: ConfigDict, mesh: jax.sharding.Mesh, num_images: int) -> BatchedSampler:
    """The sampler of config.sampling, starting from given latents, for `interpolate`; num_images: to generate."""
    sampler = build.build_sampler(config)
    begin = lambda keys, x: init_state_from(sampler, x)  # noqa: E731
    return build.build_batched_sampler(config, mesh, (), sampler=sampler, begin=begin, num_images=num_images)


def invert(inverter: BatchedSampler, params: Any, key: jax.Array, images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """The latents of images [N, H, W, C] of the data's type with labels int32 [N] or None: float32 [N, H, W, C]."""
    return common.generate_from(inverter, params, key, images, labels, unit="latents")


def interpolate(
    generator: BatchedSampler,
    params: Any,
    key: jax.Array,
    latents: np.ndarray,
    labels: np.ndarray | None,
    num_frames: int,
) -> np.ndarray:
    """Generate the images from each latent to the next one, with a progress line: [N - 1, num_frames, H, W, C].

    Args:
      generator: from `build_generator`.
      params: parameters of the network.
      key: the root key; a deterministic sampler does not depend on it.
      latents: float32 [N, H, W, C], from `invert`.
      labels: int32 [N] or None. Labels cannot be interpolated: they switch halfway (`frame_labels`).
      num_frames: images from one end to the other, both ends included.
    """
    pairs = len(latents) - 1
    fractions = np.tile(np.linspace(0, 1, num_frames, dtype=np.float32), pairs)
    first, second = common.repeat_rows(latents[:-1], num_frames), common.repeat_rows(latents[1:], num_frames)
    between = np.asarray(slerp(jnp.asarray(first), jnp.asarray(second), jnp.asarray(fractions)))
    generated = common.generate_from(generator, params, key, between, frame_labels(labels, num_frames))
    return generated.reshape(pairs, num_frames, *generated.shape[1:])


def frame_labels(labels: np.ndarray | None, num_frames: int) -> np.ndarray | None:
    """The label of each frame: those of the nearer end, int32 [N] -> [(N - 1) num_frames]; None without labels."""
    if labels is None:
        return None
    fractions = np.tile(np.linspace(0, 1, num_frames, dtype=np.float32), len(labels) - 1)
    ends = (common.repeat_rows(some, num_frames) for some in (labels[:-1], labels[1:]))
    return np.where(fractions < 0.5, *ends)


def check_interpolation(config: ConfigDict) -> None:
    """Raise a UsageError unless config.sampling is a deterministic chain that can be inverted."""
    sampling = config.sampling
    if sampling.sampler != "ddim" or sampling.ddim.eta:
        eta = f" with eta {sampling.ddim.eta:g}" if sampling.sampler == "ddim" else ""
        raise UsageError(
            f"interpolation needs ddim with eta 0, not {sampling.sampler}{eta}: "
            "set config.sampling.sampler=ddim and config.sampling.ddim.eta=0"
        )
    if sampling.guidance_scale != 1:
        raise UsageError("interpolation does not support guidance: set config.sampling.guidance_scale=1")
