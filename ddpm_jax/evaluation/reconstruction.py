"""How well images generated from condition images agree with the originals, and with the conditions themselves."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.metrics.psnr import psnr
from ddpm_jax.runtime import distributed, exchange


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
    first: int = 0,
) -> Reconstruction:
    """Compare generated images with the originals of their condition images. All processes call this.

    Args:
      batches: the generated images of this process in order, uint8 [b, H, W, C].
      conditions: uint8 [N, h, w, C'].
      originals: uint8 [N, H, W, C].
      enlarge: condition images -> images of the size of the originals, the baseline.
      condition_of: images -> their condition images; None if there is no such function.
      baseline: name of the baseline.
      first: index of the first image of this process.
    """
    columns = [np.empty((0, 3))]
    with distributed.raise_on_all_processes():
        for images in batches:
            given, own = conditions[first : first + len(images)], originals[first : first + len(images)]
            back = np.full(len(images), np.nan) if condition_of is None else psnr(np.asarray(condition_of(images)), given)
            columns.append(np.stack([psnr(images, own), psnr(enlarge(given), own), back], axis=1))
            first += len(images)
    names = ("psnr", f"{baseline} psnr", "consistency")[: 2 if condition_of is None else 3]
    each = dict(zip(names, exchange.concatenate(np.concatenate(columns)).T, strict=False))
    count = len(each["psnr"])
    error = float(each["psnr"].std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    means: dict[str, Any] = {name: float(values.mean()) for name, values in each.items()}
    row = {"count": count, "psnr": means.pop("psnr"), "psnr_stderr": error, **means}
    below = row["psnr"] < row[f"{baseline} psnr"]
    note = f"psnr is the mean over images, in dB; {baseline} psnr is that of the enlarged condition images"
    why = ", which samples often do not reach: PSNR rewards blur (2104.07636)" if below else ""
    return Reconstruction(row, [note + why])
