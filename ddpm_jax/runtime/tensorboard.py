"""TensorBoard events, written with the protocol buffers of the package tensorboard, without tensorflow.

Each start of a run appends a file to the folder. TensorBoard drops the steps of an earlier file that a later one repeats.
"""

import io
import itertools
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.runtime.errors import error_line

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"
_FILES = itertools.count()  # part of the file names, unique in this process


class TensorBoardWriter:
    """Writes TensorBoard events. A context manager.

    The first event imports tensorboard. Errors, such as a missing package, are logged as one line and do not stop training.

    Args:
      workdir: the run's folder, for tensorboard/.
      fallback_file: name of the file with the same numbers, for that line.
    """

    def __init__(self, workdir: str | os.PathLike, fallback_file: str) -> None:
        self._folder = Path(workdir).absolute() / FOLDER
        self._fallback_file = fallback_file
        self._files: dict[str, _EventFile] = {}
        self._off = False

    def log_scalars(self, step: int, values: Mapping[str, float], curve: str = "") -> None:
        """Records scalars of `step`.

        Args:
          step: position on the axis.
          values: tag -> number; each tag is a chart.
          curve: "" for the run itself; other names are separate curves in these charts, with separate folders:
            TensorBoard reads only the newest file of a folder, which must stay that of the running training.
        """
        self._write(curve, "write_scalars", int(step), values)

    def log_image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records an image, uint8 [H, W, C], C being 1 or 3."""
        self._write("", "write_image", int(step), name, grid)

    def close(self) -> None:
        """Closes the files. May be called twice."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, curve: str, method: str, *arguments: Any) -> None:
        if self._off:
            return
        try:
            if curve not in self._files:
                self._files[curve] = _EventFile(self._folder / curve)
            getattr(self._files[curve], method)(*arguments)
        except Exception as error:  # an import can raise any exception
            self._off = True
            logger.warning(f"TensorBoard is off ({_reason(error)}); {self._fallback_file} has the same numbers")


class _EventFile:
    """A new file of events in `folder`, which is created if missing. Each write is flushed."""

    def __init__(self, folder: Path) -> None:
        # Imported lazily: it takes a third of a second, and the package is optional.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.image import metadata as image_metadata
        from tensorboard.plugins.scalar import metadata as scalar_metadata
        from tensorboard.summary.writer.record_writer import RecordWriter
        from tensorboard.util import tensor_util

        self._event, self._summary, self._value = event_pb2.Event, summary_pb2.Summary, summary_pb2.Summary.Value
        self._make_tensor = tensor_util.make_tensor_proto
        self._scalar = scalar_metadata.create_summary_metadata(display_name="", description="")
        self._image = image_metadata.create_summary_metadata(display_name="", description="")
        self._scalar.data_class = summary_pb2.DATA_CLASS_SCALAR
        self._image.data_class = summary_pb2.DATA_CLASS_BLOB_SEQUENCE
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.{next(_FILES)}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._append(file_version="brain.Event:2")

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write_values(
            step,
            [
                self._value(tag=tag, tensor=self._make_tensor(np.float32(value)), metadata=self._scalar)
                for tag, value in values.items()
            ],
        )

    def write_image(self, step: int, tag: str, grid: np.ndarray) -> None:
        height, width, channels = grid.shape
        png = io.BytesIO()
        Image.fromarray(grid[..., 0] if channels == 1 else grid).save(png, format="PNG")
        content = np.array([str(width).encode(), str(height).encode(), png.getvalue()], object)
        self._write_values(step, [self._value(tag=tag, tensor=self._make_tensor(content), metadata=self._image)])

    def close(self) -> None:
        self._records.close()

    def _write_values(self, step: int, values: Sequence[Any]) -> None:
        self._append(step=step, summary=self._summary(value=values))

    def _append(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._records.flush()


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "tensorboard":
        return "for events: pip install tensorboard"
    return error_line(error)
