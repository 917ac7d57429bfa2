"""Feature extractors: each maps an image to a vector.

`inception` is the network of published numbers. `pixels` needs no network and suits small gray images; `pixels_16` first
averages images down to 16x16, which bounds the dimension for photographs of any size. `module:function` is the user's own
network. The provenance of an extractor identifies it, so that numbers of different extractors are never compared.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.runtime import registry
from ddpm_jax.runtime.errors import InvalidArgumentError

CHOICES = "inception, pixels, pixels_16 (or another size), or module:function of your own"


class Features(NamedTuple):
    """Features of B images.

    Attributes:
      features: float32 [B, D].
      logits: float32 [B, K] of a classifier; None for other extractors.
      spatial: float32 [B, S] of Inception, for the sFID; None for other extractors.
    """

    features: jax.Array | np.ndarray
    logits: jax.Array | np.ndarray | None = None
    spatial: jax.Array | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A function from images to vectors.

    Attributes:
      name: as given by the user.
      apply: (variables, uint8 [B, H, W, C]) -> Features; pure, for jit.
      provenance: identifies the extractor, JSON-compatible.
      variables: first argument of `apply`: arrays, or None. An argument, because constants would be compiled in.
    """

    name: str
    apply: Callable[[Any, jax.Array], Features]
    provenance: dict[str, str | int | float]
    variables: Any = None


def check_name(name: str) -> None:
    """Raise an InvalidArgumentError unless `make_extractor` knows the name; a custom function is imported."""
    size = name.removeprefix("pixels_")
    if registry.is_custom(name):
        with _naming_features():
            registry.load(name, "features")
    elif name not in ("inception", "pixels") and not (name.startswith("pixels_") and size.isdecimal() and int(size)):
        raise InvalidArgumentError(f"`features` is {name!r}: choose {CHOICES}")


@contextlib.contextmanager
def _naming_features() -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"`features`: {error}") from error


def make_extractor(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    inception_path: str = "",
    group_size: int | None = None,
    progress: Callable[[int, str], Any] | None = None,
) -> FeatureExtractor:
    """Makes an extractor by name: inception, pixels, pixels_SIZE, or module:function.

    A custom function takes uint8 [B, H, W, C] and returns features [B, D], or (features, logits [B, K]) of a classifier;
    `jax.jit` must accept it.

    Args:
      name: as above.
      options: keyword arguments of a custom function.
      inception_path: file with Inception's weights; "" to find or download them.
      group_size: for Inception, see `inception.apply`.
      progress: for the download, see `download.download`.

    Raises:
      InvalidArgumentError: unknown extractor, module, function or file, or a weights file for an extractor without weights.
      InvalidDataError: Inception's weights are damaged or belong to another network.
      UnavailableError: Inception's weights are missing and cannot be downloaded.
    """
    check_name(name)
    if options and not registry.is_custom(name):
        raise InvalidArgumentError(f"`features` is {name}, which has no option {next(iter(options))!r}")
    if name == "inception":
        return _inception(inception_path, group_size, progress)
    if inception_path:
        raise InvalidArgumentError(f"`inception_path` applies to inception, but `features` is {name}: leave one out")
    if name == "pixels":
        return FeatureExtractor(name, _pixels, {"features": "pixels", "scale": "0..1"})
    if not registry.is_custom(name):
        shrink = functools.partial(_small_pixels, int(name.removeprefix("pixels_")))
        return FeatureExtractor(name, shrink, {"features": name, "scale": "0..1", "resize": "mean over the covered area"})
    with _naming_features():
        function = registry.bind(name, {}, "features", num_args=1, options=options or {})

    def apply(_: None, images: jax.Array) -> Features:
        try:
            result = function(images)
        except Exception as error:  # raised by the user's function
            shape = list(images.shape)
            raise InvalidArgumentError(
                f"`features` is {name}, which fails for uint8 {shape}: {registry.fault(error)}"
            ) from error
        return _checked(name, result, len(images))

    identity = {"features": name, **registry.source_digest(name)}
    return FeatureExtractor(name, apply, identity | ({"options": json.dumps(options)} if options else {}))


def _inception(weights: str, group_size: int | None, progress: Callable[[int, str], Any] | None) -> FeatureExtractor:
    from ddpm_jax.metrics import inception, inception_weights  # imported lazily; pixel features need neither

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
    """`inception.apply`, returning this module's `Features`."""
    from ddpm_jax.metrics import inception

    return Features(*inception.apply(variables, images, group_size=group_size))


def _pixels(_: None, images: jax.Array) -> Features:
    return Features(images.reshape(images.shape[0], -1).astype(jnp.float32) / 255)


def _small_pixels(size: int, _: None, images: jax.Array) -> Features:
    """Pixels of images averaged down to at most size x size; an exact block mean if `size` divides height and width."""
    rows, columns = (jnp.asarray(_area_weights(length, size)) for length in images.shape[1:3])
    precise = jax.lax.Precision.HIGHEST
    small = jnp.einsum("hH,bHWc,wW->bhwc", rows, images.astype(jnp.float32) / 255, columns, precision=precise)
    return Features(small.reshape(images.shape[0], -1))


def _area_weights(length: int, size: int) -> np.ndarray:
    """float32 [min(size, length), length]: row i averages over interval i of the pixels, fractional pixels included."""
    size = min(size, length)
    edges = np.arange(size + 1) * length / size
    low, high = np.maximum(edges[:-1, None], np.arange(length)), np.minimum(edges[1:, None], np.arange(length) + 1)
    return (np.maximum(high - low, 0) * size / length).astype(np.float32)


def feature_size(extractor: FeatureExtractor, image_shape: tuple[int, int, int]) -> int:
    """D, the feature dimension for images [H, W, C], from shapes alone. Raises as `feature_shapes`."""
    return feature_shapes(extractor, image_shape).features.shape[1]


def feature_shapes(extractor: FeatureExtractor, image_shape: tuple[int, int, int]) -> Features:
    """The shapes of the features of one image [H, W, C], as `jax.ShapeDtypeStruct`; None where the extractor has none.

    Raises:
      InvalidArgumentError: a custom function does not return features.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    return jax.eval_shape(extractor.apply, extractor.variables, image)


def _checked(name: str, output: jax.Array | tuple[jax.Array, jax.Array], count: int) -> Features:
    """Validates the output of a custom function for `count` images."""
    arrays = output if isinstance(output, tuple) else (output,)
    shapes = [list(array.shape) if hasattr(array, "shape") else type(array).__name__ for array in arrays]
    if not 1 <= len(arrays) <= 2 or any(len(shape) != 2 or shape[0] != count for shape in shapes):
        raise InvalidArgumentError(
            f"{name} returns {shapes} for {count} images: it must return [B, D], or [B, D] and logits [B, K]"
        )
    return Features(*(array.astype(jnp.float32) for array in arrays))
