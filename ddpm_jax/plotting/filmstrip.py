"""Film strips: rows of images labeled with their t, above curves over the same t axis.

The layout is in pixels (at 72 dots per inch a point is one pixel) and scales with the images. The images are pasted, not drawn
by Matplotlib, so that each of their pixels is a block of whole pixels. Matplotlib is used through its object API: no window and
no global state.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

VISIBLE_HEIGHT = 112  # approximate height of an image; small ones are enlarged by integer factors
SIGNAL, NOISE, NEUTRAL = "#1f5a96", "#b4532a", "#3c3c3c"
INK, FAINT = "#222222", "#d9d9d9"
BETWEEN = 200  # gray level between images


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel, or a bundle of lines of one kind.

    Attributes:
      values: [K] or, for a bundle of N, [K, N]; values that are not finite, or not positive on a log axis, are omitted.
      label: legend entry; "" for none.
      color: a Matplotlib color.
    """

    values: np.ndarray
    label: str = ""
    color: str = NEUTRAL


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """Curves under a strip.

    Attributes:
      title: title, with $mathematics$.
      t: [K], ascending, the t of the curves' values.
      curves: the curves.
      log: whether the y axis is logarithmic.
      legend: Matplotlib's location of the legend, clear of the curves.
    """

    title: str
    t: np.ndarray
    curves: Sequence[Curve]
    log: bool = False
    legend: str = "center right"


