"""Charts of bars."""

import numpy as np
import pytest

from ddpm_jax.plotting import bars
from ddpm_jax.plotting.bars import Bars


def blue(picture):
    """Fraction of the pixels that have the color of the bars."""
    return np.mean((picture[..., 2] > 120) & (picture[..., 0] < 60))


def test_longer_bars_have_more_pixels():
    limit = (10.0, "limit")  # the axis is the same
    long = bars.draw([Bars("memory", "GiB", [("a", 8.0), ("b", 4.0)], limit=limit)])
    short = bars.draw([Bars("memory", "GiB", [("a", 4.0), ("b", 2.0)], limit=limit)])
    assert long.shape == short.shape
    assert blue(long) == pytest.approx(2 * blue(short), rel=0.1)


def test_charts_are_side_by_side():
    one, two = (bars.draw([Bars("time", "ms", [("a", 1.0)])] * number) for number in (1, 2))
    assert two.shape == (one.shape[0], 2 * one.shape[1], 3)
    with pytest.raises(ValueError, match="no chart"):
        bars.draw([])


@pytest.mark.parametrize(("value", "label"), [(12.34, "12.3"), (0.00146, "0.00146"), (1.35e-5, "< 0.001"), (0.0, "0")])
def test_bars_have_short_labels(value, label):
    assert bars._label(value) == label
