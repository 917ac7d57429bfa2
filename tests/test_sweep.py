"""docs/training.md: its sweep with Optuna runs, with the real package."""

import importlib.util
import pathlib
import re
import sys

import pytest

from ddpm_jax.configs import digits

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = {
    "model.name": "tests.small_network:Small",
    "train.batch_size": 8,
    "train.eval_num_heldout": 8,
}


def sweep():
    (code,) = re.findall(r"```python\n(import json.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    return code


def test_the_sweep_is_short():
    assert len([line for line in sweep().splitlines() if line]) <= 25


def test_the_sweep_runs_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("optuna") is None:  # requirements-test.txt has it
        with pytest.raises(ModuleNotFoundError, match="optuna"):
            exec(compile(sweep(), "docs/training.md", "exec"), {})
        return
    get_config = digits.get_config

    def tiny():
        config = get_config()
        config.update_from_flattened_dict(TINY)
        return config

    monkeypatch.setattr(digits, "get_config", tiny)
    code = sweep().replace("1000, 500", "2, 2").replace("n_trials=20", "n_trials=1")
    assert code.count("= 2, 2") == code.count("n_trials=1") == 1
    for _ in range(2):
        space = {"__name__": "sweep"}
        exec(compile(code, "docs/training.md", "exec"), space)
    assert [trial.number for trial in space["study"].trials] == [0, 1]
    assert space["study"].best_value == min(trial.value for trial in space["study"].trials) > 0
    assert "learning_rate" in capsys.readouterr().out
    assert (tmp_path / "runs" / "sweep" / "trial_1" / "config.json").exists()
    assert "optuna" in sys.modules
