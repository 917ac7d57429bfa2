"""TensorBoard events: what TensorBoard itself reads of them. test_metric_logger.py reads them with tensorflow."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util

from ddpm_jax.runtime.trackers import TrackerGroup


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def scalars_of(folder, tag="loss"):
    return [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in events_of(folder).Tensors(tag)]


def test_a_resumed_run_continues_the_curve(tmp_path):
    for steps in ((1, 2), (3, 4)):
        with TrackerGroup(("tensorboard",), tmp_path, "metrics.jsonl") as writer:
            for step in steps:
                writer.log_scalars(step, {"loss": step / 2, "norm": 1.0})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert scalars_of(tmp_path / "tensorboard") == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert events_of(tmp_path / "tensorboard").Tags()["tensors"] == ["loss", "norm"]


@pytest.mark.parametrize("name", ["scalars", "images"])
def test_the_charts_of_tensorboard_know_the_values(tmp_path, name):
    with TrackerGroup(("tensorboard",), tmp_path, "metrics.jsonl") as writer:
        writer.log_scalars(1, {"loss": 1.0})
        writer.log_image(1, "samples", np.zeros((2, 3, 1), np.uint8))
    tag = {"scalars": "loss", "images": "samples"}[name]
    assert events_of(tmp_path / "tensorboard").SummaryMetadata(tag).plugin_data.plugin_name == name


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_pixels(tmp_path, channels):
    import io

    from PIL import Image

    grid = np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8)
    with TrackerGroup(("tensorboard",), tmp_path, "metrics.jsonl") as writer:
        writer.log_image(5, "samples", grid)
    (event,) = events_of(tmp_path / "tensorboard").Tensors("samples")
    width, height, png = tensor_util.make_ndarray(event.tensor_proto).flat
    assert (event.step, width, height) == (5, b"6", b"4")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))).reshape(grid.shape), grid)


def test_values_are_readable_before_the_file_is_closed(tmp_path):
    writer = TrackerGroup(("tensorboard",), tmp_path, "metrics.jsonl")
    writer.log_scalars(1, {"loss": float("nan")})
    ((step, value),) = scalars_of(tmp_path / "tensorboard")
    assert step == 1
    assert np.isnan(value)
    writer.close()
    writer.close()


def test_a_folder_that_cannot_be_written_is_one_log_line(tmp_path, log_lines):
    (tmp_path / "tensorboard").write_text("a file")
    with TrackerGroup(("tensorboard",), tmp_path, "metrics.jsonl") as writer:
        writer.log_scalars(1, {"loss": 1.0})
        writer.log_scalars(2, {"loss": 1.0})
    assert log_lines == ["the tracker tensorboard is off (file exists); metrics.jsonl has the same numbers"]


def test_nothing_is_created_without_events(tmp_path):
    TrackerGroup(("tensorboard",), tmp_path, "metrics.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_the_config_is_a_text_and_the_hyperparameters(tmp_path):
    config = {"seed": 3, "optimizer": {"learning_rate": 0.5, "name": "adam"}, "data": {"random_flip": True, "range": [1, 2]}}
    for step in (0, 5, None):  # a start, a resume, and an evaluation, which must not begin a file of the run
        with TrackerGroup(("tensorboard",), tmp_path, "metrics.jsonl") as tracker:
            tracker.start(config, "runs/a", step)
            tracker.log_scalars(7, {"loss": 1.0}, "" if step is not None else "evaluate/ema")
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 2
    events = events_of(tmp_path / "tensorboard")
    texts = events.Tensors("config")
    assert [event.step for event in texts] == [0, 5]
    (table,) = tensor_util.make_ndarray(texts[0].tensor_proto)
    assert "| optimizer.learning_rate | 0.5 |\n" in table.decode()
    assert events.SummaryMetadata("config").plugin_data.plugin_name == "text"
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = hparams_metadata.parse_session_start_info_plugin_data(content)
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in session.hparams.items()}
    expected = {"seed": 3, "optimizer.learning_rate": 0.5, "optimizer.name": "adam"}
    assert values == expected | {"data.random_flip": True, "data.range": "[1, 2]"}
    assert session.group_name == "runs/a"
