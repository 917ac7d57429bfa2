"""What images are compared by: a feature extractor turns each into a vector.

`pixels` takes no network and serves small grey images; `module:function` is a network of one's own. Each says in its
provenance what it is, so that numbers made with different ones are never compared.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax.runtime.errors import PersonError, UsageError


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
      apply: uint8 [B, H, W, C] -> Features; pure, for jit.
      provenance: what it is, of what JSON can hold.
    """

    name: str
    apply: Callable[[jax.Array], Features]
    provenance: dict[str, str | int | float]


def make_extractor(name: str) -> FeatureExtractor:
    """The extractor of that name: pixels, or module:function.

    The function of one's own takes uint8 [B, H, W, C] and returns features [B, D], or (features, logits [B, K]) of a
    classifier; it must be one that `jax.jit` takes.

    Raises:
      UsageError: no such extractor, module or function.
    """
    if name == "pixels":
        return FeatureExtractor(name, _pixels, {"features": "pixels", "scale": "0..1"})
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise UsageError(f"config.evaluation.features is {name!r}: choose pixels, or module:function of your own")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the person's command
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"config.evaluation.features is {name}, which cannot be imported: {error}") from error
    return FeatureExtractor(name, lambda images: _checked(name, function(images), len(images)), {"features": name})


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
      PersonError: a feature is not finite, or images of another size.
    """
    size = -(-batch_size // mesh.size) * mesh.size
    sharding = NamedSharding(mesh, P(*mesh.axis_names))
    apply = jax.jit(extractor.apply, out_shardings=sharding)
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
            raise PersonError(f"{extractor.name} gives features that are not finite for images {done}..{done + count - 1}")
        done += count
        report(done)
        return result

    for images in batches:
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise PersonError(f"images of {list(images.shape[1:])} follow images of {list(shape)}: all must have one size")
        rows = images[np.minimum(np.arange(size), len(images) - 1)]
        on_devices = jax.make_array_from_callback(rows.shape, sharding, lambda index, rows=rows: rows[index])
        pending.append((len(images), apply(on_devices)))
        if len(pending) > 1:
            yield finish()
    while pending:
        yield finish()


def _pixels(images: jax.Array) -> Features:
    return Features(images.reshape(images.shape[0], -1).astype(jnp.float32) / 255)


def _checked(name: str, output: jax.Array | tuple[jax.Array, jax.Array], count: int) -> Features:
    """What a function of one's own gave for so many images."""
    arrays = output if isinstance(output, tuple) else (output,)
    shapes = [list(jnp.shape(array)) for array in arrays]
    if not 1 <= len(arrays) <= 2 or any(len(shape) != 2 or shape[0] != count for shape in shapes):
        raise UsageError(f"{name} gives {shapes} for {count} images: it must give [B, D], or [B, D] and logits [B, K]")
    return Features(*(array.astype(jnp.float32) for array in arrays))
