"""Animations of chains: frames with a caption and a bar that shows t, written as WebP or GIF.

A frame has rows of images, pasted as blocks of whole pixels like those of the film strips. WebP files are lossless if the
images are enlarged: the blocks compress well, and lossy compression would blur their edges. Otherwise they are lossy, since
frames of noise hardly compress without loss.
"""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from ddpm_jax.plotting.filmstrip import VISIBLE_HEIGHT
from ddpm_jax.runtime.atomic import open_atomic

FORMATS = ("webp", "gif")
MAX_COLUMNS = 8  # images side by side; more are in several bands
MIN_WIDTH = 420  # pixels, in which the captions fit
GAP, MARGIN = 4, 12  # pixels between images, and around them
FONT, SMALL_FONT = 17, 14  # pixels
BAR = 5  # height of the bar, pixels
WHITE, BETWEEN, FAINT, INK = 255, 200, 225, 34  # gray levels
REST = {"first": 0.1, "middle": 0.06, "last": 0.2}  # part of the duration for which a part's first or last frame is shown
MIN_FRAME_S, MAX_SECONDS = 0.02, 600.0  # browsers slow down GIF files with shorter frames
LOSSLESS = {"lossless": True, "quality": 50, "method": 2}  # more effort takes longer, and the file is as large
LOSSY = {"quality": 60}


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Consecutive frames with one caption.

    Attributes:
      images: uint8 [F, R, N, H, W, C], C = 1 or 3: R rows, such as x_t and its prediction, of N images.
      t: int [F], -1 for the images themselves.
      caption: what happens, such as the sampler; one line.
      without_t: what is shown at the right for t = -1.
      row_labels: R labels at the left, or none.
      image_labels: N labels below the images, or none.
    """

    images: np.ndarray
    t: np.ndarray
    caption: str
    without_t: str = "image"
    row_labels: Sequence[str] = ()
    image_labels: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Animation:
    """Frames of one size.

    Attributes:
      frames: pictures, gray if all images are.
      durations: milliseconds for each.
      lossless: of WebP; GIF has at most 256 colors per frame.
    """

    frames: list[Image.Image]
    durations: list[int]
    lossless: bool


def min_seconds(num_frames: int) -> float:
    """The shortest duration of an animation of so many frames, in seconds."""
    return round(num_frames * MIN_FRAME_S / (1 - sum(REST.values())), 2)


def frame_ms(counts: Sequence[int], seconds: float) -> list[int]:
    """Duration of each frame of parts with these numbers of frames, in milliseconds.

    Multiples of 10, the unit of GIF. The first, the last and the one before the next part are shown longer.
    """
    total = sum(counts)
    rests = np.zeros(total)
    rests[np.cumsum(counts)[:-1] - 1] = REST["middle"]
    rests[0], rests[-1] = REST["first"], REST["last"]
    ends = np.round(100 * seconds * np.cumsum(rests + (1 - rests.sum()) / total)).astype(int)
    return (10 * np.diff(ends, prepend=0)).tolist()


def draw(parts: Sequence[Part], num_timesteps: int, seconds: float) -> Animation:
    """The frames of all parts, of one size.

    Args:
      parts: with images of one shape; the number of rows may differ.
      num_timesteps: T; the bar is full at t = T - 1.
      seconds: duration, at least `min_seconds`.
    """
    layout = _Layout.of(parts)
    frames = [
        layout.frame(part, images, int(t), num_timesteps)
        for part in parts
        for images, t in zip(part.images, part.t, strict=True)
    ]
    return Animation(frames, frame_ms([len(part.t) for part in parts], seconds), lossless=layout.factor > 1)


def save(path: pathlib.Path, animation: Animation) -> int:
    """Write an animation that repeats without end, atomically; returns its size in bytes. `path` ends with one of `FORMATS`."""
    first, *others = animation.frames
    content, options = io.BytesIO(), {}
    if path.suffix == ".webp":
        options = LOSSLESS if animation.lossless else LOSSY
    first.save(
        content,
        format=path.suffix[1:],
        save_all=True,
        append_images=others,
        duration=animation.durations,
        loop=0,
        **options,
    )
    with open_atomic(path, sync=False) as out:
        out.write(content.getvalue())
    return content.tell()


def can_write(suffix: str) -> bool:
    """Whether this Pillow writes the format; it may have been built without WebP."""
    return suffix == "gif" or bool(features.check("webp"))


def _factor(height: int) -> int:
    return max(1, round(VISIBLE_HEIGHT / height))


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Positions in a frame, in pixels."""

    mode: str  # "L" or "RGB"
    factor: int
    cell: tuple[int, int]  # height and width of an enlarged image
    columns: int
    left: int
    top: int
    label_height: int
    size: tuple[int, int]  # width, height

    @classmethod
    def of(cls, parts: Sequence[Part]) -> "_Layout":
        number, height, width, channels = parts[0].images.shape[2:]
        rows = max(part.images.shape[1] for part in parts)
        factor = _factor(height)
        cell = (factor * height, factor * width)
        bands = -(-number // MAX_COLUMNS)
        columns = -(-number // bands)
        labels = [label for part in parts for label in part.row_labels]
        margin = MARGIN + (round(max(map(_font(SMALL_FONT).getlength, labels))) + 8 if labels else 0)
        strip = columns * (cell[1] + GAP) - GAP
        caption = max(round(_font(FONT).getlength(part.caption)) for part in parts) + 110  # with t at the right
        full = max(margin + strip + MARGIN, caption + 2 * MARGIN, MIN_WIDTH)
        label_height = SMALL_FONT + 10 if any(part.image_labels for part in parts) else 6
        top = MARGIN + FONT + 10 + BAR + MARGIN
        bottom = bands * (rows * (cell[0] + GAP) + label_height) + 4
        return cls(
            mode="L" if channels == 1 else "RGB",
            factor=factor,
            cell=cell,
            columns=columns,
            left=margin + (full - margin - strip - MARGIN) // 2,
            top=top,
            label_height=label_height,
            size=(full, top + bottom),
        )

    def frame(self, part: Part, images: np.ndarray, t: int, num_timesteps: int) -> Image.Image:
        picture = Image.new(self.mode, self.size, self._gray(WHITE))
        pen = ImageDraw.Draw(picture)
        right, baseline = self.size[0] - MARGIN, MARGIN + FONT
        pen.text((MARGIN, baseline), part.caption, fill=self._gray(INK), font=_font(FONT), anchor="ls")
        words = part.without_t if t < 0 else f"t = {t:,}"
        pen.text((right, baseline), words, fill=self._gray(INK), font=_font(FONT), anchor="rs")
        bar = (MARGIN, baseline + 10, right, baseline + 10 + BAR - 1)
        pen.rectangle(bar, fill=self._gray(FAINT))
        if t >= 0:
            end = MARGIN + round((right - MARGIN) * (t + 1) / num_timesteps)
            pen.rectangle((*bar[:2], max(end, MARGIN + 1), bar[3]), fill=self._gray(INK))
        rows, number = images.shape[:2]
        (height, width), band_height = self.cell, rows * (self.cell[0] + GAP) + self.label_height
        for index in range(number):
            band, column = divmod(index, self.columns)
            x, y = self.left + column * (width + GAP), self.top + band * band_height
            for row in range(rows):
                enlarged = images[row, index].repeat(self.factor, axis=0).repeat(self.factor, axis=1)
                corner = (x, y + row * (height + GAP))
                pen.rectangle((corner[0] - 1, corner[1] - 1, x + width, corner[1] + height), fill=self._gray(BETWEEN))
                picture.paste(Image.fromarray(enlarged[..., 0] if self.mode == "L" else enlarged), corner)
                if column == 0 and part.row_labels:
                    place = (x - 8, corner[1] + height // 2)
                    pen.text(place, part.row_labels[row], fill=self._gray(INK), font=_font(SMALL_FONT), anchor="rm")
            if part.image_labels:
                place = (x + width // 2, y + rows * (height + GAP) + SMALL_FONT)
                words = _fitted(part.image_labels[index], width)
                pen.text(place, words, fill=self._gray(INK), font=_font(SMALL_FONT), anchor="ms")
        return picture

    def _gray(self, level: int) -> int | tuple[int, int, int]:
        return level if self.mode == "L" else (level, level, level)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fitted(words: str, width: int) -> str:
    """The words, shortened until they are at most `width` pixels wide."""
    fits = words
    while len(fits) > 1 and _font(SMALL_FONT).getlength(fits) > width:
        words = words[:-1]
        fits = words + "..."
    return fits
