"""What images are compared by: a feature extractor turns each into a vector.

`inception` is the network of published numbers; `pixels` takes no network and serves small gray images; `pixels_16` does the
same of images averaged down to 16x16, so that photographs of any size have few enough numbers; `module:function` is a network
of the user's own. Each says in its provenance what it is, so that numbers made with different ones are never compared.
"""

import dataclasses
import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.runtime.errors import InvalidArgumentError, InvalidDataError, error_line

CHOICES = "inception, pixels, pixels_16 (or another size), or module:function of your own"


class Features(NamedTuple):
    """Of B images.

    Attributes:
      features: float32 [B, D].
      logits: float32 [B, K], of classes; None from an extractor that knows none.
    """

    features: jax.Array | np.ndarray
    logits: jax.Array | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A way to turn images into vectors.

    Attributes:
      name: as the person gives it.
      apply: variables, uint8 [B, H, W, C] -> Features; pure, for jit.
      provenance: what it is, of what JSON can hold.
      variables: what `apply` takes first: arrays, or None. Not among its constants, which would be compiled with it.
    """

    name: str
    apply: Callable[[Any, jax.Array], Features]
    provenance: dict[str, str | int | float]
    variables: Any = None


def make_extractor(
    name: str,
    *,
    inception_path: str = "",
    group_size: int | None = None,
    progress: Callable[[int, str], Any] | None = None,
) -> FeatureExtractor:
    """The extractor of that name: inception, pixels, pixels_SIZE, or module:function.

    The function of one's own takes uint8 [B, H, W, C] and returns features [B, D], or (features, logits [B, K]) of a
    classifier; it must be one that `jax.jit` takes.

    Args:
      name: as above.
      inception_path: file of Inception's weights; "" to have them found or downloaded.
      group_size: of Inception, as `inception.apply` takes it.
      progress: of a download, as `metrics.download` takes it.

    Raises:
      InvalidArgumentError: no such extractor, module, function or file, or weights for an extractor that has none.
      InvalidDataError: Inception's weights are damaged or of another network.
      UnavailableError: they are neither here nor can they be downloaded.
    """
    if name == "inception":
        return _inception(inception_path, group_size, progress)
    if inception_path:
        raise InvalidArgumentError(f"`inception_path` is of Inception, but `features` is {name}: leave one out")
    if name == "pixels":
        return FeatureExtractor(name, _pixels, {"features": "pixels", "scale": "0..1"})
    size = name.removeprefix("pixels_")
    if name.startswith("pixels_") and size.isdecimal() and int(size):
        shrink = functools.partial(_small_pixels, int(size))
        return FeatureExtractor(name, shrink, {"features": name, "scale": "0..1", "resize": "mean over the covered area"})
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise InvalidArgumentError(f"`features` is {name!r}: choose {CHOICES}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the person's command
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # of the user's module
        raise InvalidArgumentError(f"`features` is {name}, which cannot be imported: {_fault(error)}") from error

    def apply(_: None, images: jax.Array) -> Features:
        try:
            result = function(images)
        except Exception as error:  # of the user's function
            shape = list(images.shape)
            raise InvalidArgumentError(f"`features` is {name}, which fails for uint8 {shape}: {_fault(error)}") from error
        return _checked(name, result, len(images))

    return FeatureExtractor(name, apply, {"features": name})


def _fault(error: Exception) -> str:
    """What failed in the user's module, and in which line of which file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    place = f" (line {own[-1].lineno} of {own[-1].filename})" if own and "<frozen" not in own[-1].filename else ""
    return f"{error_line(error, most=200, kind=True)}{place}"


