"""--mode=interpolate: interpolate between two images in the latent space of DDIM.

DDIM inversion maps each image to a latent, spherical interpolation gives the latents in between, and DDIM maps each of them to
an image (DDIM 2010.02502, section 5.3). Both ends are the input images, up to the error of the inversion.
"""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import common
from ddpm_jax.diffusion import pixels
from ddpm_jax.runtime import distributed
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
        inversion, sampler = build.build_inversion(config), build.build_sampler(config)
        inverter = build.build_batched_sampler(
            config, context.mesh, (), sampler=inversion, begin=lambda keys, x: init_state_from(inversion, x), finish=lambda x: x
        )
        generator = build.build_batched_sampler(
            config, context.mesh, (), sampler=sampler, begin=lambda keys, x: init_state_from(sampler, x)
        )
    x_start = np.asarray(pixels.from_uint8(context.originals))
    latents = context.generate(inverter, context.labels, x_start, len(x_start), unit="latents")

    frames, pairs = config.edit.num_frames, len(latents) - 1
    fractions = np.tile(np.linspace(0, 1, frames, dtype=np.float32), pairs)
    first, second = common.repeat_rows(latents[:-1], frames), common.repeat_rows(latents[1:], frames)
    between = np.asarray(slerp(jnp.asarray(first), jnp.asarray(second), jnp.asarray(fractions)))
    # Labels cannot be interpolated: switch halfway.
    labels = context.labels
    if labels is not None:
        labels = np.where(fractions < 0.5, common.repeat_rows(labels[:-1], frames), common.repeat_rows(labels[1:], frames))
    generated = context.generate(generator, labels, between, pairs * frames)
    generated = generated.reshape(pairs, frames, *generated.shape[1:])

    ends = generated[:, [0, -1]].astype(float) - np.stack([context.originals[:-1], context.originals[1:]], axis=1)
    context.write_outputs(
        target,
        mode="interpolate",
        description=(
            f"ddim in {sampler.num_steps} steps, inversion in {inversion.nfe} evaluations, "
            f"reconstruction RMSE {np.sqrt(np.mean(ends**2)):.2g} of 255 levels"
        ),
        rows=[context.originals[:-1], *generated.swapaxes(0, 1), context.originals[1:]],
        arrays={"images": generated, "originals": context.originals, "latents": latents},
    )
    return 0


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
