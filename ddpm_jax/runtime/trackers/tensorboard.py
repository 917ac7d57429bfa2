"""TensorBoard events, written with the protocol buffers of the package tensorboard, without tensorflow.

Each start of a run appends a file to the folder. TensorBoard drops the steps of an earlier file that a later one repeats.
"""

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.config_changes import flatten

FOLDER = "tensorboard"
FULL_BYTES = 8 << 20  # of a file in a bucket, after which the next one begins
_FILES = itertools.count()  # part of the file names, unique in this process


class TensorBoardTracker:
    """Writes TensorBoard events; see `runtime.trackers.Tracker`. The first event imports tensorboard.

    Each curve has a folder of its own: TensorBoard reads only the newest file of a folder, which must stay that of the running
    training.

    Args:
      workdir: the run's folder, for tensorboard/.
    """

    def __init__(self, workdir: Path) -> None:
        self._folder = workdir / FOLDER
        self._files: dict[str, _EventFile] = {}
        self._start: tuple[Mapping[str, Any], str, int] | None = None

    def start(self, config: Mapping[str, Any], name: str, step: int | None) -> None:
        """Holds the config back until the first event: as a text, and as the hyperparameters of the run."""
        self._start = None if step is None else (config, name, step)

    def log_scalars(self, step: int, values: Mapping[str, float], curve: str = "") -> None:
        """Records scalars; each tag is a chart."""
        self._file(curve).write_scalars(step, values)

    def log_image(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records an image, uint8 [H, W, C]."""
        self._file("").write_image(step, name, grid)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Records a text in Markdown."""
        self._file("").write_text(step, name, text)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _file(self, curve: str) -> "_EventFile":
        if curve in self._files and self._files[curve].is_full():
            self._files.pop(curve).close()
        if curve not in self._files:
            self._files[curve] = _EventFile(self._folder / curve)
            if not curve and self._start:
                config, name, step = self._start
                fields = flatten(config)
                self._files[curve].write_text(step, "config", _as_table(fields))
                self._files[curve].write_hparams(fields, name)
        return self._files[curve]


class _EventFile:
    """A new file of events in `folder`, which is created if missing. Each write is flushed."""

    def __init__(self, folder: Path) -> None:
        # Imported lazily: it takes a third of a second, and the package is optional.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import metadata as hparams_metadata
        from tensorboard.plugins.hparams import plugin_data_pb2
        from tensorboard.plugins.image import metadata as image_metadata
        from tensorboard.plugins.scalar import metadata as scalar_metadata
        from tensorboard.plugins.text import metadata as text_metadata
        from tensorboard.summary.writer.record_writer import RecordWriter
        from tensorboard.util import tensor_util

        self._event, self._summary, self._value = event_pb2.Event, summary_pb2.Summary, summary_pb2.Summary.Value
        self._make_tensor = tensor_util.make_tensor_proto
        self._scalar = scalar_metadata.create_summary_metadata(display_name="", description="")
        self._image = image_metadata.create_summary_metadata(display_name="", description="")
        self._text = text_metadata.create_summary_metadata(display_name="", description="")
        self._hparams, self._hparams_data = hparams_metadata, plugin_data_pb2
        self._scalar.data_class = summary_pb2.DATA_CLASS_SCALAR
        self._image.data_class = summary_pb2.DATA_CLASS_BLOB_SEQUENCE
        self._text.data_class = summary_pb2.DATA_CLASS_TENSOR
        storage.make_folder(folder)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.{next(_FILES)}"
        self._file = storage.open_growing(folder / name, new=True)
        self._records = RecordWriter(self._file)
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

    def write_text(self, step: int, tag: str, text: str) -> None:
        content = self._make_tensor(np.array([text.encode()], object))
        self._write_values(step, [self._value(tag=tag, tensor=content, metadata=self._text)])

    def write_hparams(self, fields: Mapping[str, Any], name: str) -> None:
        """The start of a session, as tensorboard.plugins.hparams.summary does, which needs tensorflow."""
        session = self._hparams_data.SessionStartInfo(group_name=name, start_time_secs=time.time())
        for field, value in fields.items():
            held = session.hparams[field]
            if isinstance(value, bool):
                held.bool_value = value
            elif isinstance(value, int | float):
                held.number_value = value
            else:
                held.string_value = str(value)
        metadata = self._hparams.create_summary_metadata(self._hparams_data.HParamsPluginData(session_start_info=session))
        tag, null = self._hparams.SESSION_START_INFO_TAG, self._hparams.NULL_TENSOR
        self._write_values(0, [self._value(tag=tag, tensor=null, metadata=metadata)])

    def is_full(self) -> bool:
        """Whether an object in a bucket, which is written as a whole, should not grow further."""
        return isinstance(self._file, storage.GrowingObject) and self._file.size > FULL_BYTES

    def close(self) -> None:
        self._records.close()

    def _write_values(self, step: int, values: Sequence[Any]) -> None:
        self._append(step=step, summary=self._summary(value=values))

    def _append(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._records.flush()


def _as_table(fields: Mapping[str, Any]) -> str:
    rows = (f"| {field} | {str(value).replace('|', '/')} |\n" for field, value in fields.items())
    return "| field | value |\n| --- | --- |\n" + "".join(rows)
