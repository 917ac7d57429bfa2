"""Charts of horizontal bars in a row, as an image."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ddpm_jax.plotting.charts import COLORS, DOTS, FAINT, INCHES, INK


@dataclasses.dataclass(frozen=True)
class Bars:
    """Bars on one pair of axes.

    Attributes:
      title: above the chart.
      x_label: below it.
      values: (label, value) of each bar, the first at the top.
      stacked: draw them as parts of one bar, with a legend.
      limit: value and label of a dashed vertical line; None for none.
    """

    title: str
    x_label: str
    values: Sequence[tuple[str, float]]
    stacked: bool = False
    limit: tuple[float, str] | None = None


def draw(charts: Sequence[Bars]) -> np.ndarray:
    """The charts side by side: uint8 [H, W, 3], on white.

    Raises:
      ValueError: no charts.
    """
    if not charts:
        raise ValueError("there is no chart to draw")
    size = (INCHES[0] * len(charts), INCHES[1])
    figure = Figure(figsize=size, dpi=DOTS, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        axes.set_title(chart.title, color=INK, fontsize=11)
        axes.set_xlabel(chart.x_label, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.7, axis="x")
        axes.set_axisbelow(True)
        left = 0.0
        for number, (label, value) in enumerate(chart.values):
            color = COLORS[number % len(COLORS)] if chart.stacked else COLORS[0]
            axes.barh(" " if chart.stacked else label, value, left=left, color=color, label=label, height=0.7)
            left += value if chart.stacked else 0.0
        axes.invert_yaxis()
        if chart.limit is not None:
            axes.axvline(chart.limit[0], color=INK, linewidth=1, linestyle="--", label=chart.limit[1])
        if chart.stacked:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper right")
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
