"""A workdir and outputs in a bucket: the same results as on this machine."""

import json
import os
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.cli import compare, compute_stats, evaluate, sample, train, visualize
from ddpm_jax.evaluation import sample_files
from ddpm_jax.runtime import npz, run_lock, storage
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import ConflictError, FileAccessError
from ddpm_jax.runtime.trackers import jsonl
from tests import preloaded

TRAINED = {"train.trackers": ("tensorboard",), "train.sample_every": 4}


@pytest.fixture
def remote(emulator, tiny_config):
    """Workdir in the bucket with the same run as `trained`, stopped and resumed once."""
    folder = storage.path("gs://bucket/runs/digits")
    if not folder.exists():
        assert train.run(tiny_config(TRAINED | {"train.num_steps": 4}), str(folder)) == 0
        assert train.run(tiny_config(TRAINED), str(folder), profile="4:5") == 0
    return folder


def state(folder, config, step=None):
    """Step and leaves of the newest checkpoint."""
    abstract = jax.eval_shape(build.build_init(config), jax.random.key(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), abstract)
    with CheckpointManager(folder / "checkpoints", max_to_keep=5, read_only=True) as checkpoints:
        fields, step = checkpoints.restore(abstract.fields(), step)
    leaves, _ = jax.tree_util.tree_flatten_with_path(fields)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal_states(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, leaf in one[1].items():
        np.testing.assert_array_equal(leaf, other[1][name], err_msg=name)


def test_a_resumed_run_in_a_bucket_equals_a_local_one(trained, remote, tiny_config):
    assert_equal_states(state(remote, tiny_config(TRAINED)), state(trained, tiny_config(TRAINED)))
    rows, expected = jsonl.read_metrics(remote), jsonl.read_metrics(trained)
    assert [(row["step"], row["train/loss"]) for row in rows] == [(row["step"], row["train/loss"]) for row in expected]
    history = [json.loads(line) for line in (remote / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in history] == [0, 4]
    names = {file.name for file in trained.iterdir()}
    assert {file.name for file in remote.iterdir()} == names - {run_lock.FILE} | {run_lock.OBJECTS, "profile"}
    assert [file for file in (remote / "profile").rglob("*") if file.name.endswith(".xplane.pb")]
    steps = [sorted(file.name for file in (folder / "checkpoints").iterdir()) for folder in (remote, trained)]
    assert steps[0] == steps[1]
    picture = "samples/step_00000004.png"
    assert (remote / picture).read_bytes() == (trained / picture).read_bytes()
    events = list((remote / "tensorboard").iterdir())
    assert len(events) == 2
    assert all(file.stat().st_size > 1000 for file in events)


@pytest.mark.slow
def test_a_local_run_that_is_copied_into_a_bucket_resumes_there(trained, emulator, tiny_config, tmp_path):
    local, copied = tmp_path / "local", storage.path("gs://bucket/runs/copied")
    shutil.copytree(trained, local)
    storage.upload_folder(local, copied)
    for folder in (local, copied):
        assert train.run(tiny_config(TRAINED | {"train.num_steps": 8}), str(folder)) == 0
    assert [json.loads(line)["step"] for line in (copied / "history.jsonl").read_text().splitlines()] == [0, 6]
    assert_equal_states(state(copied, tiny_config(TRAINED)), state(local, tiny_config(TRAINED)))


def test_generated_images_are_the_same(trained, remote, tiny_config, tmp_path):
    for output in ("", "gs://bucket/outputs/images", str(tmp_path / "images")):
        assert sample.run(tiny_config(TRAINED | {"sampling.format": "both"}), str(remote), output=output) == 0
    assert sample.run(tiny_config(TRAINED), str(trained), output=str(tmp_path / "expected")) == 0
    (default,) = (remote / "samples").glob("*/")
    expected = np.concatenate(list(npz.rows(tmp_path / "expected" / "images.npz", "arr_0", 8)))
    for folder in (default, storage.path("gs://bucket/outputs/images"), tmp_path / "images"):
        assert np.array_equal(np.concatenate(list(npz.rows(folder / "images.npz", "arr_0", 8))), expected)
        assert {file.name for file in folder.iterdir()} == {"images.npz", "grid.png", "manifest.json", "png"}
        assert len(list((folder / "png").iterdir())) == 5


def test_an_interrupted_generation_continues(remote, tiny_config, monkeypatch):
    fields = TRAINED | {"sampling.num_images": 12, "sampling.batch_size": 8, "sampling.seed": 3}
    target = storage.path("gs://bucket/outputs/interrupted")
    original, calls = sample_files.SampleFolder.write, []

    def write(self, first, batch):
        calls.append(first)
        if calls == [0, 8]:
            raise KeyboardInterrupt
        original(self, first, batch)

    monkeypatch.setattr(sample_files.SampleFolder, "write", write)
    with pytest.raises(KeyboardInterrupt):
        sample.run(tiny_config(fields), str(remote), output=str(target))
    assert [file.name for file in target.glob("images_*.npz")] == ["images_00000000.npz"]
    assert sample.run(tiny_config(fields), str(remote), output=str(target)) == 0
    assert calls == [0, 8, 8]
    assert npz.shape_of(target / "images.npz", "arr_0") == (12, 8, 8, 1)


def test_statistics_and_evaluation(trained, remote, tiny_config, tmp_path):
    file = "gs://bucket/outputs/statistics.npz"
    fields = TRAINED | {"evaluation.num_images": 8, "evaluation.batch_size": 16, "evaluation.num_heldout_images": 4}
    fields |= {"evaluation.samplers": ("ddim",), "evaluation.num_steps": (4,), "evaluation.metrics": ("frechet",)}
    assert compute_stats.run(tiny_config(fields), str(remote), output=file) == 0
    rows = []
    for folder in (trained, remote):
        config = tiny_config(fields | {"evaluation.reference": file})
        assert evaluate.run(config, str(folder)) == 0
        report = json.loads((folder / "eval" / "step_6.json").read_text())
        rows.append([row["frechet"] for row in report["generated"]])
        assert (folder / "eval" / "table.md").read_text()
    assert rows[0] == rows[1]
    assert rows[0]


@pytest.mark.slow
def test_figures(remote, tiny_config):
    sheets = storage.path("gs://bucket/outputs/sheets")
    assert visualize.run(tiny_config(TRAINED | {"visualize.num_images": 2}), str(remote), output=str(sheets)) == 0
    assert {"chain.png", "forward.png", "reverse.png"} <= {file.name for file in sheets.iterdir()}


def test_a_comparison(trained, remote, capsys):
    assert compare.run([str(remote), str(trained)], "gs://bucket/outputs/comparison") == 0
    table = (storage.path("gs://bucket/outputs/comparison") / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "runs/digits" in table


def test_the_library_opens_a_run_in_a_bucket(trained, remote):
    images = [ddpm_jax.load(str(folder)).sample(3, num_steps=4).images for folder in (trained, remote)]
    assert np.array_equal(*images)


def test_a_second_training_is_refused(remote, tiny_config):
    before = (remote / "history.jsonl").read_bytes()
    with run_lock.lock(remote, beat_s=0.2), pytest.raises(ConflictError, match="gs://bucket/runs/digits is in use: process"):
        train.run(tiny_config(TRAINED | {"train.num_steps": 8}), str(remote))
    assert (remote / "history.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_resume_in_a_bucket_may_change_the_mesh(trained, emulator, tiny_config, log_lines):
    """Sharded over four devices, replicated, sharded over all: the losses of the local run, which is replicated."""
    folder = storage.path("gs://bucket/runs/meshes")
    for steps, size in ((2, 4), (4, 1), (6, 8)):
        assert train.run(tiny_config(TRAINED | {"train.num_steps": steps, "mesh.fsdp": size}), str(folder)) == 0
    assert [line.partition("mesh.fsdp ")[2][:6] for line in log_lines if line.startswith("resuming at")] == ["4 -> 1", "1 -> 8"]
    found, expected = ([row["train/loss"] for row in jsonl.read_metrics(each)] for each in (folder, trained))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    got, want = state(folder, tiny_config(TRAINED)), state(trained, tiny_config(TRAINED))
    assert got[0] == want[0]
    for name, leaf in want[1].items():
        np.testing.assert_allclose(got[1][name], leaf, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_read_only_bucket(remote, emulator, tiny_config, tmp_path):
    refusals = ("POST", "PUT", "DELETE", "PATCH")
    emulator.fault = lambda method, path: 403 if method in refusals else None
    try:
        assert sample.run(tiny_config(TRAINED), str(remote), output=str(tmp_path / "images")) == 0
        with pytest.raises(FileAccessError, match="cannot make the workdir gs://bucket/runs/digits: no permission"):
            train.run(tiny_config(TRAINED | {"train.num_steps": 8}), str(remote))
        with pytest.raises(FileAccessError, match=r"cannot write to gs://.*: no permission .*; choose another `output`"):
            sample.run(tiny_config(TRAINED | {"sampling.seed": 9}), str(remote))
    finally:
        emulator.fault = lambda method, path: None


@pytest.mark.slow
def test_a_run_copied_from_the_bucket_resumes_on_this_machine(trained, remote, tiny_config, tmp_path):
    shutil.copytree(trained, tmp_path / "local")
    for file in remote.rglob("*"):
        copy = tmp_path / "copied" / file.relative_to(remote).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    config = tiny_config(TRAINED | {"train.num_steps": 8})
    for name in ("local", "copied"):
        assert train.run(config, str(tmp_path / name)) == 0
    assert_equal_states(state(tmp_path / "copied", config), state(tmp_path / "local", config))


KILLED = {"train.num_steps": 40, "train.log_every": 1, "train.checkpoint_every": 5, "train.max_to_keep": 2}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_repeatedly_equals_an_uninterrupted_local_one(
    bucket, tmp_path, command, tiny_config, emulator, compiled_fast
):
    folder, whole = storage.path(bucket), tmp_path / "whole"
    environment = os.environ | {"XLA_FLAGS": compiled_fast}
    log = tmp_path / "log"

    def start(place):
        return preloaded.Process(command(place, fields=KILLED), stdout=log, stderr=log, env=environment)

    def kill_when(condition):
        """Starts the run and kills it as soon as the condition on the names of the objects holds."""
        process, deadline = start(folder), time.monotonic() + 120
        while not condition({path.split("&name=")[-1].split("&")[0] for _, path in emulator.requests[seen:]}):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL

    def writes(step, part):
        return lambda names: any(f"checkpoints/{step}/{part}" in name for name in names)

    assert start(whole).wait(200) == 0
    conditions = (
        lambda names: any("training_locks" in name for name in names),  # before anything was computed
        writes(5, "params"),  # the first checkpoint is being written
        writes(10, "ema_params"),
        writes(15, "opt_state"),
        writes(20, "commit_success"),
        writes(25, ""),
    )
    for condition in conditions:
        seen = len(emulator.requests)
        kill_when(condition)
    assert start(folder).wait(200) == 0
    assert_equal_states(state(folder, tiny_config(KILLED)), state(whole, tiny_config(KILLED)))
    rows, expected = jsonl.read_metrics(folder), jsonl.read_metrics(whole)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in expected]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == sorted(entry["step"] for entry in history)
    assert [entry["changed"] for entry in history] == [{}] * len(history)
    assert len(history) >= 4
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == ["35", "40"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_two_jobs_in_a_workdir_one_trains(bucket, tmp_path, command, emulator):
    """Two jobs of two processes each, started at once: all processes of one end with one line and change nothing."""
    folder, environment = storage.path(bucket), os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=2")}
    environment |= {"JAX_PLATFORMS": "cpu"}
    jobs, logs = [], []
    for number in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        line = command(folder, fields={"train.num_steps": 40, "train.log_every": 1})
        logs.append([tmp_path / f"{number}.{index}.log" for index in range(2)])
        jobs.append(
            [
                preloaded.Process(
                    [*line, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"],
                    stderr=logs[-1][index],
                    env=environment,
                )
                for index in range(2)
            ]
        )
    try:
        codes = [[process.wait(timeout=280) for process in job] for job in jobs]
    finally:
        for process in (process for job in jobs for process in job):
            process.kill()
    printed = [[log.read_text() for log in job] for job in logs]
    assert sorted(codes) == [[0, 0], [1, 1]], printed
    refused = printed[codes.index([1, 1])]
    assert all(text.count("error: ") == 1 for text in refused), refused
    assert f"{bucket} is in use: process" in refused[0]
    rows = jsonl.read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert len((folder / "history.jsonl").read_text().splitlines()) == 1
