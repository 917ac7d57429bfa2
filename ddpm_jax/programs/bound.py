"""The part of --mode=evaluate that measures the variational bound: over a set of images, as numbers and a picture."""

import sys
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import charts
from ddpm_jax.data.source import ImageSource
from ddpm_jax.programs import sample
from ddpm_jax.runtime import processes, randomness
from ddpm_jax.runtime.logbook import Progress
from ddpm_jax.samplers.bound import BoundMeter


class Bound:
    """The variational bound over a set, from the terms of each image.

    Attributes:
      numbers: for the report: bits/dim with its standard error over the images, its parts, and the curve.
      row: for the table.
      picture: uint8 [H, W, 3], the terms over t and the distortion over the rate.
    """

    def __init__(self, t: np.ndarray, bits: np.ndarray, xstart_mse: np.ndarray, prior: np.ndarray, num_timesteps: int):
        number, terms = bits.shape
        weight = num_timesteps / terms  # each term stands for so many
        total = prior + weight * bits.sum(axis=1)
        at_t = np.full((2, num_timesteps), np.nan)
        count = np.bincount(t.ravel(), minlength=num_timesteps)
        seen = count > 0
        for row, values in enumerate((bits, xstart_mse)):
            at_t[row, seen] = np.bincount(t.ravel(), values.ravel(), minlength=num_timesteps)[seen] / count[seen]
        error = total.std(ddof=1) / np.sqrt(number) if number > 1 else float("nan")
        self.numbers: dict[str, Any] = {
            "images": number,
            "terms_per_image": terms,
            "exact": terms == num_timesteps,
            "bits_per_dim": float(total.mean()),
            "standard_error": float(error),
            "prior": float(prior.mean()),
        }
        self.row = {"count": number, "bits/dim": float(total.mean()), "± standard error": float(error)}
        curves = [charts.Line(np.flatnonzero(seen), at_t[0, seen])]
        pictures = [charts.Chart("Terms of the bound", "t", "bits/dim", curves, log_y=True)]
        if terms == num_timesteps:
            # Progressive coding (DDPM 4.3): with all of x_T .. x_t sent, the receiver knows x_start to this distortion.
            distortion = 127.5 * np.sqrt(at_t[1][::-1])
            rate = prior.mean() + np.concatenate([[0.0], np.cumsum(at_t[0][:0:-1])])
            self.numbers |= {
                "rate": float(prior.mean() + at_t[0, 1:].sum()),
                "distortion_bits": float(at_t[0, 0]),
                "distortion_rmse": float(distortion[-1]),
                "terms": at_t[0].tolist(),
                "rate_curve": rate.tolist(),
                "distortion_curve_rmse": distortion.tolist(),
            }
            self.row |= {"rate": self.numbers["rate"], "distortion": self.numbers["distortion_bits"]}
            curve = [charts.Line(rate, distortion)]
            pictures.append(charts.Chart("Progressive coding", "rate, bits/dim", "distortion, rmse of 0..255", curve))
        self.picture = charts.draw(pictures)


def measure_bound(config: ConfigDict, meter: BoundMeter, params: Any, source: ImageSource) -> Bound:
    """The bound over the first images of the source, as many as the config says."""
    count = min(config.evaluation.held_out_images or len(source), len(source))
    key, parts = randomness.purpose_key(config.sampling.seed, "bound"), []
    with Progress(count, unit="images", out=sys.stderr) as progress:
        tell = progress.update if processes.is_writer() else lambda images: None
        for first in range(0, count, meter.batch_size):
            batch = source.batch(np.arange(first, min(first + meter.batch_size, count)))
            labels = batch["label"] if config.model.class_conditional else None
            at = sample.shifted(tell, first)
            parts += meter.measure(params, key, batch["image"], labels, first_image=first, report=at)
    t, bits, xstart_mse, prior = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Bound(t, bits, xstart_mse, prior, config.diffusion.num_timesteps)
