"""Reference statistics of real images, saved as npz with provenance.

`mu` [D] and `sigma` [D, D] have the names of other tools. Our files also hold `features` float32 [N, D] for KID, precision
and recall, with Inception `mu_s` and `sigma_s` for sFID, and the provenance as JSON. `statistics_files` also reads files of
other tools, of images and of features.
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
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import open_atomic
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, as_text, os_errors


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Reference statistics, or the images to compute them from.

    Attributes:
      gaussian: mean and covariance of the features; None if there are only images so far.
      features: float32 [N, D], or None if the file has none.
      provenance: set, split, images, resolution, extractor ...; None if the file has none.
      images: uint8 [N, H, W, C] if the file holds images, else None.
      labels: int [N], the classes of the images, or None.
      known_count: number of images if the provenance does not contain it; None if unknown.
      spatial: mean and covariance of the spatial features of Inception, or None.
    """

    gaussian: Gaussian | None
    features: np.ndarray | None
    provenance: dict[str, Any] | None
    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    known_count: int | None = None
    spatial: Gaussian | None = None

    @property
    def count(self) -> int | None:
        """Number of images in the statistics; None if unknown."""
        return (self.provenance or {}).get("images", self.known_count)

    @property
    def class_counts(self) -> np.ndarray | None:
        """int64 [K], images of each class; None if unknown."""
        counts = (self.provenance or {}).get("class_counts")
        if counts is not None:
            return np.asarray(counts, np.int64)
        return None if self.labels is None else np.bincount(self.labels)

    def identity(self) -> dict[str, Any]:
        """A JSON-compatible identifier of these statistics."""
        provenance = self.provenance or {}
        if "images_sha256" in provenance:
            return {name: provenance.get(name) for name in ("set", "split", "images", "images_sha256")}
        digest = hashlib.sha256()
        for array in (self.images, self.features, *(self.gaussian or ())):
            if array is not None:
                digest.update(np.ascontiguousarray(array))
        return {"set": "a file without provenance", "images": self.count, "statistics_sha256": digest.hexdigest()}


def save(file: str | os.PathLike, reference: Reference) -> None:
    """Writes the statistics atomically.

    Raises:
      FileAccessError: the file cannot be written.
    """
    file = storage.as_path(file)
    arrays = {"mu": reference.gaussian.mean, "sigma": reference.gaussian.covariance}
    if reference.features is not None:
        arrays["features"] = reference.features
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    with os_errors(f"cannot write {file}"), open_atomic(file) as out:
        np.savez(out, provenance=np.array(json.dumps(reference.provenance)), **arrays)


def load(file: str | os.PathLike) -> Reference:
    """Reads a file of this program, or of another tool (listed in `statistics_files`).

    Raises:
      FileAccessError: the file does not exist.
      InvalidDataError: the file is damaged or does not hold such statistics.
    """
    file = storage.as_path(file).expanduser()
    try:
        held = statistics_files.read_arrays(file)
        provenance = json.loads(str(held["provenance"])) if "provenance" in held else None
    except FileNotFoundError as error:
        raise FileAccessError(
            f"there are no statistics at {file}: compute them with --mode=compute_stats and `output={file}`"
        ) from error
    except InvalidDataError:  # of `read_arrays`, which has a specific message
        raise
    except (OSError, ValueError, TypeError) as error:
        raise InvalidDataError(f"{file} is damaged or holds no arrays ({type(error).__name__}): create it again") from error
    features, images = held.get("features"), held.get("images")
    if features is not None and (features.ndim != 2 or not np.isfinite(features).all()):
        raise InvalidDataError(
            f"{file} holds features {list(features.shape)} that are not finite numbers [N, D]: create it again"
        )
    missing = [name for name in ("mu", "sigma") if name not in held]
    counted = next((held[name] for name in ("images", "features") if name in held and len(missing) == 2), ())
    known = int(held["count"]) if "count" in held else len(counted) or None
    others = {"images": images, "labels": held.get("labels"), "known_count": known}
    others["spatial"] = _gaussian(file, held, "mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= set(held) else None
    if len(missing) == 2 and (images is not None or features is not None):
        return Reference(None if features is None else gaussian_of(features), features, provenance, **others)
    if missing:
        raise InvalidDataError(f"{file} holds no {' and no '.join(missing)}: it is not a file of reference statistics")
    gaussian = _gaussian(file, held, "mu", "sigma")
    if features is not None and features.shape[1] != gaussian.mean.size:
        raise InvalidDataError(
            f"{file} holds features {list(features.shape)}, which do not match mu {list(gaussian.mean.shape)}: create it again"
        )
    return Reference(gaussian, features, provenance, **others)


def _gaussian(file: pathlib.Path, held: dict[str, np.ndarray], mu: str, sigma: str) -> Gaussian:
    mean, covariance = held[mu], held[sigma]
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise InvalidDataError(
            f"{file} holds {mu} {list(mean.shape)} and {sigma} {list(covariance.shape)}: they must be [D] and [D, D]"
        )
    if not all(np.issubdtype(x.dtype, np.floating) and np.isfinite(x).all() for x in (mean, covariance)):
        raise InvalidDataError(f"{file} holds statistics that are not finite numbers: create it again")
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8 + 1e-6 * np.abs(covariance).max(initial=0)):
        raise InvalidDataError(f"{file} holds a {sigma} that is not symmetric: it is not a covariance")
    return Gaussian(np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


def check_matches(file: str | os.PathLike, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Raises InvalidDataError if the file's provenance differs from `wanted`; names each field. No provenance passes."""
    if found is None:
        return
    differing = [
        f"{name} is {as_text(found.get(name))}, wanted {as_text(value)}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise InvalidDataError(f"{file} holds other statistics: {'; '.join(differing)}")
