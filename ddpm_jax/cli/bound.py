"""The part of --mode=evaluate that measures the variational bound: over a set of images, as numbers and a picture."""

import hashlib
import sys
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.cli import sample
from ddpm_jax.data.source import ImageSource
from ddpm_jax.diffusion import likelihood, vlb
from ddpm_jax.evaluation.vlb_evaluator import VlbBatch, VlbEvaluator
from ddpm_jax.plotting import charts
from ddpm_jax.runtime import distributed, rng
from ddpm_jax.runtime.metric_logger import Progress


class Bound:
    """The variational bound over a set, from the terms of each image.

    Attributes:
      numbers: for the report: bits/dim with its standard error over the images, rate and distortion, and the curve.
      row: for the table.
      picture: uint8 [H, W, 3], the terms over t and the distortion over the rate.
    """

    def __init__(self, measured: VlbBatch, num_timesteps: int):
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
        self.numbers: dict[str, Any] = {
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
        self.row = {"count": number, "bits/dim": float(total.mean()), "± standard error": float(error)}
        self.row |= {"rate": self.numbers["rate"], "distortion": self.numbers["distortion_bits"]}
        curves = [charts.Line(seen, bits_at)]
        pictures = [charts.Chart("Terms of the bound", "t", "bits/dim", curves, log_y=True)]
        rows = likelihood.VlbTerms(bits=bits.T, xstart_mse=xstart_mse.T, eps_mse=eps_mse.T)
        if exact:
            rate, rmse = (
                curve[::-1] for curve in vlb.rate_distortion_curve(prior, rows)
            )  # as the receiver sees it: from x_T on
            self.numbers |= {
                "terms": bits_at.tolist(),
                "eps_mse": eps_mse_at.tolist(),
                "rate_curve": rate.tolist(),
                "distortion_curve_rmse": rmse.tolist(),
            }
            pictures.append(
                charts.Chart("Progressive coding", "rate, bits/dim", "distortion, rmse of 0..255", [charts.Line(rate, rmse)])
            )
        else:
            # The drawing of terms alone, for these images; standard_error has it in it, beside the images' own spread.
            self.numbers["estimate_error"] = vlb.estimate_vlb(prior, rows, weights.T).standard_error
        self.picture = charts.draw(pictures)


def measure_bound(config: ConfigDict, meter: VlbEvaluator, params: Any, source: ImageSource) -> Bound:
    """The bound over the first images of the source, as many as the config says."""
    count = min(config.evaluation.num_heldout_images or len(source), len(source))
    key, parts, digest = rng.purpose_key(config.sampling.seed, "bound"), [], hashlib.sha256()
    with Progress(count, unit="images", out=sys.stderr) as progress:
        tell = progress.update if distributed.is_primary_process() else lambda images: None
        for first in range(0, count, meter.batch_size):
            batch = source.batch(np.arange(first, min(first + meter.batch_size, count)))
            digest.update(batch["image"])
            labels = batch["label"] if config.model.class_conditional else None
            at = sample.offset_progress(tell, first)
            parts += meter.measure(params, key, batch["image"], labels, first_image=first, report=at)
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    measured = Bound(VlbBatch(*columns), config.diffusion.num_timesteps)
    measured.numbers |= {"decoder": config.evaluation.vlb_decoder, "images_sha256": digest.hexdigest()}
    return measured
