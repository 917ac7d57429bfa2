"""Runs the notebook as on Google Colab: a kernel with Colab's versions that has imported NumPy and JAX beforehand.

    python tests/colab_simulation.py --python=python3.13 --folder=/tmp/colab

Makes a virtual environment with the versions below and the kernel, copies the repository, and executes the notebook in it,
shrunk, by nbclient. The notebook then makes its own environment. Takes about 4 GB and some minutes, and needs PyPI; so it
is not part of the test suite. Versions of Colab's runtime of August 2026.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
COLAB = ("numpy==2.1.3", "jax==0.7.2", "jaxlib==0.7.2", "flax==0.11.2")
KERNEL = ("ipykernel", "nbclient", "nbformat")

# What Colab's kernel does before the first cell.
STARTUP = """
import os, sys, types
import numpy, jax
assert numpy.__version__ == "2.1.3" and jax.__version__ == "0.7.2"
google = sys.modules.setdefault("google", types.ModuleType("google"))
sys.modules["google.colab"] = google.colab = types.ModuleType("google.colab")
os.environ["PYTHONPATH"] = "/env/python"
"""

EXECUTE = """
import json, pathlib, sys
import nbformat
from nbclient import NotebookClient
settings, folder = sys.argv[1], pathlib.Path(sys.argv[2])
notebook = nbformat.read(folder / "notebooks" / "ddpm_colab.ipynb", as_version=4)
for cell in notebook.cells:
    if "parameters" in cell.metadata.get("tags", ()):
        cell.source = settings
check = nbformat.v4.new_code_cell(
    "import numpy, jax\\n"
    "assert numpy.__version__ == '2.1.3' and jax.__version__ == '0.7.2'  # the kernel is unchanged\\n"
    "assert PYTHON != sys.executable"
)
notebook.cells.append(check)
NotebookClient(notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
for cell in notebook.cells:
    for output in cell.get("outputs", ()):
        print(output.get("text", "[picture]" if "image/png" in output.get("data", {}) else ""), end="")
shown = sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))
print(f"{shown} pictures")
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


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3.13", help="Colab's Python")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="folder for the environments; kept and reused")
    options = parser.parse_args()
    kernel, clone = options.folder / "kernel", options.folder / "ddpm_jax"
    python = kernel / "bin" / "python"
    if not (kernel / ".installed").exists():
        subprocess.run([options.python, "-m", "venv", "--clear", kernel], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *COLAB, *KERNEL], check=True)
        (kernel / ".installed").touch()
    startup = options.folder / "ipython" / "profile_default" / "startup" / "00-colab.py"
    startup.parent.mkdir(parents=True, exist_ok=True)
    startup.write_text(STARTUP)
    clone.mkdir(exist_ok=True)
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    for file in files:
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, clone / file)
    shutil.rmtree(clone / "runs", ignore_errors=True)
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS", "JAX_PLATFORMS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PATH": f"{kernel / 'bin'}:{os.environ['PATH']}", "IPYTHONDIR": str(startup.parents[2])}
    command = [python, "-c", EXECUTE, SETTINGS.format(workdir="runs/colab-digits"), clone]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
