"""Runs the notebook as on Google Colab: a kernel with Colab's versions that has imported NumPy and JAX beforehand.

    python tests/colab_simulation.py --python=python3.13 --folder=/tmp/colab                    # some minutes
    python tests/colab_simulation.py --python=python3.13 --folder=/tmp/colab --full             # the notebook as it is
    python tests/colab_simulation.py --python=python3.13 --folder=/tmp/colab --accelerator=gpu  # or tpu

Makes a virtual environment with the kernel and the versions below, commits the files of this repository to one in the folder,
and executes the notebook by nbclient in an empty folder: it clones that repository, named in its variable REPOSITORY, and
makes its own environment. Prints the seconds of each cell. The last cell checks that no package of the kernel changed.

`gpu` and `tpu` replace nvidia-smi and the device files: JAX is installed for the accelerator, and computes on the CPU.
Takes 4 GB, for an accelerator up to 8 GB, and needs PyPI; so it is not part of the test suite. Colab's Python is Debian's,
without ensurepip; a python3.13 of Debian without the package python3.13-venv comes closest. The versions are those of
Colab's runtime of August 2026, https://github.com/googlecolab/backend-info.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
VERSIONS = """
numpy==2.1.3 jax==0.7.2 jaxlib==0.7.2 flax==0.11.2 ml_dtypes==0.6.0 optax==0.2.8 orbax-checkpoint==0.12.4 scipy==1.16.3
scikit-learn==1.6.1 matplotlib==3.10.0 pillow==11.3.0 protobuf==5.29.6 grain==0.2.18 pip==24.1.2 setuptools==75.2.0
ipykernel==6.17.1 ipython==7.34.0 jupyter_client==7.4.9 traitlets==5.7.1 tornado==6.5.7 pyzmq==26.2.1 decorator==4.4.2
nbclient==0.10.4 nbformat==5.11.1
"""
# What jax needs for the driver and the card that the simulated nvidia-smi names, and for a TPU.
PLUGIN = {"cpu": "jaxlib", "gpu": "jax-cuda13-plugin", "tpu": "libtpu"}

# What Colab's kernel does before the first cell.
STARTUP = """
import glob, os, sys, types
import numpy, jax
assert numpy.__version__ == "2.1.3" and jax.__version__ == "0.7.2"
google = sys.modules.setdefault("google", types.ModuleType("google"))
sys.modules["google.colab"] = google.colab = types.ModuleType("google.colab")
os.environ |= {"PYTHONPATH": "/env/python", "MPLBACKEND": "module://ipykernel.pylab.backend_inline"}
if os.environ.get("COLAB_SIMULATION") == "tpu":
    _glob = glob.glob
    glob.glob = lambda pattern: ["/dev/vfio/0"] if pattern.startswith("/dev/vfio") else _glob(pattern)
"""

NVIDIA_SMI = """#!/bin/sh
echo "580.82.07, 7.5"
"""

EXECUTE = """
import datetime, pathlib, sys
import nbformat
from nbclient import NotebookClient
settings, folder, origin = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
notebook = nbformat.read(pathlib.Path(origin, "notebooks", "ddpm_colab.ipynb"), as_version=4)
for cell in notebook.cells:
    if "parameters" in cell.metadata.get("tags", ()) and settings:
        cell.source = settings
    cell.source = cell.source.replace('REPOSITORY = ""', f'REPOSITORY = "file://{origin}"')
