"""--mode=inpaint: fill in the masked part of images, with several samples each (RePaint)."""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import common
from ddpm_jax.diffusion import pixels
from ddpm_jax.runtime import distributed
from ddpm_jax.samplers.repaint import InpaintingInputs, default_jump_length, init_inpainting_state
from ddpm_jax.user_messages import UsageError

GRAY = 128  # level of the masked pixels in the output grid
NAMED_MASKS = ("center", "left", "right", "top", "bottom")


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Fill in the region of config.edit.mask in each input image."""
    context = common.open_edit(config, folder, output)
    with distributed.raise_on_all_processes():
        missing = read_mask(config)
        sampler = build.build_inpainting_sampler(config)
    options = config.edit
    mask_name = options.mask if options.mask in NAMED_MASKS else "file"
    jump = options.jump_length or default_jump_length(config.sampling.num_steps)
    name = f"-mask_{mask_name}-jump_{jump}-resampling_{options.resampling}-{options.samples_per_image}_variants"
    target = context.claim_folder(output, mode="inpaint", name=name, more=missing)
    variants, count = options.samples_per_image, len(context.originals) * options.samples_per_image
    with distributed.raise_on_all_processes():
        generator = build.build_batched_sampler(
            config, context.mesh, (), sampler=sampler, begin=lambda keys, known: init_inpainting_state(sampler, keys, known)
        )
    x_start = np.asarray(pixels.from_uint8(context.originals))
    mask = np.broadcast_to(~missing, (len(x_start), *missing.shape)).astype(np.float32)
    given = InpaintingInputs(common.repeat_rows(x_start, variants), common.repeat_rows(mask, variants))
    filled = context.generate(generator, common.repeat_rows(context.labels, variants), given, count)
    filled = filled.reshape(len(x_start), variants, *filled.shape[1:])

    shown = np.where(missing, np.uint8(GRAY), context.originals)
    sampling = config.sampling
    context.write_outputs(
        target,
        mode="inpaint",
        description=(
            f"{missing.mean():.0%} of the pixels filled in, {sampling.sampler} in {sampling.num_steps} steps, "
            f"{sampler.nfe:,} network evaluations per image"
        ),
        rows=[context.originals, shown, *filled.swapaxes(0, 1)],
        arrays={"images": filled, "originals": context.originals, "missing": missing[..., 0]},
    )
    return 0


def read_mask(config: ConfigDict) -> np.ndarray:
    """The mask of config.edit.mask: bool [H, W, 1], True for pixels to fill in.

    Raises:
      UserError: the file is not a valid image.
      UsageError: there is no such mask or file, or the mask is all black or all white.
    """
    name, size = config.edit.mask, config.data.image_size
    if name in NAMED_MASKS:
        missing = np.zeros((size, size), bool)
        half, quarter = size // 2, size // 4
        rows = {"top": slice(half), "bottom": slice(half, size), "center": slice(quarter, size - quarter)}
        columns = {"left": slice(half), "right": slice(half, size), "center": slice(quarter, size - quarter)}
        missing[rows.get(name, slice(None)), columns.get(name, slice(None))] = True
        return missing[..., None]
    if not pathlib.Path(name).expanduser().exists():
        raise UsageError(
            f"config.edit.mask is {name!r}: not a file or one of {', '.join(NAMED_MASKS)}; use one of these, or an image file "
            "that is white where pixels are generated"
        )
    missing = common.read_image(name, size=size, channels=1) >= GRAY
    if missing.all() or not missing.any():
        which = "white" if missing.all() else "black"
        raise UsageError(f"config.edit.mask: {name} is all {which}; white pixels are filled in, black pixels are kept")
    return missing
