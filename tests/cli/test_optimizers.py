"""Training with other optimizers and learning rates, and with gradients that are not finite."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build, choices, config_validation
from ddpm_jax.cli import train
from ddpm_jax.runtime.checkpoint import CheckpointManager
from ddpm_jax.runtime.errors import ConflictError, NumericalError
from ddpm_jax.runtime.workdir import checkpoint_folder
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"


def restored(config, folder):
    """The newest checkpoint."""
    abstract = jax.eval_shape(build.build_init(config), jax.random.key(0))
    with CheckpointManager(checkpoint_folder(folder), max_to_keep=3) as checkpoints:
        fields, step = checkpoints.restore(abstract.fields())
    return fields, step


def test_a_run_resumes_with_another_rate_clipping_and_skipping(tmp_path, tiny_config, metrics):
    """The state of the checkpoint is used; muon's is the one with the most parts."""
    first = {"optimizer.name": "muon", "optimizer.clip_norm": 0.0, "train.num_steps": 2}
    assert train.run(tiny_config(first), str(tmp_path)) == 0
    changed = {
        "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": 0,
        "optimizer.clip_norm": 1.0,
        "optimizer.skip_nonfinite": 3,
        "train.num_steps": 4,
    }
    config = tiny_config(first | changed)
    assert train.run(config, str(tmp_path)) == 0
    assert [row["train/learning_rate"] for row in metrics(tmp_path)] == pytest.approx([2e-3 * 2 / 100, 1e-3 / 4])
    fields, step = restored(config, tmp_path)
    assert step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fields))
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert set(history[1]["changed"]) == changed.keys()
    with pytest.raises(ConflictError, match=r'optimizer\.name was "muon", now "adam"'):
        train.run(tiny_config({"train.num_steps": 6}), str(tmp_path))


@pytest.fixture
def poison(monkeypatch):
    """(steps) -> from now on the gradients of these steps are NaN."""
    original = build.train_step

    def make(steps):
        def poisoned(state, *args, apply_fn, **options):
            factor = jnp.where(jnp.isin(state.step, jnp.array(steps)), jnp.nan, 1.0)
            return original(state, *args, apply_fn=lambda *inputs: apply_fn(*inputs) * factor, **options)

        monkeypatch.setattr(build, "train_step", poisoned)

    return make


def test_steps_with_a_non_finite_gradient_are_skipped_and_counted(tmp_path, tiny_config, metrics, poison, capfd):
    """Steps 3 and 4 of 6, then step 7 of a resumed run: the total is in the checkpoint. Their losses are not in the means."""
    poison([2, 3, 6])
    fields = {"optimizer.skip_nonfinite": 2}
    assert train.run(tiny_config(fields), str(tmp_path)) == 0
    printed = capfd.readouterr().err
    assert "step 3 is skipped: its gradient is not finite (1 in a row, 1 in this run)" in printed
    assert "step 4 is skipped: its gradient is not finite (2 in a row, 2 in this run)" in printed
    rows = metrics(tmp_path)
    assert [row["train/skipped_steps"] for row in rows] == [0, 2, 2]
    assert ["train/loss" in row for row in rows] == [True, False, True]  # both steps of the second line were skipped
    assert all(value is not None for row in rows for value in row.values())
    config = tiny_config(fields | {"train.num_steps": 8})
    assert train.run(config, str(tmp_path)) == 0
    assert [row["train/skipped_steps"] for row in metrics(tmp_path)] == [0, 2, 2, 3]
    assert "(1 in a row, 3 in this run)" in capfd.readouterr().err
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored(config, tmp_path)[0]))


def test_more_in_a_row_stop_the_training_as_without_skipping(tmp_path, tiny_config, poison):
    poison([3, 4, 5])
    with pytest.raises(NumericalError, match=r"loss is not finite at step 6; the last good checkpoint is of step 4"):
        train.run(tiny_config({"optimizer.skip_nonfinite": 2}), str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"optimizer.name": "adamw", "optimizer.adamw.weight_decay": -1.0},
            "config.optimizer.adamw.weight_decay is -1.0, out of",
        ),
        ({"optimizer.name": "muon", "optimizer.muon.ns_steps": 0}, "config.optimizer.muon.ns_steps is 0, out of muon's range"),
        ({"optimizer.schedule": "step"}, "config.optimizer.schedule is 'step': choose one of constant, cosine, linear, inv"),
        (
            {"optimizer.schedule": "cosine", "optimizer.cosine.final_fraction": 2.0},
            "config.optimizer.cosine.final_fraction is 2.0, out of cosine's range: it must be from 0 to 1",
        ),
        ({"optimizer.skip_nonfinite": -1}, "config.optimizer.skip_nonfinite is -1: it must be 0 or more"),
    ],
)
def test_mistakes_name_the_field(tiny_config, fields, message):
    with pytest.raises(UsageError) as caught:
        config_validation.check_config(tiny_config(fields))
    assert str(caught.value).startswith(message)


def test_options_of_another_schedule_are_rejected(tiny_config):
    config = tiny_config({"optimizer.schedule": "cosine"})
    choices.check_options_used(config, ["config.optimizer.cosine.final_fraction", "config.optimizer.adam.b1"])
    with pytest.raises(UsageError, match=r"since config\.optimizer\.name is adam, config\.optimizer\.schedule is cosine"):
        choices.check_options_used(config, ["config.optimizer.cooldown.fraction"])
