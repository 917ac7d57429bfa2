"""diffusers' configs in terms of ours: config.json of a `UNet2DModel`, and scheduler_config.json.

Both functions return dotted field -> value, such as {"model.unet.ch": 128}. A field of theirs with a value that our network or
diffusion process does not have is an error that names it. A field that is missing has the default of diffusers, as there.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_jax.runtime.errors import InvalidDataError

logger = logging.getLogger(__name__)

Config = Mapping[str, Any]
MAX_SIZE, MAX_LEVELS, MAX_BLOCKS, MAX_CHANNELS = 4096, 12, 32, 16_384  # of a network that is still a network

# Fields of UNet2DModel -> default, of diffusers 0.42.1.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# Fields of the EMA that diffusers saves with a network in training.
_EMA = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
_ONLY: dict[str, tuple[Any, ...]] = {  # field -> supported values
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True, False),
    "class_embed_type": (None,),
}
_EMBEDDINGS = {"ddpm": (False, 1), "iddpm": (True, 0)}  # ours -> flip_sin_to_cos, freq_shift
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")

_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x_start", "v_prediction": "v"}
_VARIANCES = {  # the log variants compute the same variance
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
_SAMPLERS = {"DDPMScheduler": "ancestral", "DDIMScheduler": "ddim", "UniPCMultistepScheduler": "unipc"}


def network_fields(config: Config, source: str, *, image_size: int | None = None) -> dict[str, Any]:
    """The fields of config.data and config.model for a `UNet2DModel`.

    Args:
      config: its config.json.
      source: path, for errors.
      image_size: height and width of the images, for a config without sample_size.

    Raises:
      InvalidDataError: our network cannot express it, or a value is invalid; the message names the field.
    """
    if (name := config.get("_class_name", "UNet2DModel")) != "UNet2DModel":
        raise InvalidDataError(f"{source}: the network is {name!r:.60}: only UNet2DModel can be imported")
    unknown = [name for name in config if not (name in DEFAULTS or name in _EMA or name.startswith("_"))]
    if unknown:
        raise InvalidDataError(
            f"{source}: the field {unknown[0]!r:.60} is unknown: diffusers 0.42.1's UNet2DModel does not have it"
        )
    theirs = DEFAULTS | dict(config)
    for name, values in _ONLY.items():
        if theirs[name] not in values:
            raise _unsupported(source, name, theirs[name], *values)

    def number(name: str, most: int) -> int:
        if type(theirs[name]) is not int or not 0 < theirs[name] <= most:
            raise InvalidDataError(f"{source}: {name} is {theirs[name]!r:.60}: an integer from 1 to {most} is required")
        return theirs[name]

    channels = theirs["block_out_channels"]
    if not isinstance(channels, list | tuple) or not 0 < len(channels) <= MAX_LEVELS:
        raise InvalidDataError(
            f"{source}: block_out_channels is {channels!r:.60}: a list of 1 to {MAX_LEVELS} integers is required"
        )
    if any(type(width) is not int or not 0 < width <= MAX_CHANNELS for width in channels):
        raise InvalidDataError(f"{source}: block_out_channels is {channels!r:.60}: integers up to {MAX_CHANNELS} are required")
    if any(width % channels[0] for width in channels):
        raise InvalidDataError(f"{source}: block_out_channels is {channels!r:.60}: multiples of the first one are required")
    if theirs["time_embedding_dim"] not in (None, 4 * channels[0]):
        raise _unsupported(source, "time_embedding_dim", theirs["time_embedding_dim"], None, 4 * channels[0])
    attention = _attention(theirs, len(channels), source)
    order = [theirs["flip_sin_to_cos"], theirs["freq_shift"]]
    embedding = next((name for name, (flip, shift) in _EMBEDDINGS.items() if order == [flip, shift]), None)
    if embedding is None:
        raise InvalidDataError(
            f"{source}: flip_sin_to_cos is {order[0]!r:.20} and freq_shift is {order[1]!r:.20}: only false and 1, or true and "
            "0, are supported"
        )
    scale_shift = theirs["resnet_time_scale_shift"] == "scale_shift"
    groups = number("norm_num_groups", MAX_CHANNELS)
    # Without it, their attention in the middle has no group norm where the time embedding scales and shifts.
    required = groups if scale_shift and theirs["add_attention"] else None
    if theirs["attn_norm_num_groups"] not in (required, groups):
        raise _unsupported(source, "attn_norm_num_groups", theirs["attn_norm_num_groups"], groups)
    image_channels, outputs = number("in_channels", 3), number("out_channels", 6)
    if outputs not in (image_channels, 2 * image_channels):
        raise _unsupported(source, "out_channels", outputs, image_channels, 2 * image_channels)
    fields = {
        "data.channels": image_channels,
        "model.name": "unet",
        "model.class_conditional": theirs["num_class_embeds"] is not None,
        "model.label_dropout": 0.0,
        "model.unet.ch": channels[0],
        "model.unet.ch_mult": tuple(width // channels[0] for width in channels),
        "model.unet.num_res_blocks": number("layers_per_block", MAX_BLOCKS),
        "model.unet.mid_attention": bool(theirs["add_attention"]),
        "model.unet.dropout": _float(theirs, "dropout", source),
        "model.unet.num_heads": 1,
        "model.unet.head_channels": 0,
        "model.unet.scale_shift": scale_shift,
        "model.unet.norm_groups": groups,
        "model.unet.norm_epsilon": _float(theirs, "norm_eps", source),
        "model.unet.downsample_padding": "symmetric" if theirs["downsample_padding"] else "same",
        "model.unet.time_embedding": embedding,
        "model.unet.resblock_updown": False,
    }
    if theirs["num_class_embeds"] is not None:
        fields["data.num_classes"] = number("num_class_embeds", 10**6)
    if theirs["attention_head_dim"] is not None:
        fields["model.unet.head_channels"] = number("attention_head_dim", MAX_CHANNELS)
    size = theirs["sample_size"] or image_size
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if size is None:
        raise InvalidDataError(f"{source}: sample_size is null: give the size of the images as `image_size=PIXELS`")
    if type(size) is not int or not 0 < size <= MAX_SIZE:
        raise InvalidDataError(f"{source}: sample_size is {size!r:.60}: square images of up to {MAX_SIZE} pixels are required")
    return fields | {"data.image_size": size, "model.unet.attn_resolutions": attention_resolutions(attention, size)}


def attention_resolutions(attention: Sequence[bool], size: int) -> tuple[int, ...]:
    """The heights of the levels that have attention, for images of `size` pixels."""
    return tuple(size // 2**level for level, attends in enumerate(attention) if attends)


def _attention(theirs: Config, levels: int, source: str) -> list[bool]:
    """Whether each level, from the highest resolution, has attention."""
    found = []
    for name, kinds in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        blocks = theirs[name]
        if not isinstance(blocks, list | tuple) or len(blocks) != levels:
            raise InvalidDataError(
                f"{source}: {name} must have one entry for each of the {levels} levels of block_out_channels"
            )
        for block in blocks:
            if block not in kinds:
                raise _unsupported(source, name, block, *kinds)
        found.append([block == kinds[1] for block in blocks])
    down, up = found
    if down != up[::-1]:
        raise InvalidDataError(f"{source}: up_block_types must have attention at the same levels as down_block_types")
    return down


def diffusion_fields(scheduler: Config, source: str) -> dict[str, Any]:
    """The fields of config.diffusion and config.sampling for the config of a scheduler.

    Args:
      scheduler: its scheduler_config.json.
      source: path, for errors.

    Raises:
      InvalidDataError: as `network_fields`.
    """

    def choose(name: str, default: str, values: Mapping[str, str]) -> str:
        if (value := scheduler.get(name, default)) not in list(values):
            raise _unsupported(source, name, value, *values)
        return values[value]

    steps = scheduler.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 0 < steps <= 10**6:
        raise InvalidDataError(f"{source}: num_train_timesteps is {steps!r:.60}: an integer from 1 to 1,000,000 is required")
    if scheduler.get("trained_betas") is not None:
        raise _unsupported(source, "trained_betas", scheduler["trained_betas"], None)
    clips = bool(scheduler.get("clip_sample", True))
    if clips and scheduler.get("clip_sample_range", 1.0) != 1:
        raise _unsupported(source, "clip_sample_range", scheduler["clip_sample_range"], 1)
    fields: dict[str, Any] = {
        "diffusion.num_timesteps": steps,
        "model.unet.time_scale": steps / 1000,  # there the network is given t itself
        "diffusion.schedule": choose("beta_schedule", "linear", _SCHEDULES),
        "diffusion.prediction": choose("prediction_type", "epsilon", _PREDICTIONS),
        "diffusion.clip_denoised": clips,
        "diffusion.zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr", False)),
    }
    if fields["diffusion.schedule"] == "linear":
        for name, default in (("beta_start", 1e-4), ("beta_end", 0.02)):
            # Ours are for 1,000 steps, theirs for all.
            fields[f"diffusion.linear.{name}"] = _float({name: default} | dict(scheduler), name, source) * steps / 1000
    if "variance_type" in scheduler or scheduler.get("_class_name") == "DDPMScheduler":
        fields["diffusion.variance"] = choose("variance_type", "fixed_small", _VARIANCES)
    spacing = scheduler.get("timestep_spacing", "leading")
    if spacing in ("leading", "linspace", "trailing"):
        fields["sampling.spacing"] = spacing
    if sampler := _SAMPLERS.get(str(scheduler.get("_class_name"))):
        fields["sampling.sampler"] = sampler
        fields["sampling.num_steps"] = steps if sampler == "ancestral" else min(50, steps)
    for name in ("thresholding", "steps_offset"):
        if scheduler.get(name):
            logger.warning(f"{source}: {name}={scheduler[name]!r:.20} is ignored: no sampler here has it")
    return fields


def _float(config: Config, name: str, source: str) -> float:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidDataError(f"{source}: {name} is {value!r:.60}: a number is required")
    return float(value)


def _unsupported(source: str, name: str, value: Any, *supported: Any) -> InvalidDataError:
    known = " or ".join(
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) for value in supported
    )
    return InvalidDataError(f"{source}: {name} is {value!r:.60}, which this program does not have: only {known}")
