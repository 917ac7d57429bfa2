"""The notebook runs at reduced size and shows its figures; its first cell finds or creates the Python that it needs.

`tests/colab_simulation.py` runs it under the versions of Colab, environment and all: gigabytes, so by hand.
"""

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import types

import nbformat
import pytest
from nbclient import NotebookClient

from tests.colab_simulation import SETTINGS

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "notebooks" / "ddpm_colab.ipynb"


def pictures(cell):
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


# nbclient uses a deprecated event loop API; this project cannot change that.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.slow
def test_it_runs_and_shows_its_figures(tmp_path, repository, compiled_fast, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", compiled_fast)  # one device, as for users
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(repository / ".cache" / "xla"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    tagged = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    tagged["parameters"].source = SETTINGS.format(workdir=str(tmp_path / "run"))
    tagged["install"].source = tagged["install"].source.replace('PYTHON = ""', f"PYTHON = {sys.executable!r}")
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(repository)}})
    asyncio.run(client.async_execute())

    shown = sum(len(pictures(cell)) for cell in notebook.cells)
    assert shown == 8  # forward strip, loss, reverse, chain, schedule, two grids, inpainting
    assert all(len(pictures(tagged[name])) == 1 for name in ("forward", "loss", "reverse", "samples"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8


def test_its_kernel_imports_no_package_with_another_version_in_colab(repository):
    """A kernel cannot replace imported packages while it runs: JAX, NumPy and the program run in other processes."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert sum(source.startswith("%%in_environment") for source in cells) == 9
    for source in cells:
        if not source.startswith("%%"):
            modules = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
            assert modules <= {*sys.stdlib_module_names, "IPython"}


class Machine:
    """Replaces `subprocess`: simulates nvidia-smi and pip and creates nothing.

    Attributes:
      lines: the commands that ran, as text.
    """

    def __init__(self, *, satisfied=False, venv=True, gpu=None):
        self.lines, self._satisfied, self._venv, self._gpu = [], satisfied, venv, gpu

    def run(self, line, **_):
        text = " ".join(map(str, line))
        self.lines.append(text)
        failed = ("--dry-run" in text and not self._satisfied) or ("-m venv" in text and not self._venv)
        output = self._gpu or ""
        if not failed and ("-m venv" in text or "-m virtualenv" in text):
            pathlib.Path(line[-1]).mkdir()
        return subprocess.CompletedProcess(line, int(failed), stdout=output, stderr="")


def install(machine, folder, monkeypatch, devices=()):
    """Runs the first cell in `folder`; returns the Python that it chose."""
    monkeypatch.chdir(folder)
    (folder / "main.py").touch()
    source = next(
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "install" in cell.metadata.get("tags", ())
    ).source
    stand_ins = {
        "subprocess": machine,
        "shutil": types.SimpleNamespace(which=lambda name: machine._gpu and name),
        "glob": types.SimpleNamespace(glob=lambda pattern: [name for name in devices if name.startswith(pattern[:8])]),
    }
    lines = [line for line in source.splitlines() if not line.startswith(tuple(f"import {name}" for name in stand_ins))]
    names = dict(stand_ins)
    exec("\n".join(lines), names)
    return names["PYTHON"]


@pytest.mark.parametrize(
    ("machine", "devices", "extra"),
    [
        (Machine(), (), None),
        (Machine(gpu="580.95.05, 7.5\n"), (), "jax[cuda13]"),
        (Machine(gpu="570.10, 9.0\n"), (), "jax[cuda12]"),
        (Machine(gpu="580.95.05, 7.0\n"), (), "jax[cuda12]"),
        (Machine(), ("/dev/accel0",), "jax[tpu]"),
        (Machine(), ("/dev/vfio/0",), "jax[tpu]"),
        (Machine(venv=False), (), None),
    ],
    ids=["cpu", "T4", "old driver", "V100", "TPU", "newer TPU", "no ensurepip"],
)
def test_it_creates_an_environment_for_the_accelerator(machine, devices, extra, tmp_path, monkeypatch, capsys):
    assert install(machine, tmp_path, monkeypatch, devices) == os.path.join(".venv-notebook", "bin", "python")
    last = machine.lines[-1]
    assert last.startswith(os.path.join(".venv-notebook", "bin", "python") + " -m pip install")
    assert last.endswith(f"-r requirements.txt{f' {extra}' if extra else ''}")
    assert any("-m virtualenv" in line for line in machine.lines) != machine._venv
    machine.lines.clear()
    install(machine, tmp_path, monkeypatch, devices)  # the second call creates nothing
    assert not any("requirements.txt" in line and "--dry-run" not in line for line in machine.lines)


def test_it_uses_its_own_python_if_the_requirements_are_installed(tmp_path, monkeypatch, capsys):
    machine = Machine(satisfied=True)
    assert install(machine, tmp_path, monkeypatch) == sys.executable
    assert len(machine.lines) == 1


def test_it_is_committed_without_outputs_and_with_valid_commands(repository):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert (repository / "configs" / "cifar10.py").exists()
    assert "--config=configs/cifar10.py" in notebook.cells[-1].source
