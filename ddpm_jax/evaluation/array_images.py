"""Images in a NumPy file, .npz or .npy, read in order without loading the file into memory.

The size in the header is compared with that of the file before anything is read, so that a forged header allocates nothing.
"""

import contextlib
import io
import pathlib
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line

NAMES = ("arr_0", "images")  # of the array of images; otherwise a file with one array
MOST_BYTES = 2**25  # of one image
SKIP_BYTES = 2**24


class ArrayImages:
    """Images uint8 [N, H, W, C], C 1 or 3, or [N, H, W], which are gray, in a file.

    Attributes:
      shape: (N, H, W, C).

    Args:
      file: path of the file; an .npz has them as arr_0, images, or as its only array.

    Raises:
      FileAccessError: the file cannot be read.
      InvalidDataError: it is damaged or truncated, holds pickled objects, or no such array.
    """

    def __init__(self, file: pathlib.Path):
        self._file, self._member, self._position = file, "", 0
        self._opened = contextlib.ExitStack()
        weakref.finalize(self, self._opened.close)
        with self._errors():
            with file.open("rb") as data:
                is_zip = data.read(2) == b"PK"
            if is_zip:
                with storage.open_zip(file) as archive:
                    self._member = _array_name(file, archive)
            self._open()

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images at consecutive `indices`: uint8 [n, H, W, C]. In ascending calls, the file is read once.

        Raises:
          InvalidDataError: the file is truncated, or a checksum is wrong.
        """
        first, size = int(indices[0]), int(np.prod(self.shape[1:]))
        with self._errors():
            if first < self._position:
                self._open()
            for _ in self._skips((first - self._position) * size):
                pass
            data = self._read(len(indices) * size)
            self._position = first + len(indices)
            if self._position == len(self):
                self._stream.read(1)  # zipfile verifies the checksum at the end
                self._opened.close()
        return np.frombuffer(data, np.uint8).reshape(len(indices), *self.shape[1:])

    def read_all(self) -> np.ndarray:
        """All images: uint8 [N, H, W, C]. Raises as `read`."""
        return self.read(np.arange(len(self)))

    def _skips(self, total: int) -> Iterator[bytes]:
        while total > 0:
            yield self._read(min(total, SKIP_BYTES))
            total -= SKIP_BYTES

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError("it ends before its last image")
        return data

    def _open(self) -> None:
        """Opens the array at its first image, and checks its header."""
        self._opened.close()
        if self._member:
            archive = self._opened.enter_context(storage.open_zip(self._file))
            declared, what = archive.getinfo(self._member).file_size, f"{self._file}: {self._member.removesuffix('.npy')}"
            self._stream = self._opened.enter_context(archive.open(self._member))
        else:
            declared, what = self._file.stat().st_size, str(self._file)
            self._stream = self._opened.enter_context(self._file.open("rb"))
        self.shape, start = _check_header(what, self._stream)
        if declared != start + int(np.prod(self.shape, dtype=object)):
            raise InvalidDataError(f"{what} has another size than its header declares: it is truncated or forged")
        self._position = 0

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (FileAccessError, InvalidDataError):
            raise
        except FileNotFoundError as error:
            raise FileAccessError(f"{self._file} does not exist") from error
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise InvalidDataError(f"{self._file} is truncated or damaged: {error_line(error)}") from error


def _array_name(file: pathlib.Path, archive: zipfile.ZipFile) -> str:
    arrays = [name for name in archive.namelist() if name.endswith(".npy")]
    chosen = next((f"{name}.npy" for name in NAMES if f"{name}.npy" in arrays), "")
    if not chosen and len(arrays) != 1:
        listed = ", ".join(name.removesuffix(".npy") for name in arrays[:6]) or "no array"
        raise InvalidDataError(f"{file} holds {listed}: the images must be arr_0, images, or the only array")
    return chosen or arrays[0]


def _check_header(what: str, stream: IO[bytes]) -> tuple[tuple[int, int, int, int], int]:
    """(N, H, W, C) and the number of bytes of the header."""
    start = stream.read(10)
    if start[:6] != np.lib.format.MAGIC_PREFIX or len(start) < 10 or start[6] != 1:
        raise InvalidDataError(f"{what} is not an array of numbers that NumPy wrote")
    rest = stream.read(int.from_bytes(start[8:10], "little"))
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(start[8:] + rest))
    words = f"{what} is {dtype} {list(shape)}"
    if dtype.hasobject:
        raise InvalidDataError(f"{what} holds pickled objects, which could execute code: save an array of uint8")
    if dtype != np.uint8:
        raise InvalidDataError(f"{words}: images must be uint8, 0..255; convert it with numpy")
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise InvalidDataError(f"{words}: images must be [N, H, W, C] with C 1 or 3; transpose it with numpy")
    if 0 in shape or int(np.prod(shape[1:], dtype=object)) > MOST_BYTES:
        raise InvalidDataError(f"{words}: there must be an image, of at most {MOST_BYTES:,} bytes; larger ones as PNG files")
    if fortran_order:
        raise InvalidDataError(f"{words} in Fortran order: save it with numpy.ascontiguousarray")
    return shape, len(start) + len(rest)
