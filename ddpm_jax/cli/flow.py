"""The part of --mode=evaluate that measures the likelihood under the probability flow: of dequantised images."""

import hashlib
import logging
import math
import sys
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.cli import sample
from ddpm_jax.data.source import ImageSource
from ddpm_jax.evaluation.ode_likelihood_evaluator import OdeLikelihoodBatch, OdeLikelihoodEvaluator
from ddpm_jax.runtime import distributed, rng
from ddpm_jax.runtime.metric_logger import Progress

logger = logging.getLogger(__name__)


def measure_flow(
    config: ConfigDict, meter: OdeLikelihoodEvaluator, params: Any, source: ImageSource
) -> tuple[dict[str, Any], dict[str, float | int]]:
    """The likelihood of the first images of the source, as many as the config says: for the report, and for the table."""
    count = min(config.evaluation.num_heldout_images or len(source), len(source))
    if not config.evaluation.hutchinson_samples:
        size = math.prod(source.batch(np.arange(1))["image"].shape)
        line = f"the exact trace: {size:,} derivatives of the network in each of the hundreds of evaluations of an image; "
        line += f"config.evaluation.hutchinson_samples=1 estimates it in about 1/{round((1 + 2 * size) / 3):,} of the time"
        logger.info(line)
    key, parts, digest = rng.purpose_key(config.sampling.seed, "flow"), [], hashlib.sha256()
    with Progress(count, unit="images", out=sys.stderr) as progress:
        tell = progress.update if distributed.is_primary_process() else lambda images: None
        for first in range(0, count, meter.batch_size):
            batch = source.batch(np.arange(first, min(first + meter.batch_size, count)))
            digest.update(batch["image"])
            labels = batch["label"] if config.model.class_conditional else None
            at = sample.offset_progress(tell, first)
            parts += meter.measure(params, key, batch["image"], labels, first_image=first, report=at)
    bits, prior_bits, evaluations = OdeLikelihoodBatch(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    mean, error = float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else float("nan")
    numbers = {
        "kind": "density of uniformly dequantised images under the probability flow; not comparable with bits_per_dim",
        "images": len(bits),
        "bits_per_dim": mean,
        "standard_error": error,
        "prior": float(prior_bits.mean()),
        "trace": "exact"
        if not config.evaluation.hutchinson_samples
        else f"Hutchinson, probes: {config.evaluation.hutchinson_samples}",
        "tolerance": config.evaluation.ode_tolerance,
        "evaluations": float(evaluations.mean()),
        "start_sigma": meter.start_sigma,
        "images_sha256": digest.hexdigest(),
    }
    row = {"count": len(bits), "flow bits/dim": mean, "± flow": error, "evaluations": round(float(evaluations.mean()))}
    return numbers, row


def flow_notes(meter: OdeLikelihoodEvaluator) -> list[str]:
    """What keeps the number from being compared with others'."""
    return [
        "flow bits/dim is the density of dequantized images, not comparable with bits/dim, the bound for 256 levels; the flow "
        f"starts at sigma {meter.start_sigma:.3g} (t = 0), score_sde's at 1e-3"
    ]
