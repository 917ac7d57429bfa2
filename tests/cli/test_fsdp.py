"""Runs whose state is sharded over devices, from the command line's side: resume on any mesh, sample, start others."""

import json
import shutil

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.cli import evaluate, sample, train
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.mesh import make_mesh, training_mesh
from ddpm_jax.training import fsdp
from ddpm_jax.training.state import TrainState

STEPS, SAVED = 50, 25
FIELDS = {
    "model.unet.dropout": 0.1,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 0,
    "train.num_steps": STEPS,
    "train.checkpoint_every": SAVED,
    "train.log_every": 1,
}
SPREAD = FIELDS | {"mesh.fsdp": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def spread(runs, tiny_config):
    """Workdir of a run on the mesh (2, 4), with an image grid and held-out losses at the end."""
    if not (runs / "spread").exists():
        outputs = {"train.sample_every": STEPS, "train.eval_every": STEPS, "train.eval_num_samples": 0}
        outputs["train.eval_num_heldout"] = 8
        assert train.run(tiny_config(SPREAD | outputs), str(runs / "spread")) == 0
    return runs / "spread"


@pytest.fixture
def replicated(runs, tiny_config):
    """Workdir of the same run without fsdp."""
    if not (runs / "replicated").exists():
        assert train.run(tiny_config(FIELDS), str(runs / "replicated")) == 0
    return runs / "replicated"


@pytest.fixture
def losses(metrics):
    return lambda workdir: [row["train/loss"] for row in metrics(workdir) if "train/loss" in row]


@pytest.fixture
def final_state(tiny_config):
    """workdir -> state of the newest checkpoint on the mesh (2, 4)."""

    def read(workdir):
        mesh = training_mesh(make_mesh(), fsdp=4)
        abstract = fsdp.abstract_state(mesh, jax.eval_shape(build.build_init(tiny_config(FIELDS)), jax.random.key(0)))
        with CheckpointManager(workdir / "checkpoints", max_to_keep=1, read_only=True) as checkpoints:
            return TrainState.from_fields(checkpoints.restore(abstract.fields())[0])

    return read


def interrupted(workdir, copy):
    """A copy of a run as if it had been killed before its last checkpoint."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    return copy


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_has_the_losses_of_a_replicated_one(spread, replicated, losses, metrics):
    assert len(losses(spread)) == STEPS
    np.testing.assert_allclose(losses(spread), losses(replicated), rtol=1e-6)
    (heldout,) = [row for row in metrics(spread) if "eval/loss_ema" in row]
    assert 0 < heldout["eval/loss_ema"] < 2
    assert (spread / "samples" / f"step_{STEPS:08d}.png").exists()


def test_a_resume_on_the_same_mesh_is_bit_identical(spread, runs, tiny_config, final_state, log_lines):
    resumed = interrupted(spread, runs / "resumed")
    assert train.run(tiny_config(SPREAD), str(resumed)) == 0
    assert_same(final_state(resumed), final_state(spread))
    assert any("8 cpu device(s) as data=2 x fsdp=4" in line for line in log_lines)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "size"), [(-1, 1), (1, -1)])
def test_a_resume_may_change_the_mesh(spread, runs, tiny_config, losses, log_lines, data, size):
    resumed = interrupted(spread, runs / f"resumed_{size}")
    assert train.run(tiny_config(FIELDS | {"mesh.data": data, "mesh.fsdp": size}), str(resumed)) == 0
    (line,) = [line for line in log_lines if line.startswith("resuming at")]
    assert f"mesh.fsdp 4 -> {size}" in line
    np.testing.assert_allclose(losses(resumed), losses(spread), rtol=1e-6)


@pytest.mark.slow
def test_a_replicated_run_is_resumed_with_fsdp(replicated, runs, tiny_config, losses, final_state):
    resumed = interrupted(replicated, runs / "resumed_with")
    assert train.run(tiny_config(SPREAD), str(resumed)) == 0
    np.testing.assert_allclose(losses(resumed), losses(replicated), rtol=1e-6)
    assert int(final_state(resumed).step) == STEPS


def test_samples_are_those_of_a_replicated_run(spread, replicated, runs, tiny_config):
    """The parameters are replicated for sampling; one level of difference, since the parameters differ by rounding."""
    found = []
    for workdir in (spread, replicated):
        assert sample.run(tiny_config(SPREAD), str(workdir), output=str(runs / f"{workdir.name}_samples")) == 0
        with np.load(runs / f"{workdir.name}_samples" / "images.npz") as images:
            found.append(images["arr_0"].astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1
    assert found[0].std() > 10


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(spread, runs, tiny_config, final_state):
    """With a rate near 0 the parameters stay those of the source."""
    fields = SPREAD | {"train.init_from": str(spread), "train.num_steps": 1, "optimizer.learning_rate": 1e-30}
    assert train.run(tiny_config(fields), str(runs / "tuned")) == 0
    assert_same(final_state(runs / "tuned").params, final_state(spread).ema_params)


@pytest.mark.slow
def test_evaluations_and_the_best_step_are_those_of_a_replicated_run(runs, tiny_config, metrics):
    """keep_best keeps the step of the lowest Fréchet distance, though newer ones are saved; the mode finds it on a mesh."""
    fields = {"train.num_steps": 6, "train.checkpoint_every": 2, "train.max_to_keep": 1, "optimizer.learning_rate": 0.1}
    fields |= {"train.eval_every": 2, "train.eval_num_samples": 8, "train.eval_num_heldout": 8, "evaluation.batch_size": 8}
    fields |= {"train.keep_best": "eval/frechet", "evaluation.metrics": ("frechet",), "evaluation.samplers": ("ddim",)}
    scores, reports, kept = [], [], []
    for name, mesh in (("one", {}), ("spread", {"mesh.fsdp": 4})):
        folder = runs / f"best_{name}"
        config = tiny_config(FIELDS | fields | mesh)
        assert train.run(config, str(folder)) == 0
        scores.append([(row["eval/loss_raw"], row["eval/frechet"]) for row in metrics(folder) if "eval/frechet" in row])
        kept.append(sorted(int(file.name) for file in (folder / "checkpoints").iterdir()))
        config = tiny_config(FIELDS | fields | mesh | {"evaluation.checkpoint_steps": ("best",), "evaluation.num_images": 8})
        assert evaluate.run(config, str(folder), output=str(runs / f"report_{name}")) == 0
        (report,) = (runs / f"report_{name}").glob("step_*.json")
        reports.append((report.name, json.loads(report.read_text())["generated"][0]["frechet"]))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3)
    distances = [distance for _, distance in scores[0]]
    best = 2 * (1 + distances.index(min(distances)))
    assert best != 6
    assert kept == [[best, 6]] * 2
    assert reports[0][0] == reports[1][0] == f"step_{best}.json"
    np.testing.assert_allclose(reports[0][1], reports[1][1], rtol=1e-3)


def test_a_mesh_that_does_not_fit_is_a_usage_error(runs, tiny_config):
    with pytest.raises(
        Exception, match="`fsdp` is 3, which does not divide the number of devices, 8: use 1 or 2 or 4 or 8"
    ) as error:
        train.run(tiny_config({"mesh.fsdp": 3}), str(runs / "wrong"))
    assert not (runs / "wrong").exists()
    assert error.value.exit_code == 2
