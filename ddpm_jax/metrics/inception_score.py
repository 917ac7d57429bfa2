"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498, section 4): confident for each image, diverse over all.

    IS = exp( mean over x of KL( p(y | x) || p(y) ) ),    p(y) = mean over x of p(y | x)

with the classifier's p(y | x) = softmax(logits). It ranges from 1 (all predictions are the same) to the number of classes
(each prediction is certain, all classes are equally frequent). It uses no reference set.

The images are split, in their order, into ten parts; the result is mean and standard deviation of the ten scores. The
order therefore matters: images sorted by class score lower.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ddpm_jax.metrics.frechet import check_features
from ddpm_jax.runtime.errors import InvalidDataError

NUM_SPLITS = 10  # as published


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the parts (population standard deviation, as published)."""

    mean: float
    std: float


def inception_score(logits: np.ndarray, *, num_splits: int = NUM_SPLITS) -> InceptionScore:
    """The score of N images from the classifier's logits [N, K], before the softmax; computed in float64.

    The parts are images i N // num_splits .. (i + 1) N // num_splits - 1.

    Raises:
      InvalidDataError: a value that is not finite, or fewer images than parts.
      ValueError: wrong shape, or num_splits below 1.
    """
    logits = check_features(logits)
    if num_splits < 1:
        raise ValueError(f"num_splits is {num_splits}: it must be at least 1")
    if len(logits) < num_splits:
        raise InvalidDataError(f"an Inception Score of {num_splits} parts needs at least as many images, not {len(logits)}")
    bounds = [index * len(logits) // num_splits for index in range(num_splits + 1)]
    scores = [_score(logits[begin:end].astype(np.float64)) for begin, end in itertools.pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # If a class has probability 0 for all images, its terms are 0 as well.
    log_marginal = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
    return float(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
