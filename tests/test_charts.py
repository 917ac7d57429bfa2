"""Charts: one picture, as many axes as asked for, curves in it."""

import numpy as np
import pytest

from ddpm_jax import charts


def test_charts_stand_side_by_side_with_their_curves():
    x = np.arange(1, 11)
    line = charts.Line(x, 1.0 / x, "falling", points=True)
    one = charts.draw([charts.Chart("a", "x", "y", [line], log_x=True, log_y=True, flat=[(0.5, "a height")])])
    two = charts.draw([charts.Chart("a", "x", "y", [line]), charts.Chart("b", "x", "y", [charts.Line(x, x)])])
    assert one.dtype == np.uint8
    assert one.shape[2] == 3
    assert two.shape == (one.shape[0], 2 * one.shape[1], 3)
    color = np.array([int(charts.COLORS[0][i : i + 2], 16) for i in (1, 3, 5)])
    for picture in (one, two[:, : one.shape[1]], two[:, one.shape[1] :]):
        assert (np.abs(picture.astype(int) - color).sum(axis=2) < 30).sum() > 100  # the curve is there
    with pytest.raises(ValueError, match="there must be a chart"):
        charts.draw([])
