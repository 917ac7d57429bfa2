"""Summaries of likelihoods, by hand."""

import math

import numpy as np
import pytest

from ddpm_jax.evaluation.heldout_likelihood import summarize_vlb
from ddpm_jax.evaluation.vlb_evaluator import VlbBatch

PRIOR = np.array([0.5, 0.25])


def test_the_bound_from_all_terms():
    """Two images, three steps: rate and distortion are plain sums; RMSE is of the mean over the images, times 127.5."""
    bits = np.array([[2.0, 0.5, 0.125], [3.0, 0.25, 0.375]])
    error = np.array([[1e-4, 1e-2, 0.25], [3e-4, 1e-2, 0.75]])
    numbers, row, _ = summarize_vlb(VlbBatch(np.tile([0, 1, 2], (2, 1)), np.ones((2, 3)), bits, error, error, PRIOR), 3)
    found = [numbers[name] for name in ("bits_per_dim", "prior", "rate", "distortion_bits")]
    assert found == [2.5 + 0.375 + 0.25 + 0.375, 0.375, 1.0, 2.5]
    assert numbers["distortion_rmse"] == pytest.approx(127.5 * math.sqrt(2e-4), rel=1e-6)
    assert numbers["exact"]
    assert "estimate_error" not in numbers
    assert numbers["rate_curve"] == [0.375, 0.625, 1.0]
    assert row["bits/dim"] == numbers["bits_per_dim"]


def test_the_bound_from_sampled_terms():
    """Each stratum is sampled twice, with half of its weight: distortion from t=0, rate from the others."""
    t, weights = np.array([[0, 0, 3, 1], [0, 0, 2, 2]]), np.array([[0.5, 0.5, 4.0, 2.0], [0.5, 0.5, 3.0, 1.0]])
    bits = np.array([[1.0, 2.0, 0.25, 0.5], [3.0, 3.0, 0.5, 0.5]])
    numbers, _, _ = summarize_vlb(VlbBatch(t, weights, bits, bits, bits, PRIOR), 8)
    assert not numbers["exact"]
    assert numbers["distortion_bits"] == (1.5 + 3.0) / 2
    assert numbers["rate"] == 0.375 + (2.0 + 2.0) / 2
    assert numbers["bits_per_dim"] == numbers["rate"] + numbers["distortion_bits"]
    assert numbers["estimate_error"] == pytest.approx(math.sqrt(0.5**2 + 0.0 + 0.0 + 1.0**2) / 2)
