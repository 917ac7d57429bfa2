import io
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.runtime.errors import FileAccessError
from ddpm_jax.runtime.metric_logger import TrainLogger


class Clock:
    """A manual clock."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make(folder, out=None, clock=None, **arguments):
    arguments = {"total_steps": 1000, "start_step": 0, "batch_size": 64} | arguments
    return TrainLogger(folder, out=io.StringIO() if out is None else out, clock=clock or Clock(), **arguments)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder):
    return [line["step"] for line in lines_of(folder)]


def test_scalars_are_written_immediately(tmp_path):
    with make(tmp_path) as logger:
        logger.log_scalars(10, {"train/loss": np.float32(0.5), "train/grad_norm": 2})
        (line,) = lines_of(tmp_path)
        assert line["time"] > 1.6e9
        del line["time"]
        assert line == {"step": 10, "train/loss": 0.5, "train/grad_norm": 2.0}


def test_nan_and_infinity_become_null(tmp_path):
    with make(tmp_path) as logger:
        logger.log_scalars(1, {"loss": float("nan"), "norm": float("inf")})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert lines_of(tmp_path)[0]["loss"] is None


def test_lines_of_a_run_in_a_file(tmp_path):
    clock, out = Clock(), io.StringIO()
    with make(tmp_path, out, clock, total_steps=2000) as logger:
        clock.now += 50  # compilation
        for step in range(1, 1201):
            clock.now += 0.05
            logger.tick(step)
            if step == 1001:
                logger.log_scalars(1000, {"train/loss": 0.031234})
    assert out.getvalue().splitlines() == [
        "step 1 / 2,000 (0%)",
        "step 201 / 2,000 (10%) · 20.0 steps/s · 1,280 images/s · 1:30 left",
        "step 401 / 2,000 (20%) · 20.0 steps/s · 1,280 images/s · 1:20 left",
        "step 601 / 2,000 (30%) · 20.0 steps/s · 1,280 images/s · 1:10 left",
        "step 801 / 2,000 (40%) · 20.0 steps/s · 1,280 images/s · 1:00 left",
        "step 1,001 / 2,000 (50%) · 20.0 steps/s · 1,280 images/s · 0:50 left",
        "step 1,001 / 2,000 (50%) · loss 0.03123 · 20.0 steps/s · 1,280 images/s · 0:50 left",
    ]


def test_a_resumed_run_measures_from_its_first_step(tmp_path):
    clock, out = Clock(), io.StringIO()
    with make(tmp_path, out, clock, start_step=900) as logger:
        for step in range(901, 1001):
            clock.now += 0.5
            logger.tick(step)
    assert out.getvalue().splitlines()[-1] == "step 1,000 / 1,000 (100%) · 2.0 steps/s · 128 images/s"


def test_paused_time_does_not_count(tmp_path):
    clock, out = Clock(), io.StringIO()
    with make(tmp_path, out, clock) as logger:
        for step in range(1, 11):
            clock.now += 1
            logger.tick(step)
            with logger.pause():
                clock.now += 60
        logger.log_scalars(10, {})
    assert out.getvalue().splitlines()[-1] == "step 10 / 1,000 (1%) · 1.0 steps/s · 64.0 images/s · 16:30 left"


def test_rates_with_the_utilization(tmp_path):
    clock = Clock()
    with make(tmp_path, clock=clock) as logger:
        assert logger.rates() == {}
        for step in range(1, 11):
            clock.now += 0.5
            logger.tick(step)
        expected = {"perf/steps_per_second": 2.0, "perf/images_per_second": 128.0, "perf/seconds_left": 495.0}
        assert logger.rates() == expected
        logger.set_step_cost(0.125)
        assert logger.rates() == expected | {"perf/mfu": 0.25}


def test_log_lines_are_printed_above_the_line_of_a_terminal(tmp_path, printed_log):
    clock, out = Clock(), Terminal()
    with make(tmp_path, out, clock) as logger:
        logger.tick(1)
        logger.tick(2)  # too early to show
        clock.now += 2
        logger.tick(3)
        logging.getLogger("ddpm_jax.test").info("saved")
        logger.log_scalars(3, {"train/loss": 1})
    begin, second, saved, last = out.getvalue().replace("\r\x1b[K", "\r").split("\r")[1:]
    assert begin == "step 1 / 1,000 (0%)\x1b[K"
    assert second == "step 3 / 1,000 (0%) · 1.0 steps/s · 64.0 images/s · 16:37 left\x1b[K"
    assert saved == "saved\n"
    assert last == "step 3 / 1,000 (0%) · loss 1 · 1.0 steps/s · 64.0 images/s · 16:37 left\x1b[K\n"


def test_a_terminals_line_never_wraps(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    with make(tmp_path, out) as logger:
        logger.log_scalars(1, {"a_long_name_of_a_metric": 1.0})
    assert len(out.getvalue().strip("\r\n").removesuffix("\x1b[K")) == 19


def write_steps(folder, steps, tail=""):
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in steps) + tail)


@pytest.mark.parametrize(
    ("start", "left"),
    [(20, [0, 10, 20]), (25, [0, 10, 20]), (40, [0, 10, 20, 30, 40]), (0, []), (None, [0, 10, 20, 30, 40])],
)
def test_a_resume_truncates_after_its_step(tmp_path, start, left):
    write_steps(tmp_path, [0, 10, 20, 30, 40])
    with make(tmp_path, start_step=start) as logger:
        logger.log_scalars(50, {})
    assert steps_of(tmp_path) == [*left, 50]


@pytest.mark.parametrize("tail", ['{"step": 15, "lo', '{"step": 15, "loss": 1.0}', '{"loss": 1.0}\n', "\x00\x00\x00"])
def test_an_incomplete_last_line_is_dropped(tmp_path, tail):
    write_steps(tmp_path, [10], tail)
    with make(tmp_path, start_step=20) as logger:
        logger.log_scalars(30, {})
    assert steps_of(tmp_path) == [10, 30]


def test_truncation_leaves_no_temporary_file(tmp_path):
    write_steps(tmp_path, [10, 20, 30])
    make(tmp_path, start_step=10).close()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


class Forbidden:
    """A tracker that must not be used."""


def test_a_process_that_is_not_the_writer_changes_nothing(tmp_path):
    write_steps(tmp_path, [10, 20])
    out = io.StringIO()
    with make(tmp_path, out, is_writer=False, tracker=Forbidden()) as logger, logger.pause():
        logger.tick(1)
        logger.log_scalars(5, {"loss": 1.0})
        logger.log_image(5, "samples", np.zeros((4, 4, 3), np.uint8))
    assert out.getvalue() == ""
    assert steps_of(tmp_path) == [10, 20]


def test_a_workdir_that_is_gone(tmp_path):
    with pytest.raises(FileAccessError, match=r"cannot write .*metrics\.jsonl"):
        make(tmp_path / "gone")


def test_a_full_disk_is_an_error(tmp_path):
    logger = make(tmp_path)

    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    logger._metrics._file.close()
    logger._metrics._file = Full()
    with pytest.raises(FileAccessError, match=r"cannot write .*metrics\.jsonl: no space left on device"):
        logger.log_scalars(1, {})


TENSORBOARD = """
import sys, numpy as np
from ddpm_jax.runtime.metric_logger import TrainLogger
from ddpm_jax.runtime.trackers import TrackerGroup
if sys.argv[2] == "without":
    sys.modules["tensorboard"] = None
