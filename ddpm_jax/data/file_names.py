"""Millions of file names in little memory, which are quickly copied to other processes."""

from collections.abc import Sequence
from typing import overload

import numpy as np


def join(names: Sequence[str]) -> np.ndarray:
    """uint8: the names, separated by zeros, which no name contains. Names that are not UTF-8 keep their bytes."""
    return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)


class FileNames(Sequence[str]):
    """A sequence of names in two arrays: 8 bytes more than the characters of each, where Python needs 50 to 60 more."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = join(names)
        self._ends = np.append(np.flatnonzero(self._names == 0), len(self._names))[: len(names)]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) + 1 if index else 0
        return self._names[start : int(self._ends[index])].tobytes().decode("utf-8", "surrogateescape")
