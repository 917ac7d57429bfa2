"""Statistics of real images in a file, so that they are computed once: npz with provenance.

`mu` [D] and `sigma` [D, D] are what other tools call them, and files of theirs that hold these two can be read.
Ours also hold `features` float32 [N, D], which the kernel distance and precision and recall need, and a JSON
text that says what they are of.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from ddpm_jax.metrics.frechet import Gaussian
from ddpm_jax.runtime.errors import PersonError


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What images are compared with.

    Attributes:
      gaussian: mean and covariance of the features.
      features: float32 [N, D], or None from a file that has none.
      provenance: set, split, images, resolution, extractor ...; None from a file that does not say.
    """

    gaussian: Gaussian
    features: np.ndarray | None
    provenance: dict[str, Any] | None


def save(file: str | os.PathLike, reference: Reference) -> None:
    """Write atomically.

    Raises:
      PersonError: the file cannot be written.
    """
    file = pathlib.Path(file)
    partial = file.with_name(f"{file.name}.partial")
    arrays = {"mu": reference.gaussian.mean, "sigma": reference.gaussian.covariance}
    if reference.features is not None:
        arrays["features"] = reference.features
    try:
        with partial.open("wb") as out:
            np.savez(out, provenance=np.array(json.dumps(reference.provenance)), **arrays)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PersonError(f"cannot write {file}: {(error.strerror or str(error)).lower()}") from error


def load(file: str | os.PathLike) -> Reference:
    """Read a file of ours, or one with `mu` and `sigma` of another tool.

    Raises:
      PersonError: it is not there, damaged, or does not hold such statistics.
    """
    file = pathlib.Path(file)
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in ("mu", "sigma", "features", "provenance") if name in arrays}
        provenance = json.loads(str(held["provenance"])) if "provenance" in held else None
    except FileNotFoundError as error:
        raise PersonError(f"there are no statistics at {file}: make them with --mode=reference --output={file}") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise PersonError(f"{file} is damaged or holds no arrays ({type(error).__name__}): make it again") from error
    missing = [name for name in ("mu", "sigma") if name not in held]
    if missing:
        raise PersonError(f"{file} holds no {' and no '.join(missing)}: it is no file of reference statistics")
    mean, covariance, features = held["mu"], held["sigma"], held.get("features")
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise PersonError(f"{file} holds mu {list(mean.shape)} and sigma {list(covariance.shape)}: they must be [D] and [D, D]")
    if not all(np.issubdtype(x.dtype, np.floating) and np.isfinite(x).all() for x in (mean, covariance)):
        raise PersonError(f"{file} holds statistics that are not finite numbers: make it again")
    if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8 + 1e-6 * np.abs(covariance).max(initial=0)):
        raise PersonError(f"{file} holds a sigma that is not symmetric: it is no covariance")
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mean)):
        raise PersonError(f"{file} holds features {list(features.shape)} beside mu {list(mean.shape)}: make it again")
    gaussian = Gaussian(np.asarray(mean, np.float64), np.asarray(covariance, np.float64))
    return Reference(gaussian, features, provenance)


def check_matches(file: str | os.PathLike, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Raises a PersonError that names each field of `wanted` that the file's provenance has otherwise; none is no error."""
    if found is None:
        return
    differing = [
        f"{name} is {json.dumps(found.get(name))}, wanted {json.dumps(value)}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise PersonError(f"{file} holds statistics of something else: {'; '.join(differing)}")
