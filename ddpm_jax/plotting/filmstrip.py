"""Pictures with words: strips with their t written over them, and curves over the same t axis. PNG files: `visualize`.

Everything is laid out in pixels (72 dots per inch make a point one pixel) and grows with the images. The strips
themselves are not drawn by matplotlib but pasted, so that each pixel of an image is a whole block of the picture.
matplotlib is used through its objects alone: no window, no state that another program of the process could share.
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

VISIBLE_HEIGHT = 112  # of an image in the picture, about: small ones are enlarged by whole factors
SIGNAL, NOISE, NEUTRAL = "#1f5a96", "#b4532a", "#3c3c3c"
INK, FAINT = "#222222", "#d9d9d9"
BETWEEN = 200  # grey level between the images


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel, or a bundle of lines of one kind.

    Attributes:
      values: [K] or, for a bundle of N, [K, N]; what is not finite, or not above 0 on a log axis, is left out.
      label: what the line is, or "" where the panel's title says it.
      color: as matplotlib takes it.
    """

    values: np.ndarray
    label: str = ""
    color: str = NEUTRAL


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """Curves under a strip.

    Attributes:
      title: what is seen, in words and $mathematics$.
      t: [K], ascending, where the curves have their values.
      curves: those to draw.
      log: whether the y axis is logarithmic.
      legend: where the labels stand, as matplotlib says it: a place that the curves leave free.
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
    """Rows of images with text around them, and panels of curves beneath.

    Args:
      rows: uint8 [R, S, H, W, C], C = 1 or 3.
      title: one line over it all.
      column_labels: S of them, over the first row.
      row_labels: R of them at the left, or none.
      end_labels: R of them at the right, or none.
      group: so many rows belong together, by default all; there is more room between groups.
      spans: (first column, last column, words): arrows over the columns that say what happens along them.
      column_t: [S], ascending: the t of each column, where the t axis of the panels passes under it.
      panels: from top to bottom; they need column_t.
      notes: lines at the foot of the picture: how it was made.

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
    foot = top + strip_height + below  # where the notes begin
    note_height = round(1.5 * em)
    page = _Page(left + strip_width + right, foot + len(notes) * note_height, em)
    centres = left + np.arange(count) * (cell_width + gap) + cell_width / 2

    page.text(left, 1.3 * em, title, size=1.2, horizontal="left", room=strip_width)
    for first, last, words in spans:
        page.arrow(centres[first] - cell_width / 2, centres[last] + cell_width / 2, top - 2.3 * em, words)
    for centre, words in zip(centres, column_labels, strict=True):
        page.text(centre, top - 0.8 * em, words, room=cell_width + gap)
    for row, words in enumerate(row_labels):
        page.text(left - 0.6 * em, top + tops[row] + cell_height / 2, words, horizontal="right", room=left - em)
    ends = []
    for row, words in enumerate(end_labels):
        x = left + strip_width + 0.6 * em
        ends.append(page.text(x, top + tops[row] + cell_height / 2, words, horizontal="left", room=right - em))
    for text in ends:  # all as large as the longest allows
        text.set_size(min(other.get_size() for other in ends))
    for line, words in enumerate(notes):
        page.text(left, foot + (line + 0.2) * note_height, words, size=0.9, horizontal="left", room=strip_width)
    for i, panel in enumerate(panels):
        y = top + strip_height + panel_gap + i * (panel_height + panel_gap)
        page.text(left, y - em, panel.title, horizontal="left", room=strip_width)
        axes = page.axes(left, y, strip_width, panel_height)
        # Positions on the x axis are those of the columns: t = 400 lies under the image of t = 400.
        axes.set_xlim(-0.5 * cell_width / (cell_width + gap), count - 1 + 0.5 * cell_width / (cell_width + gap))
        axes.set_xticks(np.arange(count), list(column_labels) if i == len(panels) - 1 else [""] * count)
        _draw(axes, panel, np.interp(panel.t, column_t, np.arange(count)), em, legend_size=min(em, strip_width / 45))

    picture = page.draw()
    for first in range(0, number, group):  # grey between the images: white ones would run into each other
        picture[top + tops[first] : top + tops[first + group - 1] + cell_height, left : left + strip_width] = BETWEEN
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            y, x = top + tops[row], left + column * (cell_width + gap)
            picture[y : y + cell_height, x : x + cell_width] = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return picture


class _Page:
    """A white page measured in pixels from its top left corner, with letters of `em` pixels."""

    def __init__(self, width: int, height: int, em: int):
        self.width, self.height, self.em = width, height, em
        # A little more than whole, for the canvas rounds down.
        self.figure = Figure(figsize=((width + 0.01) / 72, (height + 0.01) / 72), dpi=72, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, *, size: float = 1.0, horizontal: str = "center", room: float) -> Text:
        """Words centred on height y, made smaller where they need more than `room` pixels."""
        text = self.figure.text(
            x / self.width,
            1 - y / self.height,
            words,
            size=size * self.em,
            color=INK,
            horizontalalignment=horizontal,
            verticalalignment="center_baseline",
        )
        for _ in range(3):  # letters do not shrink quite in proportion: they keep to the grid of pixels
            needed = text.get_window_extent(self.canvas.get_renderer()).width
            if needed > room:
                text.set_size(0.98 * text.get_size() * room / needed)
        return text

    def arrow(self, start: float, end: float, y: float, words: str) -> None:
        """An arrow from left to right, words in its middle."""
        height = 1 - y / self.height
        ends = (start / self.width, height), (end / self.width, height)
        style = {"arrowstyle": "-|>", "mutation_scale": 0.8 * self.em, "shrinkA": 0, "shrinkB": 0}
        arrow = FancyArrowPatch(*ends, transform=self.figure.transFigure, color=NEUTRAL, linewidth=self.em / 12, **style)
        self.figure.add_artist(arrow)
        text = self.text((start + end) / 2, y, words, room=end - start - 3 * self.em)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.4 * self.em})
        text.set_zorder(arrow.get_zorder() + 1)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Room for curves, with no more lines than are needed."""
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