def extract(
    extractor: FeatureExtractor,
    mesh: Mesh,
    batches: Iterable[np.ndarray],
    *,
    batch_size: int,
    report: Callable[[int], None] = lambda images: None,
) -> Iterator[Features]:
    """Features of images, batch by batch, NumPy, on every host; over all devices.

    While the devices compute one batch, the host reads the next.

    Args:
      extractor: from `make_extractor`.
      mesh: of one axis; each device takes its share of every batch.
      batches: uint8 [b, H, W, C] each, b at most batch_size, all of one H, W, C; the same on every host.
      batch_size: images that the devices take at once; shorter batches are filled up, so that one compilation serves all.
      report: called with the number of images done.

    Raises:
      InvalidDataError: a feature is not finite, or images of another size.
    """
    size = -(-batch_size // mesh.size) * mesh.size
    sharding = NamedSharding(mesh, P(*mesh.axis_names))
    apply = jax.jit(extractor.apply, out_shardings=sharding)
    variables = jax.device_put(extractor.variables, NamedSharding(mesh, P()))
    shape, done = None, 0
    pending: list[tuple[int, Features]] = []

    def finish() -> Features:
        nonlocal done
        count, computed = pending.pop(0)
        arrays = (
            multihost_utils.process_allgather(computed, tiled=True) if jax.process_count() > 1 else jax.device_get(computed)
        )
        result = Features(*(None if array is None else np.asarray(array)[:count] for array in arrays))
        if not np.isfinite(result.features).all():
            raise InvalidDataError(f"{extractor.name} gives features that are not finite for images {done}..{done + count - 1}")
        done += count
        report(done)
        return result

    for images in batches:
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise InvalidDataError(f"images of {list(images.shape[1:])} follow images of {list(shape)}: all must have one size")
        rows = images[np.minimum(np.arange(size), len(images) - 1)]
        on_devices = jax.make_array_from_callback(rows.shape, sharding, lambda index, rows=rows: rows[index])
        pending.append((len(images), apply(variables, on_devices)))
        if len(pending) > 1:
            yield finish()
    while pending:
        yield finish()


def _inception(weights: str, group_size: int | None, progress: Callable[[int, str], Any] | None) -> FeatureExtractor:
    from ddpm_jax.metrics import inception, inception_weights  # who compares pixels needs neither it nor safetensors

    found = inception_weights.load_weights(weights, progress=progress)
    provenance = {
        "features": "inception",
        "weights_sha256": found.sha256,
        "weights_published": found.published,
        "resize": inception.RESIZE,
    }
    apply = functools.partial(apply_inception, group_size=group_size)
    return FeatureExtractor("inception", apply, provenance, found.variables)


def apply_inception(variables: Any, images: jax.Array, *, group_size: int | None = None) -> Features:
    """`inception.apply`, with the type of this file."""
    from ddpm_jax.metrics import inception

    return Features(*inception.apply(variables, images, group_size=group_size))


def _pixels(_: None, images: jax.Array) -> Features:
    return Features(images.reshape(images.shape[0], -1).astype(jnp.float32) / 255)


def _small_pixels(size: int, _: None, images: jax.Array) -> Features:
    """Pixels of images that are larger than size x size averaged down to it; exact where size divides theirs."""
    rows, columns = (jnp.asarray(_area_weights(length, size)) for length in images.shape[1:3])
    precise = jax.lax.Precision.HIGHEST
    small = jnp.einsum("hH,bHWc,wW->bhwc", rows, images.astype(jnp.float32) / 255, columns, precision=precise)
    return Features(small.reshape(images.shape[0], -1))


def _area_weights(length: int, size: int) -> np.ndarray:
    """float32 [min(size, length), length]: row i averages over the share i of the pixels, parts of pixels included."""
    size = min(size, length)
    edges = np.arange(size + 1) * length / size
    low, high = np.maximum(edges[:-1, None], np.arange(length)), np.minimum(edges[1:, None], np.arange(length) + 1)
    return (np.maximum(high - low, 0) * size / length).astype(np.float32)


def feature_size(extractor: FeatureExtractor, image_shape: tuple[int, int, int]) -> int:
    """D, the numbers in the features of an image [H, W, C]; nothing is computed.

    Raises:
      InvalidArgumentError: the user's own function gives something else than features.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    return jax.eval_shape(extractor.apply, extractor.variables, image).features.shape[1]


def _checked(name: str, output: jax.Array | tuple[jax.Array, jax.Array], count: int) -> Features:
    """What a function of one's own gave for so many images."""
    arrays = output if isinstance(output, tuple) else (output,)
    shapes = [list(jnp.shape(array)) for array in arrays]
    if not 1 <= len(arrays) <= 2 or any(len(shape) != 2 or shape[0] != count for shape in shapes):
        raise InvalidArgumentError(
            f"{name} gives {shapes} for {count} images: it must give [B, D], or [B, D] and logits [B, K]"
        )
    return Features(*(array.astype(jnp.float32) for array in arrays))
