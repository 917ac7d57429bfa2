"""Likelihood of held-out images: the variational bound, and the density under the probability-flow ODE.

An evaluator computes both image by image. This module summarizes them: numbers for a report, a table row and a chart.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data import duplicates
from ddpm_jax.data.source import Batch, ImageSource
from ddpm_jax.diffusion import likelihood, vlb
from ddpm_jax.evaluation.feature_extraction import gather_hashes
from ddpm_jax.evaluation.likelihood_evaluator import LikelihoodEvaluator
from ddpm_jax.evaluation.ode_likelihood_evaluator import OdeLikelihoodBatch, OdeLikelihoodEvaluator
from ddpm_jax.evaluation.vlb_evaluator import VlbBatch, VlbEvaluator
from ddpm_jax.plotting import charts
from ddpm_jax.runtime import distributed, exchange, rng

logger = logging.getLogger(__name__)

# (batch of a source, index of its first image) -> the condition of each image, a pytree of arrays [n, ...], or None
CondFn = Callable[[Batch, int], Any]


class Likelihood(NamedTuple):
    """Likelihood of a set of images.

    Attributes:
      numbers: numbers of the report.
      row: row of the table.
      depends_on: names of the numbers that identify the measurement.
      notes: notes on comparability.
      picture: chart, uint8 [H, W, 3], or None.
    """

    numbers: dict[str, Any]
    row: dict[str, float | int]
    depends_on: tuple[str, ...]
    notes: list[str]
    picture: np.ndarray | None = None


def measure_vlb(
    evaluator: VlbEvaluator, params: Any, source: ImageSource, *, num_images: int, seed: int, cond_of: CondFn
) -> Likelihood:
    """Variational bound of the first `num_images` images of the source, given their conditions; 0: all."""
    key = rng.purpose_key(seed, "bound")
    columns, images_sha256 = _measure(evaluator, params, source, num_images, key, cond_of)
    numbers, row, picture = summarize_vlb(VlbBatch(*columns), evaluator.num_timesteps)
    numbers |= {"decoder": evaluator.decoder, "images_sha256": images_sha256}
    notes = [] if evaluator.decoder == "exact" else ["bits/dim with the tanh decoder of improved-diffusion"]
    return Likelihood(numbers, row, ("images", "images_sha256", "terms_per_image", "decoder"), notes, picture)


def measure_ode_likelihood(
    evaluator: OdeLikelihoodEvaluator, params: Any, source: ImageSource, *, num_images: int, seed: int, cond_of: CondFn
) -> Likelihood:
    """Density under the probability-flow ODE of the same images as in `measure_vlb`."""
    if not evaluator.probes:
        size = math.prod(source.batch(np.arange(1))["image"].shape)
        logger.info(
            f"the exact trace takes {size:,} derivatives of the network in each of the hundreds of evaluations per image; "
            f"config.evaluation.hutchinson_samples=1 estimates it in about 1/{round((1 + 2 * size) / 3):,} of the time"
        )
    key = rng.purpose_key(seed, "flow")
    columns, images_sha256 = _measure(evaluator, params, source, num_images, key, cond_of)
    bits, prior_bits, evaluations = OdeLikelihoodBatch(*columns)
    mean, error = float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else float("nan")
    numbers = {
        "kind": "density of uniformly dequantized images under the probability-flow ODE; not comparable with bits_per_dim",
        "images": len(bits),
        "bits_per_dim": mean,
        "standard_error": error,
        "prior": float(prior_bits.mean()),
        "trace": f"Hutchinson, probes: {evaluator.probes}" if evaluator.probes else "exact",
        "tolerance": evaluator.rtol,
        "evaluations": float(evaluations.mean()),
        "start_sigma": evaluator.start_sigma,
        "images_sha256": images_sha256,
    }
    row = {"count": len(bits), "ODE bits/dim": mean, "stderr": error, "evaluations": round(float(evaluations.mean()))}
    note = (
        "ODE bits/dim is the density of dequantized images, not comparable with bits/dim, the bound for 256 levels; the ODE "
        f"starts at sigma {evaluator.start_sigma:.3g} (t = 0), that of score_sde at 1e-3"
    )
    return Likelihood(numbers, row, ("images", "images_sha256", "trace", "tolerance"), [note])


def summarize_vlb(measured: VlbBatch, num_timesteps: int) -> tuple[dict[str, Any], dict[str, float | int], np.ndarray]:
    """Summarize the bound of a set from the terms of each image.

    Returns:
      Numbers for the report (bits/dim with its standard error over the images, rate, distortion and their curve), the row of
      the table, and a chart of the terms over t and of the rate-distortion curve, uint8 [H, W, 3].
    """
    t, weights, bits, xstart_mse, eps_mse, prior = measured
    number, terms = bits.shape
    total = measured.bits_per_image
    count = np.bincount(t.ravel(), minlength=num_timesteps)
    seen = np.flatnonzero(count)
    bits_at, mse_at, eps_mse_at = (
        np.bincount(t.ravel(), values.ravel(), minlength=num_timesteps)[seen] / count[seen]
        for values in (bits, xstart_mse, eps_mse)
    )
    distortion = np.where(t == 0, weights * bits, 0.0).sum(axis=1)
    error = total.std(ddof=1) / np.sqrt(number) if number > 1 else float("nan")
    exact = terms == num_timesteps
    numbers: dict[str, Any] = {
        "images": number,
        "terms_per_image": terms,
        "exact": exact,
        "bits_per_dim": float(total.mean()),
        "standard_error": float(error),
        "prior": float(prior.mean()),
        "rate": float((total - distortion).mean()),
        "distortion_bits": float(distortion.mean()),
        "distortion_rmse": float(vlb.LEVELS_PER_UNIT * np.sqrt(mse_at[0])),
    }
    row = {"count": number, "bits/dim": numbers["bits_per_dim"], "stderr": numbers["standard_error"]}
    row |= {"rate": numbers["rate"], "distortion": numbers["distortion_bits"]}
    panels = [charts.Chart("Terms of the bound", "t", "bits/dim", [charts.Line(seen, bits_at)], log_y=True)]
    rows = likelihood.VlbTerms(bits=bits.T, xstart_mse=xstart_mse.T, eps_mse=eps_mse.T)
    if exact:
        # In the order in which a receiver gets them, starting at x_T.
        rate, rmse = (curve[::-1] for curve in vlb.rate_distortion_curve(prior, rows))
        numbers |= {"terms": bits_at.tolist(), "eps_mse": eps_mse_at.tolist()}
        numbers |= {"rate_curve": rate.tolist(), "distortion_curve_rmse": rmse.tolist()}
        curve = [charts.Line(rate, rmse)]
        panels.append(charts.Chart("Progressive coding", "rate, bits/dim", "distortion, rmse of 0..255", curve))
    else:
        # The error from sampling t only, for these images; standard_error also includes the variance over images.
        numbers["estimate_error"] = vlb.sampling_error(bits.T, weights.T)
    return numbers, row, charts.draw(panels)


def _measure(
    evaluator: LikelihoodEvaluator,
    params: Any,
    source: ImageSource,
    num_images: int,
    key: jax.Array,
    cond_of: CondFn,
) -> tuple[list[np.ndarray], str]:
    """The output of the evaluator for all images, as columns, and their digest. Shows a progress line.

    Each host reads its own images only.
    """
    count = min(num_images or len(source), len(source))
    hashes: dict[int, bytes] = {}  # index -> of the images of this host

    def read(indices: np.ndarray) -> tuple[np.ndarray, Any]:
        with distributed.raise_on_all_processes():
            first, last = int(indices.min()), int(indices.max())  # the others repeat the last one, as padding
            batch = source.batch(np.arange(first, last + 1))
            hashes.update(zip(range(first, last + 1), duplicates.hash_images(batch["image"]), strict=True))
            cond = cond_of(batch, first)
            return jax.tree.map(lambda rows: np.asarray(rows)[indices - first], (batch["image"], cond))

    with distributed.show_progress(count) as report:
        parts = list(evaluator.evaluate_rows(params, key, read, count, report=report))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    indices = exchange.concatenate(np.array(list(hashes), np.int64))
    order = np.unique(indices, return_index=True)[1]  # padding may be an image of another host
    every = gather_hashes(list(hashes.values()))
    return columns, duplicates.digest([every[row] for row in order])
