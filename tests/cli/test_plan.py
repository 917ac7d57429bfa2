"""--mode=plan: files, cache, suggestions and errors, for a CPU."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import modes, plan
from ddpm_jax.planning import compile_step, targets
from ddpm_jax.runtime.errors import ConflictError, FileAccessError, InvalidArgumentError, UnavailableError
from ddpm_jax.user_messages import UsageError

FOUND = {  # what a compilation finds (`planning.analysis`)
    "state": {"parameters": 4e5, "ema": 4e5, "optimizer": 8e5},
    "images": 8,
    "memory": {"arguments": 1.7e6, "outputs": 1e3, "temporaries": 1e6, "code": 0.0, "peak": 2.7e6},
    "compiler": {"flops": 1.1e7, "bytes": 3e6},
    "operations": [
        {"kind": "convolutions", "layer": "conv_in", "kernels": 2, "flops": 5e6, "bytes": 5e5, "cycles": 0.0},
        {"kind": "optimizer and EMA", "layer": "", "kernels": 10, "flops": 0.0, "bytes": 2e5, "cycles": 0.0},
    ],
    "collectives": [],
}


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compilation; the (fields of the config, sampling) of each one. tests/planning has real ones."""
    calls = []

    def run(function, config, machine, sampling, *, environment, label):
        assert function is compile_step.plan
        assert environment["JAX_PLATFORMS"] == "cpu"
        calls.append((config.to_dict(), sampling))
        if config.mesh.fsdp > 1:
            return FOUND | {"memory": FOUND["memory"] | {"peak": 1.9e6}}
        return FOUND | {"steps": 2} if sampling else FOUND

    monkeypatch.setattr(plan, "run_in_process", run)
    return calls


@pytest.fixture
def make_plan(tmp_path):
    """(config, flags) -> runs the mode with a cache in tmp_path."""

    def run(config, **flags):
        given = {"folder": "", "target": "cpu", "suggest": False, "sampling": False, "output": ""}
        return plan.run(config, **(given | {"compilation_cache": str(tmp_path / "cache")} | flags))

    return run


def test_a_plan_is_printed_written_and_kept(make_plan, compiled, tiny_config, tmp_path, capsys):
    config, output = tiny_config(), tmp_path / "out"
    assert make_plan(config, output=str(output), sampling=True) == 0
    printed = capsys.readouterr().out
    assert "| peak |" in printed
    assert "most expensive operations" in printed
    found = json.loads((output / "plan_cpu.json").read_text())
    assert found["training"]["memory"]["fits"]
    assert found["training"]["kernels"] == 12
    assert found["training"]["flops"] == 1e7
    assert found["sampling"]["images"] == 8
    assert found["program"]["ddpm_jax"]
    assert np.asarray(Image.open(output / "plan_cpu.png")).ndim == 3
    assert [sampling for _, sampling in compiled] == [False, True]

    # Nothing that is compiled depends on these.
    config.update_from_flattened_dict({"train.num_steps": 7, "data.num_workers": 2, "data.data_dir": "x"})
    config.update_from_flattened_dict({"visualize.num_images": 9, "evaluation.num_images": 9})
    assert make_plan(config, output=str(output), sampling=True) == 0
    assert len(compiled) == 2
    assert json.loads((output / "plan_cpu.json").read_text())["training"] == found["training"]


