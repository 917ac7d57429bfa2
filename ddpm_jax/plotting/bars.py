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
      values: (label, value) of each bar, the first at the top; labels differ.
      limit: value and label of a dashed vertical line; None for none.
    """

    title: str
    x_label: str
    values: Sequence[tuple[str, float]]
    limit: tuple[float, str] | None = None


def _label(value: float) -> str:
    return f"{value:.3g}" if value >= 0.001 or not value else "< 0.001"


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
        labels, values = zip(*chart.values, strict=True)
        drawn = axes.barh(labels, values, color=COLORS[0], height=0.7)
        axes.bar_label(drawn, fmt=_label, padding=3, color=INK, fontsize=9)  # a bar may be too short to be seen
        axes.invert_yaxis()
        if chart.limit is not None:
            axes.axvline(chart.limit[0], color=INK, linewidth=1, linestyle="--", label=chart.limit[1])
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
