"""--mode=interpolate: the way from one image to another, through the latents that DDIM makes them from.

Each image is taken up the chain by DDIM's inversion; between both latents one goes along a great circle, and DDIM takes each
point back down (DDIM 2010.02502, section 5.3). The ends are the images themselves, as exactly as the inversion is.
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
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Generate config.edit.num_frames images between each of config.edit's images and the next."""
    with distributed.raise_on_all_processes():
        check_interpolation(config)
    job = common.open_edit(config, folder, output, defaults)
    if len(job.originals) < 2:
        raise UsageError(
            "interpolation needs two images or more: set config.edit.num_images=2, or name two files in config.edit.images"
        )
    name = f"-turns_{config.edit.inversion_iters}-{config.edit.num_frames}_frames"
    target = job.claim(output, mode="interpolate", name=name)
    with distributed.raise_on_all_processes():
        up, down = build.build_inversion(config), build.build_sampler(config)
        climb = build.build_batched_sampler(
            config, job.mesh, (), sampler=up, begin=lambda keys, x: init_state_from(up, x), finish=lambda x: x
        )
        descend = build.build_batched_sampler(
            config, job.mesh, (), sampler=down, begin=lambda keys, x: init_state_from(down, x)
        )
    x_start = np.asarray(pixels.from_uint8(job.originals))
    latents = job.generate(climb, job.labels, x_start, len(x_start), unit="latents")

    frames, pairs = config.edit.num_frames, len(latents) - 1
    shares = np.tile(np.linspace(0, 1, frames, dtype=np.float32), pairs)
    first, second = common.repeat_rows(latents[:-1], frames), common.repeat_rows(latents[1:], frames)
    between = np.asarray(slerp(jnp.asarray(first), jnp.asarray(second), jnp.asarray(shares)))
    # A class is no point between two: the way changes it in the middle.
    labels = job.labels
    if labels is not None:
        labels = np.where(shares < 0.5, common.repeat_rows(labels[:-1], frames), common.repeat_rows(labels[1:], frames))
    drawn = job.generate(descend, labels, between, pairs * frames)
    drawn = drawn.reshape(pairs, frames, *drawn.shape[1:])

    ends = drawn[:, [0, -1]].astype(float) - np.stack([job.originals[:-1], job.originals[1:]], axis=1)
    job.write(
        target,
        mode="interpolate",
        words=(
            f"ddim in {down.num_steps} steps and its inversion in {up.nfe} evaluations; "
            f"the images come back with a root mean square error of {np.sqrt(np.mean(ends**2)):.2g} of 255 levels"
        ),
        rows=[job.originals[:-1], *drawn.swapaxes(0, 1), job.originals[1:]],
        arrays={"images": drawn, "originals": job.originals, "latents": latents},
    )
    return 0


def check_interpolation(config: ConfigDict) -> None:
    """Raises UsageError unless config.sampling is a chain that can be walked back."""
    sampling = config.sampling
    if sampling.sampler != "ddim" or sampling.eta:
        raise UsageError(
            f"interpolation goes by ddim with eta 0, not {sampling.sampler} with {sampling.eta:g}: "
            "set config.sampling.sampler=ddim and config.sampling.eta=0"
        )
    if sampling.guidance_scale != 1:
        raise UsageError("interpolation asks the network itself, without guidance: set config.sampling.guidance_scale=1")