tracker = TrackerGroup(("jsonl", "tensorboard"), sys.argv[1], "metrics.jsonl")
tracker.start({"seed": 1, "train": {"num_steps": 10, "trackers": ["tensorboard"]}}, "a/b", 0)
with TrainLogger(sys.argv[1], total_steps=10, start_step=0, batch_size=1, tracker=tracker) as logger:
    assert sys.modules.get("tensorboard") is None  # imported by the first event
    logger.tick(1)
    logger.log_scalars(1, {"train/loss": 0.5})
    logger.log_image(1, "samples", np.full((4, 4, 3), 200, np.uint8))
    logger.log_scalars(2, {"train/loss": 0.25})
with TrackerGroup(("tensorboard",), sys.argv[1], "other.json") as tracker:
    tracker.start({"seed": 1}, "a/b", None)
    tracker.log_scalars(2, {"train/loss": 0.75}, "evaluate/ema")
assert "tensorflow" not in sys.modules
"""

READ_EVENTS = """
import os, pathlib
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # no start-up messages
import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
folder = pathlib.Path(sys.argv[1], "tensorboard")
files = sorted(folder.rglob("events.*"), key=lambda file: len(file.parts))
assert [str(file.parent.relative_to(folder)) for file in files] == [".", "evaluate/ema"]
for file in files:
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            array = tf.make_ndarray(value.tensor)
            if value.tag in ("config", "_hparams_/session_start_info"):
                print(event.step, value.tag, str(value.metadata.plugin_data.plugin_name))
                continue
            if value.tag == "samples":
                array = tf.io.decode_png(array.flat[2]).numpy()
            print(event.step, value.tag, array.dtype, array.tolist())
"""


def run_program(program, folder, how, environment):
    child = subprocess.run([sys.executable, "-c", program, folder, how], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert steps_of(folder) == [1, 2]
    return child.stdout.splitlines(), [line for line in child.stderr.splitlines() if not line.startswith("step ")]


def test_events_hold_the_same_numbers(tmp_path, child_environment):
    written, lines = run_program(TENSORBOARD + READ_EVENTS, tmp_path, "with", child_environment())
    assert written == [
        "0 config text",
        "0 _hparams_/session_start_info hparams",
        "1 train/loss float32 0.5",
        f"1 samples uint8 {np.full((4, 4, 3), 200).tolist()}",
        "2 train/loss float32 0.25",
        "2 train/loss float32 0.75",
    ]
    assert lines == []


def test_without_tensorboard_there_is_one_log_line(tmp_path, child_environment):
    _, lines = run_program(TENSORBOARD, tmp_path, "without", child_environment())
    assert lines == [  # one from each of the two writers
        f"the tracker tensorboard is off (for events: pip install tensorboard); {file} has the same numbers"
        for file in ("metrics.jsonl", "other.json")
    ]
    assert not (tmp_path / "tensorboard").exists()
