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
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make(folder, out=None, clock=None, **arguments):
    arguments = {"total_steps": 1000, "start_step": 0, "batch_size": 64, "tensorboard": False} | arguments
    return TrainLogger(folder, out=io.StringIO() if out is None else out, clock=clock or Clock(), **arguments)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder):
    return [line["step"] for line in lines_of(folder)]


def test_scalars_are_on_the_disk_at_once(tmp_path):
    with make(tmp_path) as logbook:
        logbook.scalars(10, {"loss": np.float32(0.5), "grad_norm": 2})
        (line,) = lines_of(tmp_path)
        assert line["time"] > 1.6e9
        del line["time"]
        assert line == {"step": 10, "loss": 0.5, "grad_norm": 2.0}


def test_what_json_cannot_say_becomes_null(tmp_path):
    with make(tmp_path) as logbook:
        logbook.scalars(1, {"loss": float("nan"), "norm": float("inf")})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert lines_of(tmp_path)[0]["loss"] is None


def test_lines_of_a_run_in_a_file(tmp_path):
    clock, out = Clock(), io.StringIO()
    with make(tmp_path, out, clock, total_steps=2000) as logbook:
        clock.now += 50  # compilation
        for step in range(1, 1201):
            clock.now += 0.05
            logbook.tick(step)
            if step == 1001:
                logbook.scalars(1000, {"loss": 0.031234})
    assert out.getvalue().splitlines() == [
        "step 1 / 2,000 (0%)",
        "step 201 / 2,000 (10%) · 20.0 steps/s · 1,280 images/s · 1:30 left",
        "step 401 / 2,000 (20%) · 20.0 steps/s · 1,280 images/s · 1:20 left",
        "step 601 / 2,000 (30%) · 20.0 steps/s · 1,280 images/s · 1:10 left",
        "step 801 / 2,000 (40%) · 20.0 steps/s · 1,280 images/s · 1:00 left",
        "step 1,001 / 2,000 (50%) · 20.0 steps/s · 1,280 images/s · 0:50 left",
        "step 1,001 / 2,000 (50%) · loss 0.03123 · 20.0 steps/s · 1,280 images/s · 0:50 left",
    ]


def test_a_resumed_run_reckons_from_where_it_starts(tmp_path):
    clock, out = Clock(), io.StringIO()
    with make(tmp_path, out, clock, start_step=900) as logbook:
        for step in range(901, 1001):
            clock.now += 0.5
            logbook.tick(step)
    assert out.getvalue().splitlines()[-1] == "step 1,000 / 1,000 (100%) · 2.0 steps/s · 128 images/s"


def test_paused_time_does_not_count(tmp_path):
    clock, out = Clock(), io.StringIO()
    with make(tmp_path, out, clock) as logbook:
        for step in range(1, 11):
            clock.now += 1
            logbook.tick(step)
            with logbook.pause():
                clock.now += 60
        logbook.scalars(10, {})
    assert out.getvalue().splitlines()[-1] == "step 10 / 1,000 (1%) · 1.0 steps/s · 64.0 images/s · 16:30 left"


def test_a_terminals_line_is_rewritten_above_it_a_log_line_stays(tmp_path, printed_log):
    clock, out = Clock(), Terminal()
    with make(tmp_path, out, clock) as logbook:
        logbook.tick(1)
        logbook.tick(2)  # too soon to show
        clock.now += 2
        logbook.tick(3)
        logging.getLogger("ddpm_jax.test").info("saved")
        logbook.scalars(3, {"loss": 1})
    begin, second, saved, last = out.getvalue().replace("\r\x1b[K", "\r").split("\r")[1:]
    assert begin == "step 1 / 1,000 (0%)\x1b[K"
    assert second == "step 3 / 1,000 (0%) · 1.0 steps/s · 64.0 images/s · 16:37 left\x1b[K"
    assert saved == "saved\n"
    assert last == "step 3 / 1,000 (0%) · loss 1 · 1.0 steps/s · 64.0 images/s · 16:37 left\x1b[K\n"


