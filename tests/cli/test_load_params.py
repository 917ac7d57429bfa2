"""Restoring parameters: those of the checkpoints, and EMAs of any length computed from them."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.cli import common, evaluate, sample, train
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime.errors import CheckpointError, ConflictError
from ddpm_jax.training import ema
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"

STEPS = 12
FIELDS = {
    "ema.extra_decays": (0.5,),
    "ema.power_sigma_rel": (0.1, 0.25),
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 0,
    "train.num_steps": STEPS,
    "train.checkpoint_every": 1,
    "train.keep_period": 1,
    "sampling.params": "power_0.1",
}
TRAINED = FIELDS | {"train.sample_every": STEPS}  # checkpoints of all steps are kept


@pytest.fixture(scope="module")
def kept():
    """Cache of restored parameters for all tests: (name, step) -> result of `restored`."""
    return {}


@pytest.fixture
def restored(trained, tiny_config, kept):
    """(name, step) -> all parameters as one float64 vector, and their step."""

    def restore(name, step=-1):
        if (name, step) in kept:
            return kept[name, step]
        config = tiny_config(FIELDS | {"sampling.params": name, "sampling.checkpoint_step": step})
        params, found = common.restore_params(config, trained, meshes.make_mesh())
        assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(params))
        vector = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])
        if build.params_field(config):  # computed ones are logged each time
            kept[name, step] = vector, found
        return vector, found

    return restore


def power_average(path, std):
    """By definition: the mean of the parameters after steps 1..n, weighted by the integrals of the profile."""
    gamma, edges = ema.power_gamma(std), np.arange(len(path) + 1) / len(path)
    return np.diff(edges ** (gamma + 1)) @ path


def test_each_name_gives_its_average_over_all_steps(restored):
    path = np.stack([restored("raw", step)[0] for step in range(1, STEPS + 1)])
    moved = np.linalg.norm(path[-1] - path[0])
    assert moved > 0.1
    for last in (5, STEPS):
        for std in (0.1, 0.25):
            found, step = restored(f"power_{std}", last)
            assert step == last
            assert np.linalg.norm(found - power_average(path[:last], std)) < 1e-5 * moved

    # Warm-up of the EMA: (1 + n) / (10 + n) is below the decay 0.5 until n = 8.
    for name, decay in (("ema", 0.9999), ("decay_0.5", 0.5)):
        first = None
        for step in (1, 2):
            after = restored(name, step)[0]
            if first is not None:
                share = min(decay, (1 + 1) / (10 + 1))
                assert np.linalg.norm(after - share * first - (1 - share) * path[1]) < 1e-5 * moved
            first = after
    late = [restored("decay_0.5", step)[0] for step in (STEPS - 1, STEPS)]
    assert np.linalg.norm(late[1] - 0.5 * (late[0] + path[-1])) < 1e-5 * moved
    assert np.linalg.norm(late[1] - restored("ema")[0]) > 1e-3 * moved


@pytest.mark.parametrize("std", [0.08, 0.15, 0.2])
def test_other_lengths_are_computed_from_the_saved_ones(std, restored, capsys):
    path = np.stack([restored("raw", step)[0] for step in range(1, STEPS + 1)])
    wanted = power_average(path, std)
    capsys.readouterr()
    made, step = restored(f"power_{std}")
    assert step == STEPS
    assert f"power_{std} at step {STEPS} out of {2 * STEPS} averages of {STEPS} checkpoints" in capsys.readouterr().err
    kept = min(np.linalg.norm(restored(f"power_{other}")[0] - wanted) for other in (0.1, 0.25))
    assert np.linalg.norm(made - wanted) < 0.2 * kept


def test_an_earlier_checkpoint_does_not_use_later_ones(restored):
    path = np.stack([restored("raw", step)[0] for step in range(1, 9)])
    made, step = restored("power_0.15", 8)
    assert step == 8
    kept = min(np.linalg.norm(restored(f"power_{other}", 8)[0] - power_average(path, 0.15)) for other in (0.1, 0.25))
    assert np.linalg.norm(made - power_average(path, 0.15)) < 0.3 * kept


def test_a_length_too_far_from_the_saved_ones_gives_a_warning(restored, capsys):
    restored("power_0.01", 3)
    assert "keep more (config.train.keep_period and checkpoint_every)" in capsys.readouterr().err


def test_grids_in_training_use_sampling_params(trained, tiny_config, tmp_path):
    grids = {}
    for name in ("power_0.1", "raw"):
        assert sample.run(tiny_config(FIELDS | {"sampling.params": name}), str(trained), output=str(tmp_path / name)) == 0
        grids[name] = (tmp_path / name / "grid.png").read_bytes()
    assert (trained / "samples" / f"step_{STEPS:08d}.png").read_bytes() == grids["power_0.1"] != grids["raw"]


def test_a_sweep_over_lengths(trained, tiny_config, tmp_path):
    fields = {
        "evaluation.params": ("ema", "power_0.1", "power_0.15"),
        "evaluation.metrics": ("frechet",),
        "evaluation.num_images": 8,
        "evaluation.num_heldout_images": 8,
    }
    assert evaluate.run(tiny_config(FIELDS | fields), str(trained), output=str(tmp_path)) == 0
    names = {file.name for file in tmp_path.iterdir()}
    reports = {f"step_{STEPS}{suffix}.json" for suffix in ("", "-power_0.1", "-power_0.15")}
    assert names == reports | {"table.md", "lengths.png", "images", "results"}
    found = {}
    for file in reports:
        report = json.loads((tmp_path / file).read_text())
        (row,) = report["generated"]
        assert report["weights"] == row["weights"] == row["sampling"]["params"]
        found[report["weights"]] = (row["weights_sha256"], row["frechet"])
    assert set(found) == {"ema", "power_0.1", "power_0.15"}
    assert len({digest for digest, _ in found.values()}) == len({distance for _, distance in found.values()}) == 3
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} |" in table for name in found)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampling.params": "eam"}, r"params is 'eam': choose one of ema, raw, decay_0\.5, power_0\.1, power_0\.25, or"),
        ({"sampling.params": "power_0.5"}, r"'power_0\.5': choose one of"),
        ({"sampling.params": "0.1"}, r"'0\.1': choose one of"),
        ({"sampling.params": "decay_0.6"}, r"'decay_0\.6': choose one of"),
        (
            {"sampling.params": "power_0.07", "ema.power_sigma_rel": ()},
            r"this run has none: choose one of ema, raw, decay_0\.5, or train a new run",
        ),
        ({"ema.power_sigma_rel": (0.4,)}, r"config\.ema\.power_sigma_rel: the relative standard deviation 0\.4"),
        ({"ema.extra_decays": (1.0,)}, r"config\.ema\.extra_decays: the decay 1 of an average"),
        ({"evaluation.params": ("ema", "best")}, r"'best': choose one of"),
    ],
)
def test_unknown_names_are_a_one_line_error(fields, words, trained, tiny_config):
    with pytest.raises(UsageError, match=words) as caught:
        evaluate.run(tiny_config(FIELDS | fields), str(trained))
    assert "\n" not in str(caught.value)


def test_training_cannot_sample_with_parameters_computed_after_it(tmp_path, tiny_config):
    with pytest.raises(
        UsageError, match=r"power_0\.2 can only be computed after training: train with one of ema, raw, decay_0\.5"
    ):
        train.run(tiny_config(FIELDS | {"sampling.params": "power_0.2"}), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_emas_of_a_run_are_immutable(trained, tiny_config):
    with pytest.raises(ConflictError, match=r"ema\.power_sigma_rel was \[0\.1, 0\.25\], now \[0\.1\]"):
        train.run(tiny_config(FIELDS | {"ema.power_sigma_rel": (0.1,)}), str(trained))
    config = tiny_config(FIELDS | {"sampling.params": "power_0.2", "sampling.checkpoint_step": 99})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 99 .* could be made of"):
        common.restore_params(config, trained, meshes.make_mesh())