def sheet(
    rows: np.ndarray,
    *,
    title: str,
    column_labels: Sequence[str],
    row_labels: Sequence[str] = (),
    end_labels: Sequence[str] = (),
    group: int | None = None,
    spans: Sequence[tuple[int, int, str]] = (),
    column_t: Sequence[int] = (),
    panels: Sequence[Panel] = (),
    notes: Sequence[str] = (),
) -> np.ndarray:
    """Rows of images with labels, and panels of curves below.

    Args:
      rows: uint8 [R, S, H, W, C], C = 1 or 3.
      title: title of the figure.
      column_labels: S labels above the first row.
      row_labels: R labels on the left, or none.
      end_labels: R labels on the right, or none.
      group: rows per group, by default all; groups are separated by more space.
      spans: (first column, last column, label): labeled arrows above the columns.
      column_t: [S], ascending, the t of each column; the t axis of the panels is aligned with it.
      panels: panels from top to bottom; they need column_t.
      notes: lines at the bottom of the figure.

    Returns:
      uint8 [H', W', 3], on white.
    """
    number, count, height, width = rows.shape[:4]
    factor = max(1, round(VISIBLE_HEIGHT / height))
    cell_height, cell_width = factor * height, factor * width
    em = max(10, round(0.16 * cell_width))  # the size of the letters
    gap = max(2, em // 4)

    strip_width = count * (cell_width + gap) - gap
    group = group or number
    tops = [row * (cell_height + gap) + row // group * em for row in range(number)]
    strip_height = tops[-1] + cell_height
    left = round((7 if row_labels else 4 if panels else 1.2) * em)
    top = round((4.4 + 1.6 * bool(spans)) * em)
    panel_height, panel_gap = 7 * em, round(2.6 * em)
    below = len(panels) * (panel_height + panel_gap) + round(2.8 * em) if panels else em
    right = round((6.5 if end_labels else 1.2) * em)
    foot = top + strip_height + below  # top of the notes
    note_height = round(1.5 * em)
    page = _Page(left + strip_width + right, foot + len(notes) * note_height, em)
    centers = left + np.arange(count) * (cell_width + gap) + cell_width / 2

    page.text(left, 1.3 * em, title, size=1.2, horizontal="left", max_width=strip_width)
    for first, last, words in spans:
        page.arrow(centers[first] - cell_width / 2, centers[last] + cell_width / 2, top - 2.3 * em, words)
    for center, words in zip(centers, column_labels, strict=True):
        page.text(center, top - 0.8 * em, words, max_width=cell_width + gap)
    for row, words in enumerate(row_labels):
        page.text(left - 0.6 * em, top + tops[row] + cell_height / 2, words, horizontal="right", max_width=left - em)
    ends = []
    for row, words in enumerate(end_labels):
        x = left + strip_width + 0.6 * em
        ends.append(page.text(x, top + tops[row] + cell_height / 2, words, horizontal="left", max_width=right - em))
    for text in ends:  # same size, limited by the longest
        text.set_size(min(other.get_size() for other in ends))
    for line, words in enumerate(notes):
        page.text(left, foot + (line + 0.2) * note_height, words, size=0.9, horizontal="left", max_width=strip_width)
    for i, panel in enumerate(panels):
        y = top + strip_height + panel_gap + i * (panel_height + panel_gap)
        page.text(left, y - em, panel.title, horizontal="left", max_width=strip_width)
        axes = page.axes(left, y, strip_width, panel_height)
        # Positions on the x axis are those of the columns: t = 400 is below the image at t = 400.
        axes.set_xlim(-0.5 * cell_width / (cell_width + gap), count - 1 + 0.5 * cell_width / (cell_width + gap))
        axes.set_xticks(np.arange(count), list(column_labels) if i == len(panels) - 1 else [""] * count)
        _draw(axes, panel, np.interp(panel.t, column_t, np.arange(count)), em, legend_size=min(em, strip_width / 45))

    picture = page.draw()
    for first in range(0, number, group):  # gray between images, since white images would merge
        picture[top + tops[first] : top + tops[first + group - 1] + cell_height, left : left + strip_width] = BETWEEN
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            y, x = top + tops[row], left + column * (cell_width + gap)
            picture[y : y + cell_height, x : x + cell_width] = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return picture


class _Page:
    """A white page in pixel coordinates from its top left corner, with a font size of `em` pixels."""

    def __init__(self, width: int, height: int, em: int):
        self.width, self.height, self.em = width, height, em
        # Slightly more than an integer, since the canvas rounds down.
        self.figure = Figure(figsize=((width + 0.01) / 72, (height + 0.01) / 72), dpi=72, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, *, size: float = 1.0, horizontal: str = "center", max_width: float) -> Text:
        """Text centered vertically at y, shrunk to a width of at most `max_width` pixels."""
        text = self.figure.text(
            x / self.width,
            1 - y / self.height,
            words,
            size=size * self.em,
            color=INK,
            horizontalalignment=horizontal,
            verticalalignment="center_baseline",
        )
        for _ in range(3):  # widths are not quite proportional to the size, because of hinting
            needed = text.get_window_extent(self.canvas.get_renderer()).width
            if needed > max_width:
                text.set_size(0.98 * text.get_size() * max_width / needed)
        return text

    def arrow(self, start: float, end: float, y: float, words: str) -> None:
        """A horizontal arrow with text at its center."""
        height = 1 - y / self.height
        ends = (start / self.width, height), (end / self.width, height)
        style = {"arrowstyle": "-|>", "mutation_scale": 0.8 * self.em, "shrinkA": 0, "shrinkB": 0}
        arrow = FancyArrowPatch(*ends, transform=self.figure.transFigure, color=NEUTRAL, linewidth=self.em / 12, **style)
        self.figure.add_artist(arrow)
        text = self.text((start + end) / 2, y, words, max_width=end - start - 3 * self.em)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.4 * self.em})
        text.set_zorder(arrow.get_zorder() + 1)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes with minimal decoration."""
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.spines[["top", "right"]].set_visible(False)
        line = max(1, self.em / 20)
        axes.spines[["left", "bottom"]].set(color=INK, linewidth=line)
        axes.tick_params(labelsize=0.8 * self.em, labelcolor=INK, color=INK)
        axes.tick_params(length=0.25 * self.em, width=line, pad=0.25 * self.em)
        axes.grid(color=FAINT, linewidth=line)
        axes.set_axisbelow(True)
        return axes

    def draw(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        self.canvas.draw()
        return np.array(self.canvas.buffer_rgba())[..., :3].copy()


def _draw(axes: Axes, panel: Panel, x: np.ndarray, em: int, *, legend_size: float) -> None:
    """The curves of one panel, over the positions x [K]."""
    if panel.log:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    for curve in panel.curves:
        values = np.asarray(curve.values, np.float64).reshape(len(x), -1)
        lines = axes.plot(x, values, color=curve.color, linewidth=em / (8 if values.shape[1] == 1 else 12))
        lines[0].set_label(curve.label)
    if any(curve.label for curve in panel.curves):
        legend = axes.legend(loc=panel.legend, fontsize=legend_size, labelcolor="linecolor", handlelength=1.2, borderpad=0.2)
        legend.get_frame().set(facecolor="white", edgecolor="none", alpha=1)
