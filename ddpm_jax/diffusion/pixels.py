"""Conversion between the values of a data set, such as uint8 0..255, floats in [-1, 1], and pictures of 8 bits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("uint8", "uint16", "float32")


def from_uint8(images: jax.Array) -> jax.Array:
    """uint8 0..255 of any shape -> float32 in [-1, 1]; k becomes k / 127.5 - 1. DDPM 2006.11239, section 3.3."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """Float of any shape, clipped to [-1, 1] -> uint8 by rounding; truncation would darken by half a level."""
    return jnp.clip(x * 127.5 + 128.0, 0.0, 255.0).astype(jnp.uint8)


class PixelFormat(NamedTuple):
    """Type and range of the values of a data set.

    Attributes:
      dtype: one of `DTYPES`.
      low: value that becomes -1; values below it are clipped.
      high: value that becomes 1.
      shown_channels: one or three channels that pictures show; (): all of one or three, the first of two, the first three
        of more.
    """

    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    shown_channels: tuple[int, ...] = ()

    @property
    def num_levels(self) -> int:
        """Number of levels of an integer type; 0 for floats, which have densities instead of probabilities."""
        return round(self.high - self.low) + 1 if self.dtype != "float32" else 0

    def describe_range(self) -> str:
        """The distance of `low` and `high`, as text: "255 levels", or "a range of 0.5" of floats."""
        return f"{self.high - self.low:g} levels" if self.num_levels else f"a range of {self.high - self.low:g}"

    def from_data(self, images: jax.Array) -> jax.Array:
        """Values of any shape -> float32 in [-1, 1]."""
        if self.dtype == "uint8":
            return from_uint8(images)
        return jnp.clip((images.astype(jnp.float32) - self.low) * (2 / (self.high - self.low)) - 1.0, -1.0, 1.0)

    def to_data(self, x: jax.Array) -> jax.Array:
        """Float of any shape, clipped to [-1, 1] -> values; integers by rounding."""
        if self.dtype == "uint8":
            return to_uint8(x)
        values = (jnp.clip(x, -1.0, 1.0) + 1.0) * ((self.high - self.low) / 2) + self.low
        return values if self.dtype == "float32" else jnp.floor(values + 0.5).astype(self.dtype)

    def to_255(self, images: jax.Array) -> jax.Array:
        """Values of any shape -> the same on the scale 0..255: uint8 as it is, other types as float32."""
        return images if self.dtype == "uint8" else (self.from_data(images) + 1.0) * 127.5

    def is_picture(self, channels: int) -> bool:
        """Whether images of so many channels are pictures themselves, gray or RGB of 8 bits, which PNG files hold exactly."""
        return self.dtype == "uint8" and channels in (1, 3)

    def shown(self, images: np.ndarray) -> np.ndarray:
        """The picture of images [..., H, W, C], for display: uint8 [..., H, W, 1 or 3], `low` is 0 and `high` is 255."""
        channels = self._channels_of(images.shape[-1])
        if channels != tuple(range(images.shape[-1])):
            images = images[..., channels]
        if self.dtype == "uint8":
            return images
        scaled = (np.asarray(images, np.float64) - self.low) * (255 / (self.high - self.low))
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)

    def describe_shown(self, channels: int) -> str:
        """A sentence about the pictures of images of so many channels; "" if they show the images as they are."""
        shown, parts = self._channels_of(channels), []
        if shown != tuple(range(channels)):
            parts.append(f"channel {', '.join(map(str, shown))} of 0..{channels - 1}")
        if self.dtype != "uint8":
            parts.append(f"{self.dtype}, {self.low:g} is black, {self.high:g} is white")
        return f"Shown: {'; '.join(parts)}." if parts else ""

    def _channels_of(self, channels: int) -> tuple[int, ...]:
        return self.shown_channels or tuple(range(3 if channels >= 3 else 1))


UINT8 = PixelFormat()
