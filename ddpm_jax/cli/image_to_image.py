"""--mode=image_to_image: add noise to images and denoise them again (SDEdit).

Noise destroys the details of an image first and its layout last. config.edit.strength is the fraction of the steps to run: a
small one changes details only, a large one keeps the layout only. 1 starts from pure noise and keeps nothing.
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
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Generate config.edit.samples_per_image images from each input image."""
    context = common.open_edit(config, folder, output)
    variants, count = config.edit.samples_per_image, len(context.originals) * config.edit.samples_per_image
    name = f"-strength_{config.edit.strength:g}-{variants}_variants"
    target = context.claim_folder(output, mode="image_to_image", name=name)
    with distributed.raise_on_all_processes():
        sampler = build.build_sampler(config, strength=config.edit.strength)
        generator = build.build_batched_sampler(
            config, context.mesh, (), sampler=sampler, begin=make_init_fn(sampler, config.edit.strength)
        )
    x_start = common.repeat_rows(np.asarray(pixels.from_uint8(context.originals)), variants)
    generated = context.generate(generator, common.repeat_rows(context.labels, variants), x_start, count)
    generated = generated.reshape(len(context.originals), variants, *generated.shape[1:])
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


def make_init_fn(sampler: Sampler, strength: float) -> Callable[[jax.Array, jax.Array], SamplerState]:
    """(keys [B], x_start [B, H, W, C]) -> initial state: the noised images, or pure noise for strength 1."""
    if strength < 1:
        return lambda keys, x_start: init_state_sdedit(sampler, keys, x_start)
    return lambda keys, x_start: init_state(sampler, keys, x_start.shape[1:])
