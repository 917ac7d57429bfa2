"""The benchmarks that compare trained networks: which runs are trained, with which fields, and what is read from them."""

import argparse
import json
import re
import subprocess
import sys

import pytest

from ddpm_jax.configs import cifar10, digits


@pytest.fixture
def benchmarks(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import bfloat16
    import optimizers
    import training_runs

    yield {"bfloat16": bfloat16, "optimizers": optimizers, "training_runs": training_runs}
    for name in ("bfloat16", "optimizers", "training_runs"):
        sys.modules.pop(name, None)


def section_of(config, name):
    for part in filter(None, name.split(".")):
        config = config[part]
    return config


def write_report(workdir, row):
    folder = workdir / "eval" / "results"
    folder.mkdir(parents=True)
    (folder / "step_8.json").write_text(json.dumps({"row": row}))


@pytest.mark.parametrize("jobs", [1, 2])
def test_only_runs_without_a_report_are_trained(benchmarks, tmp_path, monkeypatch, jobs):
    runs, commands = benchmarks["training_runs"], []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command[2:]))
    write_report(tmp_path / "done", {"frechet": 1.0})
    runs.run_all(tmp_path, [runs.Run(name, "--a --b", "--c") for name in ("done", "new")], jobs)
    workdir = f"--workdir={tmp_path / 'new'}"
    assert commands == [
        [workdir, "--a", "--b"],
        [workdir, "--mode=evaluate", "--c", f"--output={tmp_path / 'new' / 'eval'}"],
    ]


def test_the_mean_is_over_the_last_steps(benchmarks, tmp_path):
    rows = [{"step": step, "train/loss": float(step)} for step in (20, 40, 60, 80, 100)] + [{"step": 100, "eval/x": 1}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert benchmarks["training_runs"].last_mean(tmp_path, "train/loss", 40) == 90  # of steps 80 and 100
    assert benchmarks["training_runs"].history(tmp_path, "eval/x") == [(100, 1)]


def test_dtypes_are_compared_at_equal_seeds(benchmarks, tmp_path, capsys):
    for dtype, loss in (("float32", 0.5), ("bfloat16", 0.75)):
        write_report(tmp_path / f"{dtype}_0", {"frechet": 3.0})
        row = {"step": 20, "train/loss": loss, "train/grad_norm": 2.0}
        (tmp_path / f"{dtype}_0" / "metrics.jsonl").write_text(json.dumps(row))
    benchmarks["bfloat16"].print_table(tmp_path, 20)
    benchmarks["bfloat16"].plot_losses(tmp_path)
    out = capsys.readouterr().out
    assert "| loss | bfloat16 | 0.75 | not run | not run | 0.75 |" in out
    assert (tmp_path / "losses.png").exists()
    assert json.loads((tmp_path / "losses.json").read_text())["float32_0"] == [[20, 0.5]]


def test_the_fields_of_the_runs_exist(benchmarks):
    options = argparse.Namespace(data="sets/cifar16", steps=8, timesteps=4000)
    chosen = [
        (cifar10, benchmarks["bfloat16"].run_of(options, "bfloat16", 1)),
        (digits, benchmarks["optimizers"].run_of("muon", "cosine", 1, benchmarks["optimizers"].DATA["fashion_mnist"])),
    ]
    for module, run in chosen:
        config = module.get_config()
        fields = re.findall(r"--config\.([\w.]+)=", f"{run.train} {run.evaluate}")
        assert len(fields) > 5
        for field in fields:
            section, _, name = field.rpartition(".")
            assert name in section_of(config, section), field
