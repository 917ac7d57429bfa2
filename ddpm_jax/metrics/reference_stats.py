"""Statistics of real images in a file, so that they are computed once: npz with provenance.

`mu` [D] and `sigma` [D, D] are what other tools call them. Ours also hold `features` float32 [N, D], which the kernel
distance and precision and recall need, and a JSON text that says what they are of. Files of other tools, and files
of images or features, are read by `statistics_files`.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from ddpm_jax.metrics import statistics_files
from ddpm_jax.metrics.frechet import Gaussian
from ddpm_jax.metrics.moments import gaussian_of
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, os_errors


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What images are compared with.

    Attributes:
      gaussian: mean and covariance of the features; None where there are only images yet.
      features: float32 [N, D], or None from a file that has none.
      provenance: set, split, images, resolution, extractor ...; None from a file that does not say.
      images: uint8 [N, H, W, C] of a file that holds images, else None.
      labels: int [N], their classes, or None.
      known_count: number of images where the provenance does not say; None where it is unknown.
    """

    gaussian: Gaussian | None
    features: np.ndarray | None
    provenance: dict[str, Any] | None
    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    known_count: int | None = None

    @property
    def count(self) -> int | None:
        """How many images these are the statistics of; None where the file does not say."""
        return (self.provenance or {}).get("images", self.known_count)

    @property
    def class_counts(self) -> np.ndarray | None:
        """int64 [K], images of each class; None where it is unknown."""
        counts = (self.provenance or {}).get("class_counts")
        if counts is not None:
            return np.asarray(counts, np.int64)
        return None if self.labels is None else np.bincount(self.labels)

    def identity(self) -> dict[str, Any]:
        """What tells these statistics from others, of what JSON can hold."""
        said = self.provenance or {}
        if "images_sha256" in said:
            return {name: said.get(name) for name in ("set", "split", "images", "images_sha256")}
        digest = hashlib.sha256()
        for array in (self.images, self.features, *(self.gaussian or ())):
            if array is not None:
                digest.update(np.ascontiguousarray(array))
        return {"set": "a file without provenance", "images": self.count, "statistics_sha256": digest.hexdigest()}


def save(file: str | os.PathLike, reference: Reference) -> None:
    """Write atomically.

    Raises:
      FileAccessError: the file cannot be written.
    """
    file = pathlib.Path(file)
    arrays = {"mu": reference.gaussian.mean, "sigma": reference.gaussian.covariance}
    if reference.features is not None:
        arrays["features"] = reference.features
    with os_errors(f"cannot write {file}"), open_atomic(file) as out:
        np.savez(out, provenance=np.array(json.dumps(reference.provenance)), **arrays)


def load(file: str | os.PathLike) -> Reference:
    """Read a file of ours, or one of another tool (`statistics_files` lists them).

    Raises:
      FileAccessError: it is not there.
      InvalidDataError: it is damaged, or does not hold such statistics.
    """
    file = pathlib.Path(file).expanduser()
    try:
        held = statistics_files.read_arrays(file)
        provenance = json.loads(str(held["provenance"])) if "provenance" in held else None
    except FileNotFoundError as error:
        raise FileAccessError(
            f"there are no statistics at {file}: make them with --mode=compute_stats --output={file}"
        ) from error
    except InvalidDataError:  # of `read_arrays`, with a reason of its own
        raise
    except (OSError, ValueError, TypeError) as error:
        raise InvalidDataError(f"{file} is damaged or holds no arrays ({type(error).__name__}): make it again") from error
    features, images = held.get("features"), held.get("images")
    if features is not None and (features.ndim != 2 or not np.isfinite(features).all()):
        raise InvalidDataError(
            f"{file} holds features {list(features.shape)} that are not finite numbers [N, D]: make it again"
        )
    missing = [name for name in ("mu", "sigma") if name not in held]
    counted = next((held[name] for name in ("images", "features") if name in held and len(missing) == 2), ())
    known = int(held["count"]) if "count" in held else len(counted) or None
    others = {"images": images, "labels": held.get("labels"), "known_count": known}
    if len(missing) == 2 and (images is not None or features is not None):
        return Reference(None if features is None else gaussian_of(features), features, provenance, **others)
    if missing:
        raise InvalidDataError(f"{file} holds no {' and no '.join(missing)}: it is no file of reference statistics")
    mean, covariance = held["mu"], held["sigma"]
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise InvalidDataError(
            f"{file} holds mu {list(mean.shape)} and sigma {list(covariance.shape)}: they must be [D] and [D, D]"
        )
    if not all(np.issubdtype(x.dtype, np.floating) and np.isfinite(x).all() for x in (mean, covariance)):
        raise InvalidDataError(f"{file} holds statistics that are not finite numbers: make it again")
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8 + 1e-6 * np.abs(covariance).max(initial=0)):
        raise InvalidDataError(f"{file} holds a sigma that is not symmetric: it is no covariance")
    if features is not None and features.shape[1] != len(mean):
        raise InvalidDataError(f"{file} holds features {list(features.shape)} beside mu {list(mean.shape)}: make it again")
    gaussian = Gaussian(np.asarray(mean, np.float64), np.asarray(covariance, np.float64))
    return Reference(gaussian, features, provenance, **others)


def check_matches(file: str | os.PathLike, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Raises an InvalidDataError that names each field of `wanted` that differs in the file's provenance; none is no error."""
    if found is None:
        return
    differing = [
        f"{name} is {json.dumps(found.get(name))}, wanted {json.dumps(value)}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise InvalidDataError(f"{file} holds statistics of something else: {'; '.join(differing)}")
