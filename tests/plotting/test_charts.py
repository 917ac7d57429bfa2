"""Charts: one axes per `Chart` in one image, with its contents."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from ddpm_jax.plotting import charts

X = np.arange(1, 11)


@pytest.fixture
def axes_of(monkeypatch):
    """(charts) -> (image, its Matplotlib axes)."""
    figures = []

    def make(**options):
        figures.append(Figure(**options))
        return figures[-1]

    monkeypatch.setattr(charts, "Figure", make)
    return lambda wanted: (charts.draw(wanted), figures[-1].axes)


def test_charts_are_side_by_side_with_their_curves(axes_of):
    lines = [charts.Line(X, 1.0 / X, "falling", points=True), charts.Line(X, 1.0 * X)]
    one, _ = axes_of([charts.Chart("a", "x", "y", lines[:1])])
    two, axes = axes_of([charts.Chart("a", "x", "y", lines), charts.Chart("b", "u", "v", lines[1:])])
    assert one.dtype == np.uint8
    assert two.shape == (one.shape[0], 2 * one.shape[1], 3)
    assert [len(each.lines) for each in axes] == [2, 1]
    for drawn, line in zip(axes[0].lines, lines, strict=True):
        np.testing.assert_array_equal(drawn.get_xydata(), np.stack([line.x, line.y], axis=1))
    assert [drawn.get_marker() for drawn in axes[0].lines] == ["o", "None"]
    assert [drawn.get_color() for drawn in axes[0].lines] == list(charts.COLORS[:2])
    color = np.array([int(charts.COLORS[0][i : i + 2], 16) for i in (1, 3, 5)])
    for picture in (one, two[:, : one.shape[1]], two[:, one.shape[1] :]):
        assert (np.abs(picture.astype(int) - color).sum(axis=2) < 30).sum() > 100  # the curve is visible


def test_a_chart_has_its_title_labels_and_legend(axes_of):
    _, [axes] = axes_of([charts.Chart("Terms of the bound", "t", "bits/dim", [charts.Line(X, X, "linear"), charts.Line(X, X)])])
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Terms of the bound", "t", "bits/dim")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["linear"]
    _, [axes] = axes_of([charts.Chart("a", "x", "y", [charts.Line(X, X)])])
    assert axes.get_legend() is None  # no labels


@pytest.mark.parametrize(("log_x", "log_y"), [(False, False), (True, False), (False, True), (True, True)])
def test_axes_are_logarithmic_if_requested(axes_of, log_x, log_y):
    _, [axes] = axes_of([charts.Chart("a", "x", "y", [charts.Line(X, 0.01 * X)], log_x=log_x, log_y=log_y)])
    scales = {True: "log", False: "linear"}
    assert (axes.get_xscale(), axes.get_yscale()) == (scales[log_x], scales[log_y])
    if log_y:  # plain numbers, not powers
        assert {"0.01", "0.1"} <= {label.get_text() for label in axes.get_yticklabels()}


def test_nonpositive_values_are_omitted_on_a_log_axis(axes_of):
    values = np.array([0.0, -1.0, np.nan, *np.arange(1.0, 8.0)])
    picture, [axes] = axes_of([charts.Chart("a", "x", "y", [charts.Line(X, values)], log_y=True)])
    low, high = axes.get_ylim()
    assert 0 < low <= 1
    assert high >= 7
    assert picture.std() > 0


def test_flat_lines_are_dashed_and_labeled(axes_of):
    _, [axes] = axes_of([charts.Chart("a", "x", "y", [charts.Line(X, X)], flat=[(0.5, "real images"), (2.0, "best")])])
    flat = axes.lines[1:]
    assert [line.get_ydata()[0] for line in flat] == [0.5, 2.0]
    assert all(line.get_linestyle() == "--" and list(line.get_xdata()) == [0, 1] for line in flat)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["real images", "best"]


def test_no_charts_are_rejected():
    with pytest.raises(ValueError, match="there is no chart"):
        charts.draw([])


def test_more_than_three_charts_begin_a_new_row():
    chart = charts.Chart("a", "x", "y", [charts.Line(np.arange(3), np.arange(3))])
    height, width, _ = charts.draw([chart] * 3).shape
    two_rows = charts.draw([chart] * 5)
    assert two_rows.shape == (2 * height, width, 3)
    assert (two_rows[height:, -width // 4 :] == 255).all()  # no sixth chart