def test_what_changes_the_program_is_compiled_again(make_plan, compiled, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    make_plan(tiny_config())
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    make_plan(tiny_config())
    make_plan(tiny_config({"optimizer.adam.b1": 0.8}))
    (tmp_path / "plan_rate.py").write_text("def rate(peak, num_steps):\n    return lambda step: peak\n")
    own = {"optimizer.schedule": "plan_rate:rate"}
    make_plan(tiny_config(own))
    (tmp_path / "plan_rate.py").write_text("def rate(peak, num_steps):\n    return lambda step: peak / 2\n")
    make_plan(tiny_config(own))
    assert len(compiled) == 5
    make_plan(tiny_config(own))
    assert len(compiled) == 5


def test_the_default_folder_is_in_the_workdir_and_no_state_is_created(make_plan, compiled, tiny_config, tmp_path):
    assert make_plan(tiny_config(), folder=str(tmp_path / "run")) == 0
    (folder,) = (tmp_path / "run" / "plans").iterdir()
    assert folder.name.startswith("digits-cpu-")
    assert {file.name for file in folder.iterdir()} == {"manifest.json", "plan_cpu.json", "plan_cpu.png"}
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["plans"]


def test_a_folder_with_the_plan_of_another_config_is_kept(make_plan, compiled, tiny_config, tmp_path):
    output = str(tmp_path / "out")
    make_plan(tiny_config(), output=output)
    with pytest.raises(ConflictError, match="batch_size"):
        make_plan(tiny_config({"train.batch_size": 4}), output=output)
    assert len(compiled) == 1


def test_what_makes_it_fit_is_compiled_if_asked(make_plan, compiled, tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(targets.Target, "memory", property(lambda target: 2e6))  # less than the peak
    assert make_plan(tiny_config(), output=str(tmp_path / "out"), suggest=True) == 0
    tried = [
        (fields["optimizer"]["accumulation_steps"], fields["model"]["unet"]["remat"], fields["model"]["dtype"])
        for fields, _ in compiled[1:]
    ]
    # There is only one device for mesh.fsdp. None of them is enough.
    assert tried == [(8, False, "float32"), (1, True, "float32"), (1, False, "bfloat16"), (8, True, "bfloat16")]
    printed = capsys.readouterr().out
    assert "does not fit into the" in printed
    assert "with --config.model.unet.remat=True it " in printed
    assert "mesh.fsdp" not in printed
    assert "\nnone of them fits: choose a lower train.batch_size, more devices, or ones with more memory\n" in printed
    assert len(json.loads((tmp_path / "out" / "plan_cpu.json").read_text())["suggestions"]) == 4


def test_a_suggestion_that_fits_has_its_speed(make_plan, compiled, tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(targets.Target, "memory", property(lambda target: 2e6))
    monkeypatch.setattr(targets, "check_installed", lambda target: None)
    assert make_plan(tiny_config(), target="h100x2", output=str(tmp_path / "out"), suggest=True) == 0
    printed = capsys.readouterr().out
    assert "with --config.model.unet.remat=True it does not fit, 0.0 GiB\n" in printed
    assert "none of them" not in printed
    assert "with --config.mesh.data=-1 --config.mesh.fsdp=2 it fits, 0.0 GiB, estimate: " in printed
    rows = json.loads((tmp_path / "out" / "plan_h100x2.json").read_text())["suggestions"]
    assert [row["fits"] for row in rows] == [False, False, False, True]  # so that all together are not tried
    assert rows[-1]["images_per_s"] == pytest.approx(8 / (12 * 3e-6))  # twelve launches


def test_errors_come_before_the_compilation(make_plan, compiled, tiny_config, tmp_path, monkeypatch):
    with pytest.raises(InvalidArgumentError, match="target=h10"):
        make_plan(tiny_config(), target="h10")
    with pytest.raises(UsageError, match=r"train\.batch_size"):
        make_plan(tiny_config({"train.batch_size": 0}))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match="it is a file; choose another `output`"):
        make_plan(tiny_config(), output=str(tmp_path / "file"))
    with pytest.raises(FileAccessError, match=r"cannot write to .*; choose another `output`"):
        make_plan(tiny_config(), folder="/proc/run")
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UnavailableError, match="pip install"):
        make_plan(tiny_config(), target="h100")
    assert not compiled


def test_the_short_form_takes_the_target():
    assert modes.expand_short_form(["main.py", "plan", "h100x8", "--config=cifar10", "--suggest"]) == [
        "main.py",
        "--target=h100x8",
        "--mode=plan",
        "--config=cifar10",
        "--suggest",
    ]


@pytest.mark.timeout(20)
def test_machines_that_the_batch_does_not_fit_are_refused_before_devices_are_made(make_plan, compiled, tiny_config):
    with pytest.raises(
        InvalidArgumentError, match="`batch_size` is 8, which does not divide evenly over 1000 devices: use 1000"
    ):
        make_plan(tiny_config(), target="cpux1000")
    for target in ("cpux100000", "cpux1025"):
        with pytest.raises(
            InvalidArgumentError, match=f"`target={target}` has more than 1,024 devices: give cpux1024 or fewer"
        ):
            make_plan(tiny_config({"train.batch_size": 100_000}), target=target)
    assert not compiled


@pytest.mark.slow
def test_the_command_compiles_in_a_process_of_its_own(command, tmp_path, repository):
    """The real command, which also sees no accelerator and no other process of a cluster."""
    import subprocess

    line = command(tmp_path / "run", "--mode=plan", "--target=cpux2", f"--output={tmp_path / 'out'}", "--compilation_cache=")
    done = subprocess.run(line, capture_output=True, text=True, cwd=repository, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(pathlib.Path(tmp_path / "out" / "plan_cpux2.json").read_text())["devices"] == 2