check = nbformat.v4.new_code_cell(
    "import numpy, jax\\n"
    "assert numpy.__version__ == '2.1.3' and jax.__version__ == '0.7.2'  # the kernel is unchanged\\n"
    "assert PYTHON != sys.executable"
)
notebook.cells.append(check)
NotebookClient(notebook, timeout=7200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
total = 0
for cell in notebook.cells:
    if cell.cell_type == "code":
        times = cell.metadata.execution
        begin, end = (datetime.datetime.fromisoformat(times[name].replace("Z", "+00:00"))
                      for name in ("iopub.execute_input", "shell.execute_reply"))
        total += (end - begin).total_seconds()
        print(f"[{(end - begin).total_seconds():.0f} s] {cell.source.splitlines()[0]}")
    for output in cell.get("outputs", ()):
        print(output.get("text", "[picture]\\n" if "image/png" in output.get("data", {}) else ""), end="")
shown = sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))
print(f"{shown} pictures, {total:.0f} s in all")
nbformat.write(notebook, folder / "executed.ipynb")
sys.exit(shown != sum(cell.source.startswith("%%in_environment ") for cell in notebook.cells))
"""

# The notebook, shrunk; also used by test_notebook.py.
SETTINGS = """
WORKDIR = {workdir!r}
FIELDS = {{
    "model.unet.ch": 8, "model.unet.ch_mult": (1,), "model.unet.attn_resolutions": (),
    "train.num_steps": 8, "train.log_every": 2, "train.batch_size": 16,
    "train.checkpoint_every": 4, "train.sample_every": 0, "train.trackers": (),
    "sampling.num_steps": 10, "edit.resampling": 1,
}}
ANCESTRAL_STEPS = 20
NUM_IMAGES = 20
SETTINGS = ("WORKDIR", "FIELDS", "ANCESTRAL_STEPS", "NUM_IMAGES")
"""


def commit_files(origin: pathlib.Path) -> None:
    """Makes a repository of this one's files, as they are now, with one commit."""
    shutil.rmtree(origin, ignore_errors=True)
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    for file in files:
        (origin / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, origin / file)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for line in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "The files as they are"]):
        subprocess.run(["git", *line], cwd=origin, check=True)


def freeze(python: pathlib.Path, of: pathlib.Path) -> str:
    """The versions of all packages of the Python `of`, which need not have pip."""
    line = [python, "-m", "pip", "--python", of, "freeze", "--all"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3.13", help="Colab's Python")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="folder for the environments; kept and reused")
    parser.add_argument("--accelerator", choices=("cpu", "gpu", "tpu"), default="cpu", help="of the simulated runtime")
    parser.add_argument("--full", action="store_true", help="with the notebook's own settings, not shrunk")
    options = parser.parse_args()
    folder = options.folder.resolve()
    kernel, origin, content = folder / "kernel", folder / "origin", folder / f"content-{options.accelerator}"
    python = kernel / "bin" / "python"
    if not (kernel / ".installed").exists():
        subprocess.run([options.python, "-m", "venv", "--without-pip", "--clear", kernel], check=True)
        pip = [sys.executable, "-m", "pip", "--python", python]
        subprocess.run([*pip, "install", "--quiet", *VERSIONS.split()], check=True)
        (kernel / ".installed").touch()
    startup = folder / "ipython" / "profile_default" / "startup" / "00-colab.py"
    startup.parent.mkdir(parents=True, exist_ok=True)
    startup.write_text(STARTUP)
    commit_files(origin)
    for left in (content, folder / "home" / ".cache" / "ddpm_jax"):  # pip's downloads stay
        shutil.rmtree(left, ignore_errors=True)
    content.mkdir()
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS", "JAX_PLATFORMS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    paths = [str(kernel / "bin"), os.environ["PATH"]]
    if options.accelerator == "gpu":
        program = folder / "gpu" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(NVIDIA_SMI)
        program.chmod(0o755)
        paths.insert(0, str(program.parent))
    if options.accelerator != "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "COLAB_SIMULATION": options.accelerator}
    environment |= {"PATH": os.pathsep.join(paths), "IPYTHONDIR": str(startup.parents[2]), "HOME": str(folder / "home")}
    before = freeze(python, python)
    settings = "" if options.full else SETTINGS.format(workdir="runs/colab-digits")
    code = subprocess.run([python, "-c", EXECUTE, settings, content, origin], env=environment, check=False).returncode
    if freeze(python, python) != before:
        print("the packages of the kernel changed", file=sys.stderr)
        return 1
    if PLUGIN[options.accelerator] not in freeze(python, content / "ddpm_jax" / ".venv-notebook" / "bin" / "python"):
        print(f"the environment lacks {PLUGIN[options.accelerator]}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
