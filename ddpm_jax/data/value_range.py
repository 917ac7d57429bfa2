"""The levels of deep gray images (more than 8 bits): one range per set, and warnings about unusual levels.

A 16-bit file does not state which of its 65,536 levels is white: cameras, microscopes and scanners use 10, 12 or 14 of the
bits, or write floats. A scale per file would map equal levels to different ones, so one range is chosen for all deep files
of the set: the smallest of `INTEGER_RANGES` or `FLOAT_RANGES` that contains their levels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

INTEGER_RANGES = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14 and 16 bits
FLOAT_RANGES = (1, 255, 1023, 4095, 16383, 65535)  # floats are fractions of white, or raw counts of an instrument
OVERSHOOT = 0.05  # fraction of a float range that resampling and sharpening may exceed; such levels are clipped
LITTLE = 256 // 16  # levels of 256, below which an image or a set uses little of its range
NOTED_FRACTION = 0.01  # of the images, from which on there is a warning


class DeepLevels(NamedTuple):
    """The levels of one file.

    Attributes:
      least: lowest level.
      most: highest level.
      is_float: whether the levels are floats.
    """

    least: float
    most: float
    is_float: bool


def find_range(levels: Sequence[DeepLevels]) -> tuple[float, float]:
    """(0, white) for a set with these deep files.

    Raises:
      ValueError: levels below 0 or above every known range, or integer and float files with different ranges.
    """
    kinds = [[level for level in levels if level.is_float == is_float] for is_float in (False, True)]
    if all(kinds):
        integer_range, float_range = (find_range(kind) for kind in kinds)
        if integer_range != float_range:
            raise ValueError(
                f"integer files have levels up to {max(level.most for level in kinds[0]):g} and float files up to "
                f"{max(level.most for level in kinds[1]):g}, which no single range fits: convert them to one type"
            )
        return integer_range
    least, most = min(level.least for level in levels), max(level.most for level in levels)
    is_float = levels[0].is_float
    slack = OVERSHOOT if is_float else 0.0
    for white in FLOAT_RANGES if is_float else INTEGER_RANGES:
        if least >= -slack * white and most <= (1 + slack) * white:
            return 0.0, float(white)
    raise ValueError(
        f"gray levels range from {least:g} to {most:g}, which is not a standard range: set the black and white levels, such as "
        f"`levels=({least:g},{most:g})`"
    )


def to_uint8(levels: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Levels of any type, [H, W], to uint8 0..255, rounded and clipped to the range."""
    low, high = value_range
    scaled = (np.asarray(levels, np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def describe_range(levels: Mapping[str, DeepLevels], value_range: tuple[float, float], *, found: bool) -> str:
    """One line about the scaling of a set's deep files.

    Args:
      levels: path -> levels, of the deep files.
      value_range: (black, white).
      found: whether the range was detected, not set.
    """
    low, high = value_range
    least, most = min(level.least for level in levels.values()), max(level.most for level in levels.values())
    outside = sum(level.least < low or level.most > high for level in levels.values())
    line = (
        f"{len(levels):,} gray files of more than 8 bits, levels {least:g} to {most:g}: {low:g} becomes black, {high:g} white"
    )
    if outside:
        line += f"; {outside:,} of them have levels outside the range, which are clipped"
    return line + (", set `levels` if that is wrong" if found else "")


def level_warnings(least: np.ndarray, most: np.ndarray, deep: Sequence[DeepLevels] = ()) -> list[str]:
    """Warnings about unusual levels of a set, one sentence each.

    Args:
      least: uint8 [N], the lowest level of each image, over its pixels and channels.
      most: uint8 [N], the highest.
      deep: levels of the files of more than 8 bits, to which data.value_range applies.
    """
    count = len(least)
    if not count:
        return []
    lowest, highest = int(least.min()), int(most.max())
    if lowest == highest:
        return [f"every pixel of all {count:,} images has the level {lowest}: there is nothing to learn. {_advice(deep)}"]
    if highest - lowest < LITTLE:
        used = f"all {count:,} images use the levels {lowest} to {highest} of 0..255, under 1/16 of the range"
        return [f"{used}; if that is not intended: {_advice(deep)}"]
    field = ", or set the black and white levels with `levels`" if deep else ""
    advice = f"if that is not intended, check these files{field}"
    constant, little = least == most, most.astype(int) - least < LITTLE
    kinds = (
        ("have one level only", constant),
        (f"are nearly black (no level above {LITTLE - 1} of 255)", ~constant & (most < LITTLE)),
        (f"are nearly white (no level below {256 - LITTLE} of 255)", ~constant & (least >= 256 - LITTLE)),
        ("use under 1/16 of the range", ~constant & little & (most >= LITTLE) & (least < 256 - LITTLE)),
    )
    return [
        f"{int(which.sum()):,} of {count:,} images {words}; {advice}"
        for words, which in kinds
        if which.mean() >= NOTED_FRACTION
    ]


def _advice(deep: Sequence[DeepLevels]) -> str:
    """Advice about unusual levels. Only deep files depend on `levels`: 8-bit files are read as they are."""
    if not deep:
        return "check these files (files of 8 bits are read as they are, so only another export changes their levels)"
    least, most = min(level.least for level in deep), max(level.most for level in deep)
    if least == most:
        return "check these files, or set the black and white levels with `levels`"
    return f"set the black and white levels, such as `levels=({least:g},{most:g})`"
