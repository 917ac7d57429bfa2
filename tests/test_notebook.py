"""The notebook runs at reduced size and shows its figures; the outputs in it belong to its cells; its first cell finds or
creates the Python that it needs.

`tests/colab_simulation.py` runs it under the versions of Colab, environment and all: gigabytes, so by hand.
"""

import base64
import importlib.util
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import nbformat
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.runtime import distributed
from tests.colab_simulation import SETTINGS

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "notebooks" / "ddpm_colab.ipynb"


def pictures(cell):
    """The pictures that a cell shows, as bytes of PNG files."""
    data = (output.get("data", {}).get("image/png") for output in cell.get("outputs", []))
    return [base64.b64decode(picture) for picture in data if picture]


def printed(cell):
    return "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")


def pixels(picture):
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("L"), float)


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def execute():
    """notebooks/execute.py"""
    spec = importlib.util.spec_from_file_location("execute", NOTEBOOK.with_name("execute.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# nbclient uses a deprecated event loop API; this project cannot change that.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.slow
@pytest.mark.timeout(1200)  # nineteen processes that import JAX: a minute and a half on two idle cores
def test_it_runs_and_shows_what_is_stored(tmp_path, repository, compiled_fast, monkeypatch, notebook, execute):
    """With a tiny network. Cells tagged `exact`, which use no network, print and show what is stored in the notebook."""
    monkeypatch.setenv("XLA_FLAGS", compiled_fast)  # one device, as for users
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(repository / ".cache" / "xla"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    run = nbformat.from_dict(notebook)
    (settings,) = (cell for cell in run.cells if execute.tagged(cell, "parameters"))
    settings.source = SETTINGS.format(workdir=str(tmp_path / "run"))
    execute.run(run, timeout=240)

    exact = 0
    for stored, cell in zip(notebook.cells, run.cells, strict=True):
        cell.outputs = execute.clean_outputs(cell, str(tmp_path / "run")) if cell.cell_type == "code" else []
        if execute.tagged(cell, "install"):
            continue
        assert len(pictures(cell)) == len(pictures(stored)) == shows_picture(cell), cell.source
        if execute.tagged(cell, "exact"):
            exact += 1
            assert printed(cell) == printed(stored)
            for ours, theirs in zip(pictures(cell), pictures(stored), strict=True):
                assert np.abs(pixels(ours) - pixels(theirs)).mean() < 1, (
                    cell.source
                )  # of 255 levels: other fonts differ by more
    assert exact == 7
    (device,) = (cell for cell in run.cells if "computes on" in cell.source)
    assert printed(device).startswith(f"JAX {jax.__version__} computes on ")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8


def shows_picture(cell):
    return bool(re.match(r"%%in_environment \S+\n", cell.source))


def test_stored_outputs_belong_to_the_cells(notebook, execute, repository):
    """Otherwise run `make notebook`, which executes it at full size."""
    nbformat.validate(notebook)
    assert notebook.metadata.get("executed") == execute.source_hash(notebook), "run `make notebook`"
    size = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert not any(output.output_type == "error" for output in cell.outputs)
        if execute.tagged(cell, "install"):
            assert not cell.outputs  # they name folders of the machine
            continue
        assert len(pictures(cell)) == shows_picture(cell), cell.source
        assert shows_picture(cell) or printed(cell) or not cell.source.startswith("%%in_environment"), cell.source
        text = printed(cell)
        assert not re.search(r"steps/s|/tmp|/home|Traceback|WARNING", text), text
        assert str(repository) not in text
        size += sum(map(len, pictures(cell)))
    assert size < 1_500_000


def test_changed_cells_are_found(notebook, execute, monkeypatch, tmp_path, capsys):
    changed = nbformat.from_dict(notebook)
    cell = next(cell for cell in changed.cells if shows_picture(cell))
    cell.source += "\n# changed"
    nbformat.write(changed, tmp_path / "changed.ipynb")
    monkeypatch.setattr(execute, "NOTEBOOK", tmp_path / "changed.ipynb")
    monkeypatch.setattr(sys, "argv", ["execute.py", "--check"])
    assert execute.main() == 1
    assert "make notebook" in capsys.readouterr().err
    installed = nbformat.from_dict(notebook)
    next(
        cell for cell in installed.cells if execute.tagged(cell, "install")
    ).source += "\n# other"  # its outputs are not stored
    assert execute.source_hash(installed) == execute.source_hash(notebook) != execute.source_hash(changed)


def test_stored_outputs_have_no_times_and_paths(execute):
    lines = [
        "step 1 / 2,500 (0%)\r",
        "step 100 / 2,500 (4%) · loss 0.5332 · grad_norm 1.301 · 47.2 steps/s · 3,023 images/s · 0:25 left\n",
        "step 192 / 2,500 (7%) · loss 0.5332\n",
        "50 / 100 images (50%)\n",
        "WARNING:matplotlib.font_manager:findfont: Font family not found.\n",
        "done: 2,500 steps; see /tmp/x/run/samples/step_00002500.png\n",
    ]
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", name="stderr", text=line) for line in lines])
    (output,) = execute.clean_outputs(cell, "/tmp/x/run")
    expected = "step 100 / 2,500 (4%) · loss 0.5332 · grad_norm 1.301\n"
    assert output.text == expected + "done: 2,500 steps; see runs/colab-digits/samples/step_00002500.png\n"


def test_settings_are_replaced(notebook, execute):
    execute.set_variables(notebook, WORKDIR="/tmp/other", NUM_IMAGES=3)
    (settings,) = (cell.source for cell in notebook.cells if execute.tagged(cell, "parameters"))
    assert "WORKDIR = '/tmp/other'\n" in settings
    assert "NUM_IMAGES = 3\n" in settings
    with pytest.raises(ValueError, match="no line MISSING"):
        execute.set_variables(notebook, MISSING=1)


def test_its_equations_and_steps_cover_the_tutorial(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    steps = "q_step q_sample fixed_small fixed_large draw_loss trajectory ancestral ddim vlb frechet"
    for name in steps.split():
        assert name in text, name


def test_its_kernel_imports_no_package_with_another_version_in_colab(repository):
    """A kernel cannot replace imported packages while it runs: JAX, NumPy and the program run in other processes."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert sum(source.startswith("%%in_environment") for source in cells) == 19
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
        without_ensurepip = "-m venv" in text and not self._venv and "--without-pip" not in text
        failed = ("--dry-run" in text and not self._satisfied) or without_ensurepip
        output = self._gpu or ""
        if not failed and "-m venv" in text:
            pathlib.Path(line[-1]).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(line, int(failed), stdout=output, stderr="")


def install_cell():
    return next(
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "install" in cell.metadata.get("tags", ())
    ).source


def install(machine, folder, monkeypatch, devices=()):
    """Runs the first cell in `folder`; returns the Python that it chose."""
    monkeypatch.chdir(folder)
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "digits.py").touch()
    (folder / "requirements.txt").touch()
    source = install_cell()
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
    python = os.path.join(".venv-notebook", "bin", "python")
    assert install(machine, tmp_path, monkeypatch, devices) == python
    installs = [line for line in machine.lines if " install " in line and "--dry-run" not in line]
    pip = f"{python} -m pip" if machine._venv else f"{sys.executable} -m pip --python {python}"  # nothing for the kernel
    assert len(installs) == 1
    assert installs[0].startswith(f"{pip} install ")
    assert installs[0].endswith(f"-r requirements.txt{f' {extra}' if extra else ''}")

    def installs_again():
        machine.lines.clear()
        install(machine, tmp_path, monkeypatch, devices)
        return any("-r requirements.txt" in line and "--dry-run" not in line for line in machine.lines)

    assert not installs_again()
    monkeypatch.setattr(machine, "_gpu", None if machine._gpu else "580.95.05, 9.0\n")  # another accelerator
    assert installs_again()
    assert not installs_again()
    (tmp_path / "requirements.txt").write_text("numpy\n")  # after git pull
    assert installs_again()


def test_it_needs_python_3_11(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer"):
        install(Machine(), tmp_path, monkeypatch)


def test_it_clones_the_repository_named_in_one_variable(tmp_path, repository, monkeypatch, capsys):
    """From a commit in a folder, as from an address: on a machine without a clone. The second run uses the clone."""
    origin, machine = tmp_path / "origin", tmp_path / "machine"
    machine.mkdir()
    origin.mkdir()
    (origin / "configs").mkdir()
    for name in ("configs/digits.py", "requirements.txt"):
        (origin / name).write_text((repository / name).read_text())
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for line in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "Two files"]):
        subprocess.run(["git", *line], cwd=origin, check=True)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python-of-the-kernel")
    source = install_cell()
    assert source.count('REPOSITORY = "') == 1
    cell = source.replace('REPOSITORY = ""', f'REPOSITORY = "file://{origin}"').replace('PYTHON = ""', 'PYTHON = "mine"')
    for _ in range(2):
        monkeypatch.chdir(machine)
        exec(cell, {})
        assert pathlib.Path.cwd() == machine / "ddpm_jax"
        assert pathlib.Path("requirements.txt").read_text() == (repository / "requirements.txt").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").touch()  # of another project
    with pytest.raises(SystemExit, match="Set REPOSITORY in this cell"):
        exec(source, {})
    with pytest.raises(subprocess.CalledProcessError):
        exec(source.replace('REPOSITORY = ""', 'REPOSITORY = "file:///nothing/here"'), {})


def environment_of(machine, modules, monkeypatch, folder, variables):
    """ENVIRONMENT of the cell that defines %%in_environment."""
    for name in ("PYTHONPATH", "TPU_SKIP_MDS_QUERY", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    (source,) = (cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "def in_environment(" in cell.source)
    source = source.replace("@register_cell_magic", "")
    names = {"os": os, "sys": sys, "subprocess": machine, "pathlib": pathlib}
    exec(source, names)
    return names["ENVIRONMENT"]


# Variables like those that the runtimes of Colab set for their kernel; not recorded there.
COLAB_TPU = {"COLAB_TPU_ADDR": "", "TPU_NAME": "", "TPU_ACCELERATOR_TYPE": "v5e-1", "TPU_WORKER_HOSTNAMES": "localhost"}
COLAB_GPU = {"COLAB_GPU": "1", "NVIDIA_VISIBLE_DEVICES": "all", "LD_LIBRARY_PATH": "/usr/lib64-nvidia"}


@pytest.mark.parametrize(
    ("variables", "devices", "gpu", "extra"),
    [
        ({"COLAB_GPU": ""}, (), None, None),
        (COLAB_GPU, (), "550.54.15, 7.5\n", "jax[cuda12]"),
        (COLAB_GPU, (), "580.82.07, 8.0\n", "jax[cuda13]"),
        (COLAB_TPU, ("/dev/vfio/0", "/dev/vfio/vfio"), None, "jax[tpu]"),
        (COLAB_TPU | {"TPU_ACCELERATOR_TYPE": "v2-8"}, ("/dev/accel0", "/dev/accel1"), None, "jax[tpu]"),
    ],
    ids=["CPU", "T4", "A100", "TPU v5e-1", "TPU v2-8"],
)
def test_each_runtime_of_colab(variables, devices, gpu, extra, tmp_path, monkeypatch, capsys):
    """The package that is installed, and the variables of the processes that run the program."""
    machine = Machine(gpu=gpu)
    environment = environment_of(machine, ("google.colab",), monkeypatch, tmp_path, variables | {"PYTHONPATH": "/env/python"})
    assert environment["TPU_SKIP_MDS_QUERY"] == "1"  # no metadata server answers
    assert "PYTHONPATH" not in environment  # the packages of the kernel
    assert environment.items() >= variables.items()
    install(machine, tmp_path, monkeypatch, devices)
    assert machine.lines[-1].endswith(f"-r requirements.txt{f' {extra}' if extra else ''}")


def test_a_tpu_of_colab_is_one_host(monkeypatch):
    """The program does not look for other processes, which would take a metadata server that Colab does not have."""
    for name in ("SLURM_STEP_NUM_TASKS", "KUBERNETES_SERVICE_HOST", "TPU_PROCESS_ADDRESSES", *COLAB_TPU):
        monkeypatch.delenv(name, raising=False)
    for name, value in COLAB_TPU.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda **_: pytest.fail("looks for other processes"))
    assert not distributed.initialize_distributed()


def test_it_uses_its_own_python_if_the_requirements_are_installed(tmp_path, monkeypatch, capsys):
    machine = Machine(satisfied=True)
    assert install(machine, tmp_path, monkeypatch) == sys.executable
    assert len(machine.lines) == 1


def test_it_ends_with_a_valid_command(repository, notebook):
    assert (repository / "configs" / "cifar10.py").exists()
    assert "--config=configs/cifar10.py" in notebook.cells[-1].source
