"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498): are images of a clear class, and of many classes?

    exp( mean over images of KL( p(class | image) ‖ p(class) ) ),    p(class) the mean over the images

It sees no real images: a model that draws one good image per class scores best.
"""

import numpy as np


def inception_score(logits: np.ndarray, *, splits: int = 10) -> tuple[float, float]:
    """(mean, standard deviation) over splits, 1..K; published numbers are of 50,000 images in 10 splits, in their order.

    Args:
      logits: [N, K] of a classifier; N at least `splits`.
      splits: consecutive parts of as equal a size as can be, each with a score of its own.

    Raises:
      ValueError: another shape, fewer images than splits, or a value that is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits must be [N, K] with N at least {splits} (the splits), not {list(logits.shape)}")
    if not np.isfinite(logits).all():
        raise ValueError("logits hold a value that is not finite")
    scores = []
    for part in np.array_split(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), splits):
        marginal = np.logaddexp.reduce(part, axis=0) - np.log(len(part))
        scores.append(np.exp(np.mean(np.sum(np.exp(part) * (part - marginal), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))
