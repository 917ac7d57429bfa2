"""The likelihood of images that the model was not trained on: the variational bound, and the density under the ODE.

Both are measured image by image by an evaluator, and summarized here as numbers for a report, a row of a table and a picture.
"""

import hashlib
import logging
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data.source import ImageSource
from ddpm_jax.diffusion import likelihood, vlb
from ddpm_jax.evaluation.ode_likelihood_evaluator import OdeLikelihoodBatch, OdeLikelihoodEvaluator
from ddpm_jax.evaluation.vlb_evaluator import VlbBatch, VlbEvaluator
from ddpm_jax.plotting import charts
from ddpm_jax.runtime import distributed, rng

logger = logging.getLogger(__name__)


class Likelihood(NamedTuple):
    """A likelihood of a set of images.

    Attributes:
      numbers: for the report.
      row: for a table.
      depends_on: those of the numbers that tell such results apart.
      notes: what keeps the number from being compared with others'.
      picture: uint8 [H, W, 3], or None.
    """

    numbers: dict[str, Any]
    row: dict[str, float | int]
    depends_on: tuple[str, ...]
    notes: list[str]
    picture: np.ndarray | None = None


def measure_vlb(
    evaluator: VlbEvaluator, params: Any, source: ImageSource, *, num_images: int, seed: int, has_classes: bool
) -> Likelihood:
    """The variational bound over the first images of the source: at most `num_images`, all for 0."""
    key = rng.purpose_key(seed, "bound")
    columns, images_sha256 = _measure(evaluator, params, source, num_images, key, has_classes)
    numbers, row, picture = summarize_vlb(VlbBatch(*columns), evaluator.num_timesteps)
    numbers |= {"decoder": evaluator.decoder, "images_sha256": images_sha256}
    notes = [] if evaluator.decoder == "exact" else ["bits/dim by the tanh decoder of improved-diffusion"]
    return Likelihood(numbers, row, ("images", "images_sha256", "terms_per_image", "decoder"), notes, picture)


def measure_ode_likelihood(
    evaluator: OdeLikelihoodEvaluator, params: Any, source: ImageSource, *, num_images: int, seed: int, has_classes: bool
) -> Likelihood:
    """The density under the probability-flow ODE, of the images that `measure_vlb` takes."""
    if not evaluator.probes:
        size = math.prod(source.batch(np.arange(1))["image"].shape)
        logger.info(
            f"the exact trace: {size:,} derivatives of the network in each of the hundreds of evaluations of an image; "
            f"config.evaluation.hutchinson_samples=1 estimates it in about 1/{round((1 + 2 * size) / 3):,} of the time"
        )
    key = rng.purpose_key(seed, "flow")
    columns, images_sha256 = _measure(evaluator, params, source, num_images, key, has_classes)
    bits, prior_bits, evaluations = OdeLikelihoodBatch(*columns)
    mean, error = float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else float("nan")
    numbers = {
        "kind": "density of uniformly dequantised images under the probability flow; not comparable with bits_per_dim",
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
    row = {"count": len(bits), "flow bits/dim": mean, "± flow": error, "evaluations": round(float(evaluations.mean()))}
    note = (
        "flow bits/dim is the density of dequantized images, not comparable with bits/dim, the bound for 256 levels; the flow "
        f"starts at sigma {evaluator.start_sigma:.3g} (t = 0), score_sde's at 1e-3"
    )
    return Likelihood(numbers, row, ("images", "images_sha256", "trace", "tolerance"), [note])


def summarize_vlb(measured: VlbBatch, num_timesteps: int) -> tuple[dict[str, Any], dict[str, float | int], np.ndarray]:
    """The bound over a set, from the terms of each image.

    Returns:
      Numbers for a report (bits/dim with its standard error over the images, rate and distortion, and the curve), a row of a
      table, and a picture of the terms over t and the distortion over the rate.
    """
    t, weights, bits, xstart_mse, eps_mse, prior = measured
    number, terms = bits.shape
    total = prior + (weights * bits).sum(axis=1)
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
    row = {"count": number, "bits/dim": numbers["bits_per_dim"], "± standard error": numbers["standard_error"]}
    row |= {"rate": numbers["rate"], "distortion": numbers["distortion_bits"]}
    pictures = [charts.Chart("Terms of the bound", "t", "bits/dim", [charts.Line(seen, bits_at)], log_y=True)]
    rows = likelihood.VlbTerms(bits=bits.T, xstart_mse=xstart_mse.T, eps_mse=eps_mse.T)
    if exact:
        # In the order in which a receiver gets them, from x_T on.
        rate, rmse = (curve[::-1] for curve in vlb.rate_distortion_curve(prior, rows))
        numbers |= {"terms": bits_at.tolist(), "eps_mse": eps_mse_at.tolist()}
        numbers |= {"rate_curve": rate.tolist(), "distortion_curve_rmse": rmse.tolist()}
        curve = [charts.Line(rate, rmse)]
        pictures.append(charts.Chart("Progressive coding", "rate, bits/dim", "distortion, rmse of 0..255", curve))
    else:
        # The drawing of terms alone, for these images; standard_error has it in it, beside the images' own spread.
        numbers["estimate_error"] = vlb.estimate_vlb(prior, rows, weights.T).standard_error
    return numbers, row, charts.draw(pictures)


def _measure(
    evaluator: VlbEvaluator | OdeLikelihoodEvaluator,
    params: Any,
    source: ImageSource,
    num_images: int,
    key: jax.Array,
    has_classes: bool,
) -> tuple[list[np.ndarray], str]:
    """What the evaluator gives for each image, column by column, and a hash of the images; shows progress."""
    count = min(num_images or len(source), len(source))
    parts, digest = [], hashlib.sha256()
    with distributed.show_progress(count) as report:
        for first in range(0, count, evaluator.batch_size):
            batch = source.batch(np.arange(first, min(first + evaluator.batch_size, count)))
            digest.update(batch["image"])
            labels = batch["label"] if has_classes else None
            at = lambda images, first=first: report(first + images)  # noqa: E731
            parts += evaluator.measure(params, key, batch["image"], labels, first_image=first, report=at)
    return [np.concatenate(column) for column in zip(*parts, strict=True)], digest.hexdigest()
