"""Post-hoc EMA of any length: EDM2 (Karras et al. 2312.02696), section 3.2 and appendix C.

The best EMA length is only known after training. A power-function average is the integral of the parameters over the run,
weighted by a profile p_{t,γ} ((30) in `ema.py`), so a linear combination of averages has the linear combination of their
profiles. Given snapshots i, averages of exponents γ_i at steps t_i, the target profile p_{t,γ} is approximated by

    min_x  ‖ Σ_i x_i p_{t_i,γ_i} - p_{t,γ} ‖²    with Σ_i x_i = 1                      (33)

and Σ_i x_i θ̂_i is the average. The norm is that of functions on [0, ∞), whose inner products are known:

    ⟨p_{a,α}, p_{b,β}⟩ = (α+1)(β+1) / (α+β+1) · (a/b)^β / b     for a <= b              (34)  EDM2 eq. 151

EDM2's algorithm 3 solves (33) without the constraint on the sum (`unit_sum=False`), and its code then normalizes it. The mean
of the parameters is much larger than their change: a sum of .999 would shrink every weight of the network by .001. With the
constraint, the profile is the nearest one that does not.

The profiles are exact for discrete steps: (31) of `ema.py` is not an approximation. So a profile in the span of the snapshots
is recovered exactly, up to rounding. Everything here is float64 NumPy on the host; snapshots are read one at a time.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.training.ema import power_gamma


class PosthocWeights(NamedTuple):
    """Weights of the snapshots.

    Attributes:
      weights: float64 [n], one per snapshot, in their order; their sum is 1 with `unit_sum`.
      profile_error: the root of the minimum in (33), relative to ‖p_{t,γ}‖.
      amplification: `Σ |x_i|`, a bound on the amplification of rounding errors of the snapshots.
    """

    weights: np.ndarray
    profile_error: float
    amplification: float


def inner_products(steps: np.ndarray, gammas: np.ndarray, other_steps: np.ndarray, other_gammas: np.ndarray) -> np.ndarray:
    """(34) for each pair of profiles: float64 [n, m]. Steps are positive, γ at least 0."""
    a, alpha = (np.asarray(values, np.float64)[:, None] for values in (steps, gammas))
    b, beta = (np.asarray(values, np.float64)[None, :] for values in (other_steps, other_gammas))
    ratio, latest = np.minimum(a, b) / np.maximum(a, b), np.maximum(a, b)
    exponent = np.where(a < b, beta, alpha)  # of the profile with the later step
    return (alpha + 1) * (beta + 1) / (alpha + beta + 1) * ratio**exponent / latest


def solve_posthoc_weights(
    steps: Sequence[int], stds: Sequence[float], *, target_step: int, target_std: float, unit_sum: bool = True
) -> PosthocWeights:
    """The weights of snapshots for the average of length `target_std` at `target_step`. (33).

    Args:
      steps: [n], optimizer step of each snapshot, at least 1.
      stds: [n], relative standard deviation of each snapshot; usually two or more per step.
      target_step: step of the average, at most that of the last snapshot.
      target_std: in (0, 12^(-1/2)]. Best near those of the snapshots; lengths much below the smallest need many snapshots
        near `target_step`.
      unit_sum: whether the weights must sum to 1; False is EDM2's algorithm 3 as published.

    Raises:
      ValueError: no snapshots, lists of different lengths, a step below 1, a target after the last snapshot, or a standard
        deviation out of range.
    """
    times, gammas = np.asarray(steps, np.float64), np.array([power_gamma(std) for std in stds])
    if not len(times) or times.shape != gammas.shape:
        raise ValueError(f"{len(steps)} steps and {len(stds)} standard deviations: each snapshot needs one of both")
    if times.min() < 1 or not 1 <= target_step <= times.max():
        raise ValueError(f"an average at step {target_step} needs snapshots from step 1 up to this step or later, not {steps}")
    target = np.array([target_step]), np.array([power_gamma(target_std)])
    gram = inner_products(times, gammas, times, gammas)
    overlap = inner_products(times, gammas, *target)[:, 0]
    target_square = float(inner_products(*target, *target)[0, 0])
    # Normalize the profiles, since those of early steps are narrow and high.
    norms = np.sqrt(np.diag(gram))
    scaled, target_overlap = gram / np.outer(norms, norms), overlap / norms
    if unit_sum:
        # One more row and column for the Lagrange multiplier of the constraint.
        edge = norms.min() / norms
        scaled = np.block([[scaled, edge[:, None]], [edge[None, :], np.zeros((1, 1))]])
        target_overlap = np.append(target_overlap, norms.min())
    weights = np.linalg.lstsq(scaled, target_overlap)[0][: len(times)] / norms
    square = target_square - 2 * overlap @ weights + weights @ gram @ weights
    error = float(np.sqrt(max(square, 0.0) / target_square))
    return PosthocWeights(weights, error, float(np.abs(weights).sum()))


def combine_snapshots(weights: np.ndarray, snapshots: Iterable[Any]) -> Any:
    """Σ_i x_i θ̂_i, leaf by leaf: NumPy in the dtype of the snapshots, summed in float64.

    Args:
      weights: [n], from `solve_posthoc_weights`.
      snapshots: n trees of arrays, in the same order; a lazy iterator needs memory for one snapshot only.

    Raises:
      ValueError: the number of snapshots differs from that of weights, or trees differ.
    """
    total, dtypes = None, None
    for weight, tree in zip(weights, snapshots, strict=True):
        part = jax.tree.map(lambda leaf, weight=weight: weight * np.asarray(leaf, np.float64), tree)
        if total is None:
            total, dtypes = part, jax.tree.map(lambda leaf: np.dtype(leaf.dtype), tree)
        else:
            total = jax.tree.map(np.add, total, part)
    if total is None:
        raise ValueError("an average needs at least one snapshot")
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), total, dtypes)
