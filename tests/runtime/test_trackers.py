"""The group of trackers, and Weights & Biases by its own package, offline, if it is installed."""

import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.runtime.errors import InvalidArgumentError, UnavailableError
from ddpm_jax.runtime.trackers import TrackerGroup, run_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN = """
import json
class Lines:
    def __init__(self, workdir):
        self.file = (workdir / "lines.txt").open("a")
    def start(self, config, name, step):
        self.write("start", config, name, step)
    def log_scalars(self, step, values, curve=""):
        if step == 3:
            raise ConnectionError("the server is down")
        self.write("scalars", step, dict(values), curve)
    def log_image(self, step, name, grid):
        self.write("image", step, name, grid.tolist())
    def log_text(self, step, name, text):
        self.write("text", step, name, text)
    def close(self):
        self.write("close")
        self.file.close()
    def write(self, *values):
        print(json.dumps(values), file=self.file, flush=True)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "lines_tracker.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "lines_tracker", raising=False)
    return "lines_tracker:Lines"


def lines_of(folder):
    return [json.loads(line) for line in (folder / "lines.txt").read_text().splitlines()]


def test_a_tracker_of_ones_own_gets_everything(tmp_path, own, log_lines):
    with TrackerGroup(("jsonl", own), tmp_path, "metrics.jsonl") as group:
        group.start({"seed": 1}, "a/b", 0)
        group.log_scalars(1, {"train/loss": 0.5}, "curve")
        group.log_image(2, "samples", np.zeros((1, 1, 1), np.uint8))
        group.log_text(2, "note", "text")
    assert lines_of(tmp_path) == [
        ["start", {"seed": 1}, "a/b", 0],
        ["scalars", 1, {"train/loss": 0.5}, "curve"],
        ["image", 2, "samples", [[[0]]]],
        ["text", 2, "note", "text"],
        ["close"],
    ]
    assert log_lines == []


def test_a_tracker_that_fails_is_off_and_the_others_continue(tmp_path, own, log_lines):
    with TrackerGroup((own, "tensorboard"), tmp_path, "metrics.jsonl") as group:
        for step in range(1, 6):
            group.log_scalars(step, {"train/loss": 0.5})
    assert [line[:2] for line in lines_of(tmp_path)] == [["scalars", 1], ["scalars", 2], ["close"]]
    (line,) = log_lines
    file = tmp_path / "lines_tracker.py"
    reason = f"ConnectionError: the server is down (line 10 of {file})"
    assert line == f"the tracker {own} is off ({reason}); metrics.jsonl has the same numbers"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "`trackers` contains 'tensorbord': choose from jsonl, tensorboard, wandb, or module:Class of your own"),
        ("no_such_module:Tracker", "the tracker no_such_module:Tracker cannot be imported: ModuleNotFoundError"),
    ],
)
def test_names_that_do_not_exist(tmp_path, name, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TrackerGroup((name,), tmp_path, "metrics.jsonl")


def test_the_name_of_a_run():
    assert run_name("/home/ada/runs/digits/") == "runs/digits"
    assert run_name("/digits") == "digits"


WANDB = """
import sys, pathlib, numpy as np
from ddpm_jax.runtime.trackers import TrackerGroup
step = None if sys.argv[2] == "None" else int(sys.argv[2])
with TrackerGroup(("wandb",), sys.argv[1], "metrics.jsonl") as group:
    group.start({"seed": step, "train": {"num_steps": 10}}, "runs/a", step)
    group.log_scalars(3, {"eval/frechet": 0.125}, "evaluate/ema") if step is None else None
    for number in range(step, step + 3) if step is not None else ():
        group.log_scalars(number + 1, {"train/loss": 0.5 ** number})
    group.log_image(step or 0, "samples", np.zeros((4, 4, 3), np.uint8))
    group.log_text(step or 0, "note", "a < b")
"""


def records(content, header=7, block=32768):
    """LevelDB's log format: blocks of fragments with checksum, length and type (1: whole, 2: first, 3: middle, 4: last)."""
    place, parts = header, []
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def read_wandb(file):
    """(config, history) of the file that the package wandb writes offline."""
    from wandb.proto import wandb_internal_pb2

    config, history = {}, []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for update in (*record.run.config.update, *record.config.update):
            config[update.key] = json.loads(update.value_json)
        if record.HasField("history"):
            keys = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.append(keys)
    return config, history


def test_weights_and_biases_offline(tmp_path, child_environment):
    """The real package: config, scalars, an image, and one run id for start, resume and evaluation."""
    package = importlib.util.find_spec("wandb")
    if package is None:
        with pytest.raises(UnavailableError, match="the package wandb is not installed: pip install wandb, or leave it out"):
            TrackerGroup(("wandb",), tmp_path, "metrics.jsonl")
        return
    environment = child_environment() | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    found_in = str(pathlib.Path(package.origin).parents[1])  # perhaps outside this environment
    environment["PYTHONPATH"] = os.pathsep.join([environment.get("PYTHONPATH", str(ROOT)), found_in])
    for step in ("0", "2", "None"):
        child = subprocess.run([sys.executable, "-c", WANDB, tmp_path, step], env=environment, capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
        assert "is off" not in child.stderr
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    identity = (tmp_path / "wandb_id.txt").read_text().strip()
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 3
    read = [read_wandb(file) for file in files]
    assert [config.get("seed") for config, _ in read] == [0, 2, None]
    losses = [{row["trainer_step"]: row["train/loss"] for row in rows if "train/loss" in row} for _, rows in read]
    assert losses == [{1: 1.0, 2: 0.5, 3: 0.25}, {3: 0.25, 4: 0.125, 5: 0.0625}, {}]
    assert [row["evaluate/ema/eval/frechet"] for row in read[2][1] if "evaluate/ema/eval/frechet" in row] == [0.125]
    assert len(list(pathlib.Path(tmp_path, "wandb").glob("offline-run-*/files/media/images/samples_*.png"))) == 3


def test_a_tracker_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing_tracker.py").write_text(
        "class Failing:\n    def __init__(self, workdir):\n        raise OSError('disk')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidArgumentError, match=r"the tracker failing_tracker:Failing fails: .*disk.*line 3 of") as caught:
        TrackerGroup(["failing_tracker:Failing"], tmp_path, "metrics.jsonl")
    assert "\n" not in str(caught.value)
