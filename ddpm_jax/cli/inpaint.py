"""--mode=inpaint: fill in the masked part of images, with several samples each (RePaint)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import common
from ddpm_jax.runtime import distributed, storage
from ddpm_jax.samplers.batched import BatchedSampler
from ddpm_jax.samplers.repaint import InpaintingInputs, default_jump_length, init_inpainting_state
from ddpm_jax.user_messages import UsageError

WHITE_FROM = 128  # level of a mask file from which on a pixel is filled in
NAMED_MASKS = ("center", "left", "right", "top", "bottom")


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "") -> int:
    """Fill in the region of config.edit.mask in each input image."""
    context = common.open_edit(config, folder, output)
    with distributed.raise_on_all_processes():
        missing = read_mask(config)
        count = len(context.originals) * config.edit.samples_per_image
        inpainter = build_inpainter(config, context.mesh, count)
    options = config.edit
    mask_name = options.mask if options.mask in NAMED_MASKS else "file"
    jump = options.jump_length or default_jump_length(config.sampling.num_steps)
    name = f"-mask_{mask_name}-jump_{jump}-resampling_{options.resampling}-{options.samples_per_image}_variants"
    target = context.claim_folder(output, mode="inpaint", name=name, more=missing)
    filled = inpaint(
        inpainter, context.params, context.key, context.originals, missing, context.labels, options.samples_per_image
    )

    gray = np.asarray(context.pixel_format.to_data(np.float32(0)))
    shown = np.where(missing, gray, context.originals)
    sampling = config.sampling
    context.write_outputs(
        target,
        mode="inpaint",
        description=(
            f"{missing.mean():.0%} of the pixels filled in, {sampling.sampler} in {sampling.num_steps} steps, "
            f"{inpainter.sampler.nfe:,} network evaluations per image"
        ),
        rows=[context.originals, shown, *filled.swapaxes(0, 1)],
        arrays={"images": filled, "originals": context.originals, "missing": missing[..., 0]},
    )
    return 0


def build_inpainter(config: ConfigDict, mesh: jax.sharding.Mesh, num_images: int) -> BatchedSampler:
    """The sampler of config.sampling with RePaint resampling, for `inpaint`; num_images: to generate."""
    sampler = build.build_inpainting_sampler(config)
    from_data = build.pixel_format(config).from_data
    begin = lambda keys, known: init_inpainting_state(sampler, keys, known._replace(x_start=from_data(known.x_start)))  # noqa: E731
    return build.build_batched_sampler(config, mesh, (), sampler=sampler, begin=begin, num_images=num_images)


def inpaint(
    inpainter: BatchedSampler,
    params: Any,
    key: jax.Array,
    images: np.ndarray,
    missing: np.ndarray,
    labels: np.ndarray | None,
    samples_per_image: int,
) -> np.ndarray:
    """Fill in the missing pixels of images, with a progress line: [N, samples_per_image, H, W, C] in the type of the images.

    Args:
      inpainter: from `build_inpainter`.
      params: parameters of the network.
      key: the root key; sample j of image i has fold_in(key, i samples_per_image + j).
      images: [N, H, W, C] in the type and range of the data.
      missing: bool [H, W, 1] or [N, H, W, 1], True for pixels to fill in.
      labels: int32 [N] or None.
      samples_per_image: number of samples for each image.
    """
    mask = np.broadcast_to(~missing, (len(images), *missing.shape[-3:])).astype(np.float32)
    known = InpaintingInputs(*(common.repeat_rows(array, samples_per_image) for array in (images, mask)))
    labels = common.repeat_rows(labels, samples_per_image)
    filled = common.generate_from(inpainter, params, key, known, labels)
    # Known pixels of [-1, 1] are the levels of integers again; floats would be rounded, and values out of range clipped.
    filled = np.where(np.asarray(known.mask) > 0, known.x_start, filled)
    return filled.reshape(len(images), samples_per_image, *filled.shape[1:])


def read_mask(config: ConfigDict) -> np.ndarray:
    """The mask of config.edit.mask: bool [H, W, 1], True for pixels to fill in.

    Raises:
      UserError: the file is not a valid image.
      UsageError: there is no such mask or file, or the mask is all black or all white.
    """
    name, size = config.edit.mask, build.image_shape(config)[:2]
    if name in NAMED_MASKS:
        return named_mask(name, size)
    if not storage.as_path(name).expanduser().exists():
        raise UsageError(
            f"config.edit.mask is {name!r}: not a file or one of {', '.join(NAMED_MASKS)}; use one of these, or an image file "
            "that is white where pixels are generated"
        )
    missing = common.read_image(name, size=size, channels=1) >= WHITE_FROM
    if missing.all() or not missing.any():
        which = "white" if missing.all() else "black"
        raise UsageError(f"config.edit.mask: {name} is all {which}; white pixels are filled in, black pixels are kept")
    return missing


def named_mask(name: str, size: Sequence[int]) -> np.ndarray:
    """The mask called `name`, one of NAMED_MASKS, for images of `size`, (H, W): bool [H, W, 1]."""
    height, width = size
    missing = np.zeros((height, width), bool)
    rows = {
        "top": slice(height // 2),
        "bottom": slice(height // 2, height),
        "center": slice(height // 4, height - height // 4),
    }
    columns = {
        "left": slice(width // 2),
        "right": slice(width // 2, width),
        "center": slice(width // 4, width - width // 4),
    }
    missing[rows.get(name, slice(None)), columns.get(name, slice(None))] = True
    return missing[..., None]
