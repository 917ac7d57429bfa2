"""The image that a network is conditioned on, as a function of the training image: a small copy, or its gray levels.

The condition image is made on the device, from uint8 to uint8, so that one stored in a file and read again gives the same
samples. Condition images in a folder of their own are in `image_pairs.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ddpm_jax.data.source import RESIZE_FILTER
from ddpm_jax.runtime import registry

PAIRS = "pairs"
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in `source.center_crop_and_resize`


class Condition(NamedTuple):
    """Condition images of a run.

    Attributes:
      name: downsample, gray, pairs or module:function.
      shape: (h, w, C) of the condition image.
      of_images: uint8 [B, H, W, C] -> uint8 [B, h, w, C]; None if the data set has them ("condition" in its batches).
      max_noise: highest noise level added to them in training, in [0, 1); 0 for none.
    """

    name: str
    shape: tuple[int, int, int]
    of_images: Callable[[jax.Array], jax.Array] | None
    max_noise: float = 0.0


def downsample(images: jax.Array, *, factor: int = 4, method: str = "bicubic") -> jax.Array:
    """Images reduced in height and width: uint8 [B, H, W, C] -> uint8 [B, H / factor, W / factor, C].

    Args:
      images: H and W are multiples of `factor`.
      factor: 2 or more.
      method: bicubic (antialiased, as Pillow's, in SR3 2104.07636) or area (the mean of each square of pixels).

    Raises:
      ValueError: an argument is invalid.
    """
    batch, height, width, channels = images.shape
    if factor < 2 or height % factor or width % factor:
        raise ValueError(f"`factor` is {factor}: it must be 2 or more and divide the size of the images, {height}x{width}")
    shape = (batch, height // factor, width // factor, channels)
    x = images.astype(jnp.float32)
    if method == "area":
        small = x.reshape(*shape[:2], factor, shape[2], factor, channels).mean(axis=(2, 4))
    elif method == "bicubic":
        small = jax.image.resize(x, shape, "cubic", antialias=True)
    else:
        raise ValueError(f"`method` is {method!r}: choose bicubic or area")
    return _rounded(small)


def gray(images: jax.Array) -> jax.Array:
    """The gray levels of color images, for colorization (Palette 2111.05826): uint8 [B, H, W, 3] -> uint8 [B, H, W, 1].

    Raises:
      ValueError: the images are not RGB.
    """
    if images.shape[-1] != 3:
        raise ValueError(f"the condition gray needs color images, but these have {images.shape[-1]} channel: use 3 `channels`")
    return _rounded(jnp.sum(images * jnp.asarray(LUMA)[None, None, None], axis=-1, keepdims=True))


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)


CONDITIONS: dict[str, Callable[..., jax.Array]] = {"downsample": downsample, "gray": gray}


def make_condition(
    name: str, image_shape: Sequence[int], /, *, max_noise: float = 0.0, condition_channels: int = 0, **options: Any
) -> Condition:
    """The condition called `name`.

    Args:
      name: a key of CONDITIONS; pairs; or module:function for a function of the images and the options, of JAX
        operations, uint8 [B, H, W, C] -> uint8 [B, h, w, C'].
      image_shape: (H, W, C) of the images.
      max_noise: as for `Condition`.
      condition_channels: pairs: channels of the condition images, 1 or 3; 0: those of the images.
      options: options of the function; for pairs, where its images are.

    Raises:
      ValueError: unknown name or option; or the function fails, or does not return such images.
    """
    height, width, channels = image_shape
    if name == PAIRS:
        if condition_channels not in (0, 1, 3):
            raise ValueError(f"`condition_channels` is {condition_channels}: choose 1 (gray), 3 (RGB), or 0 for as the images")
        return Condition(name, (height, width, condition_channels or channels), None, max_noise)
    function = registry.bind(name, CONDITIONS, "condition", num_args=1, options=options)
    try:
        found = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))
    except Exception as error:
        if not registry.is_custom(name):
            raise
        raise ValueError(f"the condition {name} fails: {registry.fault(error)}") from error
    if getattr(found, "dtype", None) != jnp.uint8 or len(found.shape) != 4 or found.shape[0] != 1:
        raise ValueError(f"the condition {name} returns {found}: uint8 [B, h, w, C] is required")
    _, h, w, c = found.shape
    return Condition(name, (h, w, c), function, max_noise)


def enlarge(images: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Condition images at the size of images, by Pillow's bicubic filter: uint8 [N, h, w, C'] -> uint8 [N, H, W, C].

    One channel is repeated for C = 3; three become their gray level for C = 1.

    Args:
      images: uint8.
      shape: (H, W, C).
    """
    height, width, channels = shape
    found = np.empty((len(images), height, width, channels), np.uint8)
    for image, large in zip(images, found, strict=True):
        picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
        picture = picture.resize((width, height), RESIZE_FILTER).convert("RGB" if channels == 3 else "L")
        large[:] = np.asarray(picture).reshape(large.shape)
    return found


def batch_conditions(condition: Condition, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """The condition images of a batch of a data set: uint8 [n, h, w, C]."""
    if condition.of_images is None:
        return batch["condition"]
    return np.asarray(jax.jit(condition.of_images)(batch["image"]))