def test_a_terminals_line_never_wraps(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    with make(tmp_path, out) as logbook:
        logbook.scalars(1, {"a_long_name_of_a_metric": 1.0})
    assert len(out.getvalue().strip("\r\n").removesuffix("\x1b[K")) == 19


def write_steps(folder, steps, tail=""):
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in steps) + tail)


@pytest.mark.parametrize(
    ("start", "left"),
    [(20, [0, 10, 20]), (25, [0, 10, 20]), (40, [0, 10, 20, 30, 40]), (0, []), (None, [0, 10, 20, 30, 40])],
)
def test_a_resume_cuts_back_to_its_step(tmp_path, start, left):
    write_steps(tmp_path, [0, 10, 20, 30, 40])
    with make(tmp_path, start_step=start) as logbook:
        logbook.scalars(50, {})
    assert steps_of(tmp_path) == [*left, 50]


@pytest.mark.parametrize("tail", ['{"step": 15, "lo', '{"step": 15, "loss": 1.0}', '{"loss": 1.0}\n', "\x00\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, tail):
    write_steps(tmp_path, [10], tail)
    with make(tmp_path, start_step=20) as logbook:
        logbook.scalars(30, {})
    assert steps_of(tmp_path) == [10, 30]


def test_cutting_back_leaves_no_other_file(tmp_path):
    write_steps(tmp_path, [10, 20, 30])
    make(tmp_path, start_step=10).close()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_who_does_not_write_leaves_everything_alone(tmp_path):
    write_steps(tmp_path, [10, 20])
    out = io.StringIO()
    with make(tmp_path, out, is_writer=False, tensorboard=True) as logbook, logbook.pause():
        logbook.tick(1)
        logbook.scalars(5, {"loss": 1.0})
        logbook.image(5, "samples", np.zeros((4, 4, 3), np.uint8))
    assert out.getvalue() == ""
    assert steps_of(tmp_path) == [10, 20]


def test_a_workdir_that_is_gone(tmp_path):
    with pytest.raises(FileAccessError, match=r"cannot write .*metrics\.jsonl"):
        make(tmp_path / "gone")


def test_a_full_disk_is_told(tmp_path):
    logbook = make(tmp_path)

    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    logbook._metrics.close()
    logbook._metrics = Full()
    with pytest.raises(FileAccessError, match=r"cannot write .*metrics\.jsonl: no space left on device"):
        logbook.scalars(1, {})


TENSORBOARD = """
import sys, numpy as np
from ddpm_jax.runtime.metric_logger import TensorBoardWriter, TrainLogger
if sys.argv[2] == "without":
    sys.modules["tensorflow"] = None
with TrainLogger(sys.argv[1], total_steps=10, start_step=0, batch_size=1) as logbook:
    assert "clu" not in sys.modules
    logbook.tick(1)
    logbook.scalars(1, {"loss": 0.5})
    logbook.image(1, "samples", np.full((4, 4, 3), 200, np.uint8))
    logbook.scalars(2, {"loss": 0.25})
with TensorBoardWriter(sys.argv[1]) as events:
    events.scalars(2, {"loss": 0.75}, "evaluate/ema")
"""

READ_EVENTS = """
import pathlib, tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
folder = pathlib.Path(sys.argv[1], "tensorboard")
files = sorted(folder.rglob("events.*"), key=lambda file: len(file.parts))
assert [str(file.parent.relative_to(folder)) for file in files] == [".", "evaluate/ema"]
for file in files:
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            array = tf.make_ndarray(value.tensor)
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
    written, said = run_program(TENSORBOARD + READ_EVENTS, tmp_path, "with", child_environment())
    assert written == [
        "1 loss float32 0.5",
        f"1 samples uint8 {np.full((4, 4, 3), 200).tolist()}",
        "2 loss float32 0.25",
        "2 loss float32 0.75",
    ]
    assert said == []


def test_without_tensorflow_one_line_says_so(tmp_path, child_environment):
    _, said = run_program(TENSORBOARD, tmp_path, "without", child_environment())
    assert len(said) == 2  # of each of the two that would have written
    assert all(line.startswith("TensorBoard is off (import of tensorflow halted") for line in said)
    assert not (tmp_path / "tensorboard").exists()
