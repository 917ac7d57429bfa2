"""How well images generated from condition images agree with the originals, and with the conditions themselves."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.metrics.psnr import psnr


class Reconstruction(NamedTuple):
    """PSNR in dB, means over the images.

    Attributes:
      row: row of the table: psnr, its standard error psnr_stderr, that of the enlarged condition images, and consistency, the
        PSNR between the condition images of the generated images and the given ones, if those can be computed.
      notes: how to read them.
    """

    row: dict[str, float | int]
    notes: list[str]


def measure_reconstruction(
    batches: Iterable[np.ndarray],
    conditions: np.ndarray,
    originals: np.ndarray,
    *,
    enlarge: Callable[[np.ndarray], np.ndarray],
    condition_of: Callable[[np.ndarray], Any] | None,
    baseline: str,
) -> Reconstruction:
    """Compare generated images with the originals of their condition images.

    Args:
      batches: the generated images in order, uint8 [b, H, W, C].
      conditions: uint8 [N, h, w, C'].
      originals: uint8 [N, H, W, C].
      enlarge: condition images -> images of the size of the originals, the baseline.
      condition_of: images -> their condition images; None if there is no such function.
      baseline: name of the baseline.
    """
    columns: dict[str, list[np.ndarray]] = {}
    first = 0
    for images in batches:
        rows = slice(first, first + len(images))
        found = {"psnr": psnr(images, originals[rows]), f"{baseline} psnr": psnr(enlarge(conditions[rows]), originals[rows])}
        if condition_of is not None:
            found["consistency"] = psnr(np.asarray(condition_of(images)), conditions[rows])
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
        first += len(images)
    each = {name: np.concatenate(parts) for name, parts in columns.items()}
    error = float(each["psnr"].std(ddof=1) / np.sqrt(first)) if first > 1 else float("nan")
    means: dict[str, Any] = {name: float(values.mean()) for name, values in each.items()}
    row = {"count": first, "psnr": means.pop("psnr"), "psnr_stderr": error, **means}
    below = row["psnr"] < row[f"{baseline} psnr"]
    note = f"psnr is the mean over images, in dB; {baseline} psnr is that of the enlarged condition images"
    why = ", which samples often do not reach: PSNR rewards blur (2104.07636)" if below else ""
    return Reconstruction(row, [note + why])
