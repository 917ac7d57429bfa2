"""The animations of --mode=visualize: what config.visualize decides about frames, captions and files."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, sampling_config
from ddpm_jax.plotting import animation
from ddpm_jax.user_messages import UsageError

FRAMES = (2, 400)  # smallest and largest number in each direction


class Chain(NamedTuple):
    """The frames of one direction.

    Attributes:
      t: int [S], -1 for the images themselves; or [S - 1], if the last frame is a sample, which has no t.
      x_t: [N, S, H, W, C]; floats in [-1, 1], or the type of the data.
      pred_xstart: as x_t, the predictions to show below; None for none.
      labels: N labels below the images, or none.
    """

    t: np.ndarray
    x_t: np.ndarray
    pred_xstart: np.ndarray | None = None
    labels: tuple[str, ...] | list[str] = ()


def check_animation(config: ConfigDict) -> None:
    """Raise a UsageError that names the invalid field of config.visualize; nothing is checked if there is no animation."""
    visualize, (least, most) = config.visualize, FRAMES
    if not visualize.animation:
        return
    if visualize.animation not in animation.FORMATS:
        raise UsageError(
            f"config.visualize.animation is {visualize.animation!r}: choose {' or '.join(animation.FORMATS)}, or '' for none"
        )
    if not animation.can_write(visualize.animation):
        raise UsageError("this Pillow was built without WebP: set config.visualize.animation=gif, or reinstall pillow")
    if not least <= visualize.animation_frames <= most:
        raise UsageError(f"config.visualize.animation_frames is {visualize.animation_frames}: choose {least}..{most}")
    fewest = animation.min_seconds(2 * visualize.animation_frames)
    if not fewest <= visualize.animation_seconds <= animation.MAX_SECONDS:
        raise UsageError(
            f"config.visualize.animation_seconds is {visualize.animation_seconds:g}: choose {fewest:g}.."
            f"{animation.MAX_SECONDS:g} for {visualize.animation_frames} frames in each direction"
        )


def saved_steps(config: ConfigDict, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the steps to save.

    Returns:
      int [S], ascending; and the indices of those that the strip of config.visualize.num_stages shows. They are the same with
      and without an animation, whose frames divide each interval of the strip equally.
    """
    stages = min(config.visualize.num_stages - 1, num_steps)
    count = stages * max(1, round(config.visualize.animation_frames / stages)) if config.visualize.animation else stages
    saved = np.unique(np.arange(count) * num_steps // count)
    return saved, np.searchsorted(saved, np.arange(stages) * num_steps // stages)


def write_animations(
    config: ConfigDict, target: pathlib.Path, num_timesteps: int, forward: Chain, reverse: Chain | None
) -> list[str]:
    """Write forward, and with a reverse chain reverse and chain, as .webp or .gif.

    Returns:
      The name of each file with its size, such as "chain.webp (210 kB)".
    """
    forward_part = _part(config, forward, "forward: noise is added to images")
    scenes = {"forward": [forward_part]}
    if reverse is not None:
        caption = f"reverse: {sampling_config.describe_sampling(config)}"
        scenes["reverse"] = [_part(config, reverse, caption)]
        scenes["chain"] = [forward_part, _part(config, reverse._replace(pred_xstart=None), caption)]
    written = []
    for name, parts in scenes.items():
        file = target / f"{name}.{config.visualize.animation}"
        seconds = config.visualize.animation_seconds * (1 if name == "chain" else 0.5)
        size = animation.save(file, animation.draw(parts, num_timesteps, seconds))
        written.append(f"{file.name} ({round(size / 1000):,} kB)")
    return written


def _part(config: ConfigDict, chain: Chain, caption: str) -> animation.Part:
    rows: list[Any] = [chain.x_t] if chain.pred_xstart is None else [chain.x_t, chain.pred_xstart]
    images = build.pixel_format(config).shown(np.stack(rows))  # [R, N, S, H, W, C]
    is_sample = len(chain.t) < images.shape[2]
    return animation.Part(
        images=images.transpose(2, 0, 1, 3, 4, 5),
        t=np.append(chain.t, -1) if is_sample else chain.t,
        caption=caption,
        without_t="sample" if is_sample else "image",
        row_labels=("x_t", "pred_xstart") if len(rows) > 1 else (),
        image_labels=chain.labels,
    )
