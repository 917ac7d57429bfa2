"""An average of any length, after training: EDM2 (Karras et al. 2312.02696), section 3.2 and appendix C.

How long an average should be is known only when its pictures are looked at. A power-function average is the integral of
the parameters over the run, weighed by a profile p_{t,γ} ((30) in `ema.py`); so a sum of averages is the average
by the sum of their profiles. Given snapshots i, averages of exponents γ_i kept at steps t_i, the wanted profile p_{t,γ} is
approximated by

    min_x  ‖ Σ_i x_i p_{t_i,γ_i} - p_{t,γ} ‖²    with Σ_i x_i = 1                      (33)

and Σ_i x_i θ̂_i is the average. The norm is that of functions on [0, ∞), whose inner products are known:

    ⟨p_{a,α}, p_{b,β}⟩ = (α+1)(β+1) / (α+β+1) · (a/b)^β / b     for a <= b              (34)  EDM2 eq. 151

EDM2's algorithm 3 solves (33) without the condition on the sum (`unit_sum=False`), and its program then divides by it.
Parameters have a mean far larger than their movement: a sum of .999 would shrink every weight of the network by .001.
With the condition in the problem, the profile is the nearest of those that do not.

The profiles are exact for parameters that step as training does: (31) of `ema.py` is no approximation. So a profile that
is among the snapshots, or a sum of them, comes back exactly, but for rounding. Everything here is float64 NumPy on the
host; snapshots are read one at a time.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.training.ema import power_gamma


class PosthocWeights(NamedTuple):
    """How an average is made of snapshots.

    Attributes:
      weights: float64 [n], one for each snapshot, in their order; their sum is 1 with `unit_sum`.
      profile_error: the root of the minimum in (33), relative to ‖p_{t,γ}‖: how far the profile is from the wanted one.
      amplification: `Σ |x_i|`, by which rounding errors of the snapshots may grow.
    """

    weights: np.ndarray
    profile_error: float
    amplification: float


def inner_products(steps: np.ndarray, gammas: np.ndarray, other_steps: np.ndarray, other_gammas: np.ndarray) -> np.ndarray:
    """(34) of each profile with each of the others: float64 [n, m]. Steps are above 0, γ at least 0."""
    a, alpha = (np.asarray(values, np.float64)[:, None] for values in (steps, gammas))
    b, beta = (np.asarray(values, np.float64)[None, :] for values in (other_steps, other_gammas))
    ratio, latest = np.minimum(a, b) / np.maximum(a, b), np.maximum(a, b)
    exponent = np.where(a < b, beta, alpha)  # of the profile that reaches further
    return (alpha + 1) * (beta + 1) / (alpha + beta + 1) * ratio**exponent / latest


def solve_posthoc_weights(
    steps: Sequence[int], stds: Sequence[float], *, target_step: int, target_std: float, unit_sum: bool = True
) -> PosthocWeights:
    """Weights that make the average of length `target_std` at `target_step` out of snapshots. (33).

    Args:
      steps: [n], optimizer steps taken when each snapshot was kept, at least 1.
      stds: [n], the relative standard deviation of each: usually two or more at every step.
      target_step: at which the average is wanted, at most the last snapshot's.
      target_std: in (0, 12^(-1/2)]. The closer to those kept, the better; much below the smallest only where
        `target_step` has many snapshots near it.
      unit_sum: whether the weights must sum to 1; False is EDM2's algorithm 3 as it stands in the paper.

    Raises:
      ValueError: no snapshots, lists of different lengths, a step below 1, a target beyond the snapshots, or a standard
        deviation out of range.
    """
    times, gammas = np.asarray(steps, np.float64), np.array([power_gamma(std) for std in stds])
    if not len(times) or times.shape != gammas.shape:
        raise ValueError(f"{len(steps)} steps and {len(stds)} standard deviations: give one of each for every snapshot")
    if times.min() < 1 or not 1 <= target_step <= times.max():
        raise ValueError(f"an average at step {target_step} needs snapshots of steps from 1 up to it or beyond, not {steps}")
    target = np.array([target_step]), np.array([power_gamma(target_std)])
    gram = inner_products(times, gammas, times, gammas)
    overlap = inner_products(times, gammas, *target)[:, 0]
    target_square = float(inner_products(*target, *target)[0, 0])
    # In units of each profile's norm: those of early steps are narrow and high, of no more importance.
    norms = np.sqrt(np.diag(gram))
    scaled, wanted = gram / np.outer(norms, norms), overlap / norms
    if unit_sum:
        # Lagrange: one more row and column for the condition.
        edge = norms.min() / norms
        scaled = np.block([[scaled, edge[:, None]], [edge[None, :], np.zeros((1, 1))]])
        wanted = np.append(wanted, norms.min())
    weights = np.linalg.lstsq(scaled, wanted)[0][: len(times)] / norms
    square = target_square - 2 * overlap @ weights + weights @ gram @ weights
    error = float(np.sqrt(max(square, 0.0) / target_square))
    return PosthocWeights(weights, error, float(np.abs(weights).sum()))


def combine_snapshots(weights: np.ndarray, snapshots: Iterable[Any]) -> Any:
    """Σ_i x_i θ̂_i, leaf by leaf: NumPy in the dtype of the snapshots, summed in float64.

    Args:
      weights: [n], of `recipe`.
      snapshots: n trees of arrays, in the same order; an iterator may read each when it is asked for, so that only one is in
        memory beside the sum.

    Raises:
      ValueError: more or fewer snapshots than weights, or trees that differ.
    """
    total, dtypes = None, None
    for weight, tree in zip(weights, snapshots, strict=True):
        part = jax.tree.map(lambda leaf, weight=weight: weight * np.asarray(leaf, np.float64), tree)
        if total is None:
            total, dtypes = part, jax.tree.map(lambda leaf: np.dtype(leaf.dtype), tree)
        else:
            total = jax.tree.map(np.add, total, part)
    if total is None:
        raise ValueError("there is no snapshot to make an average of")
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), total, dtypes)
