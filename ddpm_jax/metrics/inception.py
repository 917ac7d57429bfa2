"""The Inception-v3 of the FID: the network behind nearly every published FID, KID and Inception Score.

It is the TensorFlow graph "inception-2015-12-05" (Szegedy et al. 2015, arXiv 1512.00567, with the quirks of that graph), which
Heusel et al. 2017 (arXiv 1706.08500) and Salimans et al. 2016 (arXiv 1606.03498) used. A score is comparable only if all of
these details match:

- images are resized to 299x299 by the bilinear resize of TensorFlow 1: output pixel i samples input position i * H / 299
  (no half-pixel centers, corners not aligned), without antialiasing;
- levels 0..255 become (x - 128) / 128;
- average pools of 3x3 divide by the number of pixels under the window, not by 9, along the border;
- the pool branch of the last block takes the maximum, not the average.

Batch norms are folded into the convolutions before them (`inception_weights.py`): each convolution has a kernel and a bias.
Every product is computed in full float32, on accelerators as well: their faster default would change a FID's digits.
Layers have the names of PyTorch's Inception, so that its state dicts can be read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZE = 299  # height and width that the network was trained at
RESIZE = "TensorFlow 1 bilinear to 299x299, not antialiased"
NUM_FEATURES = 2048
NUM_CLASSES = 1008  # 1,000 of them are used
# sFID (Nash et al. 2021, arXiv 2103.03841) as in guided-diffusion's evaluator: mixed_6/conv[..., :7] of the TensorFlow graph,
# which is the 1x1 branch of Mixed_6d after the ReLU.
SPATIAL_CHANNELS = 7
NUM_SPATIAL = 17 * 17 * SPATIAL_CHANNELS


class Features(NamedTuple):
    """Output of the network.

    Attributes:
      features: float32 [N, 2048], the last average pool ("pool3"), not negative: FID, KID, precision and recall.
      logits: float32 [N, 1008], features times the last layer's matrix, WITHOUT its bias: what the Inception Score's
        published numbers were computed from (torch-fidelity calls it "logits_unbiased").
      spatial: float32 [N, 2023], 7 channels of a 17x17 layer, not negative, which keep where things are: sFID.
    """

    features: jax.Array
    logits: jax.Array
    spatial: jax.Array


def apply(variables: Any, images: jax.Array, *, group_size: int | None = None) -> Features:
    """Features and logits of images of any size. Pure; one compilation for each shape.

    Args:
      variables: from `inception_weights.load_weights`.
      images: [N, H, W, C], C 1 (gray, repeated) or 3 (RGB), uint8 or floats in the same units, 0..255.
      group_size: largest number of images in the network at once, in sequential groups; None for all.

    Raises:
      ValueError: wrong shape.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        raise ValueError(f"images must be [N, H, W, 1 or 3], not {list(images.shape)}")
    if group_size is not None and len(images) > group_size:
        return in_groups(lambda group: _apply(variables, group), images, group_size)
    return _apply(variables, images)


def _apply(variables: Any, images: jax.Array) -> Features:
    x = resize(images.astype(jnp.float32))
    x = (x - 128) / 128
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    return Inception().apply(variables, x)


def in_groups(function: Callable[[jax.Array], Any], images: jax.Array, most: int) -> Any:
    """Applies `function` to images [N, ...], N >= 1, in sequential groups of at most `most`.

    All groups have the same size; the last one is padded with the last image.
    """
    number = -(-len(images) // most)
    size = -(-len(images) // number)
    filled = jnp.take(images, np.minimum(np.arange(number * size), len(images) - 1), axis=0, mode="clip")
    groups = lax.map(function, filled.reshape(number, size, *images.shape[1:]))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[: len(images)], groups)


def resize(images: jax.Array) -> jax.Array:
    """The bilinear resize of TensorFlow 1 (align_corners=False): float32 [N, H, W, C] -> [N, 299, 299, C].

    Along each axis, out[i] = x[l] + (x[l + 1] - x[l]) * f where i * H / 299 = l + f, l an integer; the last pixel is
    repeated at the border. Positions are float32, as in TensorFlow.
    """
    for axis in (1, 2):
        length = images.shape[axis]
        if length == SIZE:
            continue
        position = np.arange(SIZE, dtype=np.float32) * np.float32(length / SIZE)
        below = position.astype(np.int32)
        above = np.minimum(below + 1, length - 1)
        fraction = (position - below.astype(np.float32)).reshape([SIZE if i == axis else 1 for i in range(4)])
        low, high = (jnp.take(images, index, axis=axis, mode="clip") for index in (below, above))
        images = low + (high - low) * fraction
    return images


def average_pool(x: jax.Array) -> jax.Array:
    """Mean of the pixels of a 3x3 window that are inside the image: [N, H, W, C] -> the same shape, H and W 2 or more.

    Both pools use slices, one axis at a time, which is faster than `lax.reduce_window` on CPUs.
    """
    for axis in (1, 2):
        count = np.full([x.shape[i] if i == axis else 1 for i in range(4)], 3, np.float32)
        count.reshape(-1)[[0, -1]] = 2
        a, b, c = _windows(jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)]), axis, 1)
        x = (a + b + c) / count
    return x


def max_pool(x: jax.Array, *, stride: int = 2, padding: str = "VALID") -> jax.Array:
    """Maximum of a 3x3 window: [N, H, W, C] -> [N, H', W', C].

    Args:
      x: not negative, so that zero padding changes no maximum.
      stride: window stride.
      padding: "VALID", or "SAME" with stride 1: a border of one pixel.
    """
    if padding == "SAME":
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        a, b, c = _windows(x, axis, stride)
        x = jnp.maximum(jnp.maximum(a, b), c)
    return x


