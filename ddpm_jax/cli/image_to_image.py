"""--mode=image_to_image: draw images anew from the middle of the chain, so that they keep something of old ones (SDEdit).

Noise hides the details of an image first and its layout last. config.edit.strength says how far up the chain an image
is taken: little only cleans it up, much keeps where dark and light are. 1 starts from pure noise and keeps nothing.
"""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import common
from ddpm_jax.diffusion import pixels
from ddpm_jax.runtime import distributed
from ddpm_jax.samplers.sampler import Sampler, SamplerState, init_state, init_state_sdedit


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Generate config.edit.samples_per_image images from each of config.edit's images."""
    job = common.open_edit(config, folder, output, defaults)
    variants, count = config.edit.samples_per_image, len(job.originals) * config.edit.samples_per_image
    name = f"-strength_{config.edit.strength:g}-{variants}_variants"
    target = job.claim(output, mode="image_to_image", name=name)
    with distributed.raise_on_all_processes():
        sampler = build.build_sampler(config, strength=config.edit.strength)
        generator = build.build_batched_sampler(
            config, job.mesh, (), sampler=sampler, begin=make_begin(sampler, config.edit.strength)
        )
    x_start = common.repeat_rows(np.asarray(pixels.from_uint8(job.originals)), variants)
    drawn = job.generate(generator, common.repeat_rows(job.labels, variants), x_start, count)
    drawn = drawn.reshape(len(job.originals), variants, *drawn.shape[1:])
    top = sampler.schedule.timesteps[-1]
    start_words = f"from t={top}" if config.edit.strength < 1 else "from pure noise"
    job.write(
        target,
        mode="image_to_image",
        words=f"strength {config.edit.strength:g}: {start_words} by {config.sampling.sampler} in {sampler.num_steps} steps",
        rows=[job.originals, *drawn.swapaxes(0, 1)],
        arrays={"images": drawn, "originals": job.originals},
    )
    return 0


def make_begin(sampler: Sampler, strength: float) -> Callable[[jax.Array, jax.Array], SamplerState]:
    """(keys [B], x_start [B, H, W, C]) -> where the chain starts: the noisy image, or pure noise at strength 1."""
    if strength < 1:
        return lambda keys, x_start: init_state_sdedit(sampler, keys, x_start)
    return lambda keys, x_start: init_state(sampler, keys, x_start.shape[1:])
