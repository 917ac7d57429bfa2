"""Two processes with four devices each give the result of one process with eight.

Real processes of main.py, connected via 127.0.0.1, with dropout, flips, labels and accumulation. The single process is
this one, on eight devices.
"""

import json
import os
import signal
import socket
import time
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import build
from ddpm_jax.cli import evaluate, sample, train
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.checkpoint import CheckpointManager
from tests import preloaded

STEPS = 6
FIELDS = {
    "data.name": "image_folder",
    "data.num_classes": 2,
    "data.random_flip": True,
    "model.unet.dropout": 0.1,
    "model.class_conditional": True,
    "optimizer.accumulation_steps": 2,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 0,  # so that a step too many, or with other noise, moves parameters by 1e-3
    "train.num_steps": STEPS,
    "train.batch_size": 16,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
}
PICTURE = {"train.sample_every": STEPS, "train.eval_every": STEPS, "train.eval_num_samples": 11}
PICTURE["evaluation.metrics"] = ("frechet", "precision_recall")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Job:
    """A command run by two processes with four devices each."""

    def __init__(self, line, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
        assert "device_count=4" in flags
        self.logs, self.processes = [], []
        for index in range(2):
            self.logs.append(folder.with_name(f"{folder.name}.{len(list(folder.parent.glob('*.log')))}.log"))
            joined = [*line, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"]
            process = preloaded.Process(joined, stderr=self.logs[index], env=os.environ | {"XLA_FLAGS": flags})
            self.processes.append(process)

    def wait(self):
        """Wait for the exit codes. Remaining processes are killed, so that a failing test ends."""
        try:
            return [process.wait(timeout=240) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def printed(self):
        return [log.read_text() for log in self.logs]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Folder of all runs and of their images: noise in two classes, which loads faster than scikit-learn."""
    folder = tmp_path_factory.mktemp("processes")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 6)):
        for label in "ab":
            (folder / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                noise = Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8))
                noise.save(folder / "images" / split / label / f"{number}.png")
    FIELDS["data.data_dir"] = str(folder / "images")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(shared, command):
    """Workdir of a run by two processes, and the log of each."""
    job = Job(command(shared / "two", fields=FIELDS | PICTURE), shared / "two")
    codes = job.wait()
    printed = job.printed()
    assert codes == [0, 0], printed
    return shared / "two", printed


@pytest.fixture
def one_process(shared, tiny_config):
    """Workdir of the same run by this process."""
    folder = shared / "one"
    if not (folder / "config.json").exists():
        assert train.run(tiny_config(FIELDS | PICTURE), str(folder)) == 0
    return folder


@pytest.fixture
def final_state(tiny_config):
    """workdir -> step and leaves of the final state."""

    def read(workdir):
        abstract = jax.eval_shape(build.build_init(tiny_config(FIELDS)), jax.random.key(0))
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)
        with (
            CheckpointManager(workdir / "checkpoints", max_to_keep=1, read_only=True) as checkpoints,
            warnings.catch_warnings(),
        ):
            # Orbax warns that the state is read on other devices than it was saved from, which is intended.
            warnings.filterwarnings("ignore", "Sharding info not provided|Couldn't find sharding info")
            fields, step = checkpoints.restore(abstract.fields())
        leaves, _ = jax.tree_util.tree_flatten_with_path(fields)
        return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    return read


def losses(workdir, steps=STEPS):
    rows = [row for row in lines(workdir) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))  # each once: one process writes
    return [row["train/loss"] for row in rows]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_state_of_one(uninterrupted, one_process, final_state):
    two, _ = uninterrupted
    # Not to the bit: eight gradients are summed in another order by Gloo, across processes, than within one. Where a
    # gradient is zero up to rounding, Adam makes a step of that rounding.
    np.testing.assert_allclose(losses(two), losses(one_process), rtol=1e-5)
    (scores,), (expected_scores,) = ([row for row in lines(folder) if "train/loss" not in row] for folder in (two, one_process))
    for name in ("step", "eval/count", "eval/frechet", "eval/precision", "eval/recall"):
        assert scores[name] == pytest.approx(expected_scores[name], rel=1e-4), name
    step, leaves = final_state(two)
    expected_step, expected = final_state(one_process)
    assert step == expected_step == STEPS
    assert leaves.keys() == expected.keys()
    assert sum(leaf.size for leaf in leaves.values()) > 3 * 5_000  # parameters, EMA and both moments are in it
    for name, leaf in expected.items():
        np.testing.assert_allclose(leaves[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
    picture = f"samples/step_{STEPS:08d}.png"
    assert (two / picture).read_bytes() == (one_process / picture).read_bytes()


def test_one_process_writes_and_logs(uninterrupted, one_process):
    two, (first, second) = uninterrupted

    def tree(workdir):
        return {file.relative_to(workdir) for file in workdir.rglob("*") if file.suffix in (".json", ".jsonl", ".png")}

    assert tree(two) == tree(one_process)
    assert os.listdir(two / "checkpoints") == os.listdir(one_process / "checkpoints")
    assert f"step {STEPS} / {STEPS}" in first
    assert "8 cpu device(s)" in first
    assert second == ""


def test_two_processes_train_and_resume_in_a_bucket(uninterrupted, shared, bucket, command, final_state):
    """The workdir and the images are in the bucket; each process reads its own share of the images."""
    folder = storage.path(bucket) / "run"
    storage.upload_folder(shared / "images", storage.path(bucket) / "images")
    fields = FIELDS | PICTURE | {"data.data_dir": f"{bucket}/images"}
    for steps in (3, STEPS):
        job = Job(command(folder, fields=fields | {"train.num_steps": steps}), shared / "bucket")
        codes = job.wait()
        assert codes == [0, 0], job.printed()
    two, _ = uninterrupted
    assert losses(folder) == losses(two)
    step, leaves = final_state(folder)
    expected_step, expected = final_state(two)
    assert step == expected_step == STEPS
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaves[name], leaf, err_msg=name)
    picture = f"samples/step_{STEPS:08d}.png"
    assert (folder / picture).read_bytes() == (two / picture).read_bytes()


def test_sigterm_to_one_stops_both_and_the_command_resumes(shared, command, final_state):
    """They agree on a step within a second or two; the resumed run equals one that was not stopped."""
    stopped, whole = shared / "stopped", shared / "whole"
    job = Job(command(stopped, fields=FIELDS | {"train.num_steps": 10_000}), stopped)
    metrics = stopped / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert [process.poll() for process in job.processes] == [None, None], job.printed()
        time.sleep(0.001)
    job.processes[1].send_signal(signal.SIGTERM)  # not the one that writes
    codes = job.wait()
    first, second = job.printed()
    assert codes == [128 + signal.SIGTERM] * 2, first + second
    assert second == ""
    saved = max(int(name) for name in os.listdir(stopped / "checkpoints") if name.isdigit())
    assert 2 <= saved < 200
    assert f"stopped by SIGTERM: step {saved} is saved" in first

    for folder in (stopped, whole):
        job = Job(command(folder, fields=FIELDS | {"train.num_steps": saved + 2}), folder)
        assert job.wait() == [0, 0], job.printed()
        assert (f"resuming at step {saved}" in job.printed()[0]) == (folder == stopped)
    (step, leaves), (_, expected) = final_state(stopped), final_state(whole)
    assert step == saved + 2
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaves[name], leaf, err_msg=name)  # to the bit, as with one process
    assert losses(stopped, step) == losses(whole, step)


def test_a_killed_run_with_a_state_sharded_over_both_resumes(one_process, shared, command, final_state):
    """Each process has half of the state. Compared bit by bit with a run that was not killed, and with one process."""
    fields, killed = FIELDS | {"mesh.fsdp": 8, "train.num_steps": 2 * STEPS}, shared / "killed"
    whole = Job(command(shared / "sharded", fields=fields), shared / "sharded")
    assert whole.wait() == [0, 0], whole.printed()
    assert "8 cpu device(s) as data=1 x fsdp=8" in whole.printed()[0]
    found, expected = (
        [row["train/loss"] for row in lines(run) if "train/loss" in row] for run in (shared / "sharded", one_process)
    )
    np.testing.assert_allclose(found[:STEPS], expected, rtol=1e-5)

    job = Job(command(killed, fields=fields), killed)
    while not (killed / "checkpoints" / "3").exists():
        assert [process.poll() for process in job.processes] == [None, None], job.printed()
        time.sleep(0.001)
    for process in job.processes:
        process.kill()
    assert job.wait() == [-signal.SIGKILL] * 2
    assert not (killed / "checkpoints" / str(2 * STEPS)).exists()
    job = Job(command(killed, fields=fields), killed)
    assert job.wait() == [0, 0], job.printed()
    assert "resuming at step" in job.printed()[0]
    (step, leaves), (_, expected) = final_state(killed), final_state(shared / "sharded")  # on one device
    assert step == 2 * STEPS
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaves[name], leaf, err_msg=name)


def test_two_processes_start_from_the_weights_of_a_run(one_process, shared, command, final_state):
    """Each reads the checkpoint onto its own devices; with a rate near 0 the parameters stay those of the source."""
    fields = FIELDS | {"train.init_from": str(one_process), "train.num_steps": 1, "optimizer.learning_rate": 1e-30}
    job = Job(command(shared / "tuned", fields=fields), shared / "tuned")
    assert job.wait() == [0, 0], job.printed()
    first, second = job.printed()
    assert f"starting from {one_process}, step {STEPS}, ema" in first
    assert second == ""
    (_, found), (_, source) = final_state(shared / "tuned"), final_state(one_process)
    names = [name for name in source if name.startswith("['ema_params']")]
    assert len(names) > 10
    for name in names:
        for field in ("params", "ema_params"):
            leaf = found[name.replace("ema_params", field)]
            np.testing.assert_allclose(leaf, source[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_two_processes_generate_the_images_of_one(one_process, shared, command, tiny_config):
    fields = FIELDS | {"sampling.num_images": 11, "sampling.batch_size": 8, "sampling.num_intermediates": 2}
    job = Job(command(one_process, "--mode=sample", f"--output={shared / 'by_two'}", fields=fields), shared / "sample")
    assert sample.run(tiny_config(fields), str(one_process), output=str(shared / "by_one")) == 0
    assert job.wait() == [0, 0], job.printed()
    assert job.printed()[1] == ""
    with np.load(shared / "by_two" / "images.npz") as two, np.load(shared / "by_one" / "images.npz") as one:
        assert set(two) == set(one) == {"arr_0", "labels", "label_names", "x_t", "pred_xstart"}
        for name in one:
            np.testing.assert_array_equal(two[name], one[name])
    assert (shared / "by_two" / "grid.png").read_bytes() == (shared / "by_one" / "grid.png").read_bytes()


def test_two_processes_give_the_metrics_of_one(one_process, shared, command, tiny_config):
    """The same images; distances and the bound to 1e-6."""
    fields = FIELDS | {"sampling.batch_size": 8, "evaluation.num_images": 11, "evaluation.batch_size": 16}
    fields |= {"evaluation.heldout_split": "test", "evaluation.num_heldout_images": 9, "evaluation.vlb_num_timesteps": 4}
    fields["evaluation.metrics"] = ("frechet", "kid", "precision_recall", "bits_per_dim")
    job = Job(command(one_process, "--mode=evaluate", f"--output={shared / 'two_eval'}", fields=fields), shared / "evaluate")
    assert evaluate.run(tiny_config(fields), str(one_process), output=str(shared / "one_eval")) == 0
    assert job.wait() == [0, 0], job.printed()
    assert job.printed()[1] == ""
    two, one = (json.loads((shared / name / f"step_{STEPS}.json").read_text()) for name in ("two_eval", "one_eval"))
    assert len(one["real"]) == 1
    for found, expected in zip([*two["generated"], *two["real"]], [*one["generated"], *one["real"]], strict=True):
        found, expected = ({n: v for n, v in row.items() if n not in ("provenance", "config")} for row in (found, expected))
        assert {"frechet", "kid", "precision", "recall"} < expected.keys()
        numbers = {name for name, value in expected.items() if isinstance(value, (int, float))}
        close = {name: pytest.approx(expected[name], rel=1e-6, abs=1e-12) for name in numbers}
        assert found == expected | close
    for name in ("images", "bits_per_dim", "rate", "distortion_bits", "standard_error", "prior"):
        assert two["bits_per_dim"][0][name] == pytest.approx(one["bits_per_dim"][0][name], rel=1e-6), name
    chunks = sorted(file.relative_to(shared / "one_eval") for file in (shared / "one_eval" / "images").rglob("*.npz"))
    assert len(chunks) == 2
    for chunk in chunks:
        with np.load(shared / "two_eval" / chunk) as theirs, np.load(shared / "one_eval" / chunk) as ours:
            assert set(theirs) == {"images", "labels"}
            for name in ours:
                np.testing.assert_array_equal(theirs[name], ours[name])


def test_a_config_error_ends_both_with_one_line(shared, command):
    began = time.monotonic()
    job = Job(command(shared / "wrong", fields=FIELDS | {"train.batch_size": 12}), shared / "wrong")
    assert job.wait() == [2, 2]
    assert time.monotonic() - began < 60
    for printed in job.printed():
        nearest = "does not divide evenly over 8 devices x 2 accumulation steps: use 16"
        assert printed == f"error: config.train.batch_size is 12, which {nearest}\n"
    assert not (shared / "wrong").exists()