def _windows(x: jax.Array, axis: int, stride: int) -> list[jax.Array]:
    """The first, second and third element of each window of 3 along an axis."""
    number = (x.shape[axis] - 3) // stride + 1
    return [lax.slice_in_dim(x, i, i + stride * (number - 1) + 1, stride, axis) for i in range(3)]


class Conv(nn.Module):
    """Convolution and bias with a folded batch norm, then ReLU.

    Attributes:
      features: output channels.
      kernel: height and width; 1x1 is computed as a matmul, and 3x3 "VALID" by cropping "SAME": both are
        faster on CPUs (the second layer 3 to 4 times).
      stride: 1 or 2.
      padding: "SAME" or "VALID"; with stride 2 "VALID".
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array, pool: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features].

        `pool` precedes the convolution in the network. An average commutes with a 1x1 convolution, since both are linear
        and over different axes, so it runs after it, on fewer channels. The bias is added last: an average keeps it.
        """
        kernel = self.param("kernel", nn.initializers.he_uniform(), (*self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        if self.kernel == (1, 1):
            x = jnp.matmul(x, kernel[0, 0], precision=lax.Precision.HIGHEST)
        else:
            x = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                "SAME" if self.stride == 1 else "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=lax.Precision.HIGHEST,
            )
            if self.stride == 1 and self.padding == "VALID":
                x = x[:, 1:-1, 1:-1]
        if pool is not None:
            x = pool(x)
        return nn.relu(x + bias[None, None, None, :])


class BlockA(nn.Module):
    """35x35: 1x1, 5x5, two 3x3, average pool. [N, 35, 35, C] -> [N, 35, 35, 224 + pool_features]."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(64, name="branch1x1")(x)
        five = Conv(48, name="branch5x5_1")(x)
        five = Conv(64, (5, 5), name="branch5x5_2")(five)
        three = Conv(64, name="branch3x3dbl_1")(x)
        three = Conv(96, (3, 3), name="branch3x3dbl_2")(three)
        three = Conv(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = Conv(self.pool_features, name="branch_pool")(x, average_pool)
        return jnp.concatenate([one, five, three, pool], -1)


class BlockB(nn.Module):
    """35x35 to 17x17: 3x3, two 3x3, maximum. [N, 35, 35, 288] -> [N, 17, 17, 768]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        dbl = Conv(64, name="branch3x3dbl_1")(x)
        dbl = Conv(96, (3, 3), name="branch3x3dbl_2")(dbl)
        dbl = Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(dbl)
        return jnp.concatenate([three, dbl, max_pool(x)], -1)


class BlockC(nn.Module):
    """17x17: 1x1, 7x7 in two parts, two 7x7 in two parts, average pool. [N, 17, 17, 768] -> the same."""

    width: int  # within the 7x7

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.width
        one = Conv(192, name="branch1x1")(x)
        seven = Conv(c, name="branch7x7_1")(x)
        seven = Conv(c, (1, 7), name="branch7x7_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7_3")(seven)
        dbl = Conv(c, name="branch7x7dbl_1")(x)
        dbl = Conv(c, (7, 1), name="branch7x7dbl_2")(dbl)
        dbl = Conv(c, (1, 7), name="branch7x7dbl_3")(dbl)
        dbl = Conv(c, (7, 1), name="branch7x7dbl_4")(dbl)
        dbl = Conv(192, (1, 7), name="branch7x7dbl_5")(dbl)
        pool = Conv(192, name="branch_pool")(x, average_pool)
        return jnp.concatenate([one, seven, dbl, pool], -1)


class BlockD(nn.Module):
    """17x17 to 8x8: 3x3, 7x7 in two parts and 3x3, maximum. [N, 17, 17, 768] -> [N, 8, 8, 1280]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(192, name="branch3x3_1")(x)
        three = Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = Conv(192, name="branch7x7x3_1")(x)
        seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, max_pool(x)], -1)


class BlockE(nn.Module):
    """8x8: 1x1, 3x3 split into 1x3 and 3x1, the same after a 3x3, pool. [N, 8, 8, C] -> [N, 8, 8, 2048]."""

    last: bool  # the last block pools by maximum, the one before it by average

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(320, name="branch1x1")(x)
        three = Conv(384, name="branch3x3_1")(x)
        three = [Conv(384, (1, 3), name="branch3x3_2a")(three), Conv(384, (3, 1), name="branch3x3_2b")(three)]
        dbl = Conv(448, name="branch3x3dbl_1")(x)
        dbl = Conv(384, (3, 3), name="branch3x3dbl_2")(dbl)
        dbl = [Conv(384, (1, 3), name="branch3x3dbl_3a")(dbl), Conv(384, (3, 1), name="branch3x3dbl_3b")(dbl)]
        if self.last:
            pool = Conv(192, name="branch_pool")(max_pool(x, stride=1, padding="SAME"))
        else:
            pool = Conv(192, name="branch_pool")(x, average_pool)
        return jnp.concatenate([one, *three, *dbl, pool], -1)


class Inception(nn.Module):
    """The whole network: float32 [N, 299, 299, 3] in [-1, 1) -> Features."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Features:
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = Conv(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = max_pool(x)
        x = Conv(80, name="Conv2d_3b_1x1")(x)
        x = Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = max_pool(x)
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = BlockC(width, name=name)(x)
            if name == "Mixed_6d":
                spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)  # the 1x1 branch comes first
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(last=False, name="Mixed_7b")(x)
        x = BlockE(last=True, name="Mixed_7c")(x)
        features = x.mean((1, 2))
        kernel = self.param("fc", nn.initializers.lecun_uniform(), (NUM_FEATURES, NUM_CLASSES))
        return Features(features, jnp.matmul(features, kernel, precision=lax.Precision.HIGHEST), spatial)
