"""--mode=inpaint: draw the missing part of images anew, each several times (RePaint)."""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.cli import edit
from ddpm_jax.diffusion import pixels
from ddpm_jax.runtime import distributed
from ddpm_jax.samplers.repaint import InpaintingInputs, default_jump_length, init_inpainting_state
from ddpm_jax.user_messages import UsageError

GRAY = 128  # what the picture shows in place of what is missing
NAMED_MASKS = ("center", "left", "right", "top", "bottom")


@distributed.distributed_main()
def run(config: ConfigDict, folder: str, *, output: str = "", defaults: ConfigDict | None = None) -> int:
    """Fill in what config.edit.mask leaves out of config.edit's images; the exit code.

    Args:
      config: resolved.
      folder: workdir of the run that trained the model.
      output: where to write; by default a folder in the workdir's samples/.
      defaults: values of fields that the workdir's config is too old to have.

    Raises:
      UserError, UsageError: as `edit.begin`; no such mask, or a sampler that cannot fill in.
    """
    with distributed.raise_on_all_processes():
        edit.check_edit(config)
        missing = read_mask(config)
        sampler = build.build_inpainting_sampler(config)
    job = edit.setup(config, folder, output, defaults)
    options = config.edit
    mask_name = options.mask if options.mask in NAMED_MASKS else "file"
    jump = options.jump_length or default_jump_length(config.sampling.num_steps)
    name = f"-mask_{mask_name}-jump_{jump}-resampling_{options.resampling}-{options.samples_per_image}_variants"
    target = edit.claim(job, output, mode="inpaint", name=name, more=missing)
    variants, count = options.samples_per_image, len(job.originals) * options.samples_per_image
    with distributed.raise_on_all_processes():
        generator = build.build_batched_sampler(
            config, job.mesh, (), sampler=sampler, begin=lambda keys, known: init_inpainting_state(sampler, keys, known)
        )
    x_start = np.asarray(pixels.from_uint8(job.originals))
    mask = np.broadcast_to(~missing, (len(x_start), *missing.shape)).astype(np.float32)
    given = InpaintingInputs(edit.repeat_rows(x_start, variants), edit.repeat_rows(mask, variants))
    filled = edit.draw(job, generator, edit.repeat_rows(job.labels, variants), given, count, what="images")
    filled = filled.reshape(len(x_start), variants, *filled.shape[1:])

    shown = np.where(missing, np.uint8(GRAY), job.originals)
    sampling = config.sampling
    edit.write_outputs(
        job,
        target,
        mode="inpaint",
        words=(
            f"{missing.mean():.0%} filled in by {sampling.sampler} in {sampling.num_steps} steps, "
            f"{sampler.nfe:,} network evaluations per image"
        ),
        rows=[job.originals, shown, *filled.swapaxes(0, 1)],
        arrays={"images": filled, "originals": job.originals, "missing": missing[..., 0]},
    )
    return 0


def read_mask(config: ConfigDict) -> np.ndarray:
    """bool [H, W, 1], True where config.edit.mask has the image filled in.

    Raises:
      UserError: a file that is no image.
      UsageError: nothing or everything is missing.
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
            f"config.edit.mask is {name!r}: no such file, and none of {', '.join(NAMED_MASKS)}; give one of these or an image, "
            "white where the image is generated"
        )
    grey = ConfigDict({"data": {"image_size": size, "channels": 1, "background": "black", "value_range": ()}})
    missing = edit.read_file(name, grey) >= GRAY
    if missing.all() or not missing.any():
        which = "white" if missing.all() else "black"
        raise UsageError(f"config.edit.mask: {name} is all {which}; white is filled in, and black is kept")
    return missing
