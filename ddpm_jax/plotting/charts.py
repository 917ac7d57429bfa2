"""Line charts in a grid, as an image. `filmstrip` has strips of images with curves below."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

COLORS = ("#1f5a96", "#b4532a", "#3f7d3a", "#7a4a9e", "#8a7a1f", "#3c3c3c", "#2a8f95")
INK, FAINT = "#222222", "#d9d9d9"
INCHES, DOTS = (6.4, 4.2), 110  # size of a chart; dots per inch
MAX_COLUMNS = 3  # a wider image would be shrunk until its labels cannot be read


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """One curve.

    Attributes:
      x: [K].
      y: [K]; values that are not finite, or not positive on a log axis, are omitted.
      label: legend entry; "" for none.
      points: whether to mark each point, for measurements.
    """

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    points: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Chart:
    """Curves over one pair of axes. `flat` are heights of dashed horizontal lines, with their labels."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    flat: Sequence[tuple[float, str]] = ()


class _Plain(LogFormatter):
    """0.02 instead of Matplotlib's 2 x 10^-2, whose neighbors would overlap."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def draw(charts: Sequence[Chart]) -> np.ndarray:
    """The charts in rows of at most MAX_COLUMNS: uint8 [H, W, 3], on white.

    Raises:
      ValueError: no charts.
    """
    if not charts:
        raise ValueError("there is no chart to draw")
    columns = min(len(charts), MAX_COLUMNS)
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(INCHES[0] * columns, INCHES[1] * rows), dpi=DOTS, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[len(charts) :]:
        unused.set_axis_off()
    for axes, chart in zip(grid[: len(charts)], charts, strict=True):
        axes.set_title(chart.title, color=INK, fontsize=11)
        axes.set_xlabel(chart.x_label, color=INK)
        axes.set_ylabel(chart.y_label, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        for wanted, axis, scale in ((chart.log_x, axes.xaxis, axes.set_xscale), (chart.log_y, axes.yaxis, axes.set_yscale)):
            if wanted:
                scale("log", nonpositive="mask")
                axis.set_major_formatter(_Plain())
                axis.set_minor_formatter(_Plain(minor_thresholds=(1.5, 0.7)))
        for number, line in enumerate(chart.lines):
            color, marker = COLORS[number % len(COLORS)], "o" if line.points else None
            axes.plot(line.x, line.y, color=color, marker=marker, markersize=4, linewidth=1.6, label=line.label or None)
        for height, words in chart.flat:
            axes.axhline(height, color=INK, linewidth=1, linestyle="--", label=words)
        if any(line.label for line in chart.lines) or chart.flat:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
