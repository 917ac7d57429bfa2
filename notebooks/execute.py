"""Runs the notebook and stores its outputs in it, without times and paths: `make notebook`.

python notebooks/execute.py           # some minutes; the run that it trains goes to a temporary folder
python notebooks/execute.py --check   # exit code 1 if the stored outputs belong to other cells

Cells tagged `install` are run, but their outputs are not stored: they depend on the machine. The notebook's metadata has a
hash of all other cells of code, from which the tests detect outputs that are older than the cells.
"""

import argparse
import hashlib
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "ddpm_colab.ipynb"
# What differs between two executions of the same cells: the lines of progress, except one every hundred steps, and times.
PROGRESS = re.compile(r"^(.*\d / [\d,]+ images \(\d+%\)|step (?!\d*,?\d*00 /)[\d,]+ /|.*findfont: ).*\n?", re.MULTILINE)
TIMES = re.compile(r" · [\d.,]+ (steps|images)/s| · [\d:]+ left")


def tagged(cell: Any, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def source_hash(notebook: Any) -> str:
    """A hash of the code that the stored outputs belong to."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and not tagged(cell, "install")]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()[:16]


def set_variables(notebook: Any, **values: Any) -> None:
    """Changes the values of variables of the cell with the settings."""
    (settings,) = (cell for cell in notebook.cells if tagged(cell, "parameters"))
    for name, value in values.items():
        settings.source, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", settings.source, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"the settings of the notebook have no line {name} = ...")


def run(notebook: Any, *, python: str = sys.executable, timeout: int = 3600) -> None:
    """Executes the notebook in place, in the repository. The program runs with `python`.

    Raises:
      CellExecutionError: a cell failed.
    """
    for cell in notebook.cells:
        if tagged(cell, "install"):
            cell.source = cell.source.replace('PYTHON = ""', f"PYTHON = {python!r}")
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()


def clean_outputs(cell: Any, workdir: str) -> list[Any]:
    """The outputs of a cell without times, progress and paths; consecutive lines of text are one output."""
    kept: list[Any] = []
    for output in cell.outputs:
        if output.output_type != "stream":
            kept.append(output)
        elif kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(nbformat.v4.new_output("stream", name="stdout", text=output.text))
    for output in kept:
        if output.output_type == "stream":
            text = TIMES.sub("", PROGRESS.sub("", output.text.replace("\r", "\n")))
            output.text = text.replace(workdir, "runs/colab-digits").replace(f"{ROOT}{os.sep}", "")
    return [output for output in kept if output.output_type != "stream" or output.text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the hash of the cells")
    options = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    current = source_hash(notebook)
    if options.check:
        if notebook.metadata.get("executed") != current:
            print("the stored outputs belong to other cells: run `make notebook`", file=sys.stderr)
            return 1
        return 0
    executed = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as folder:
        workdir = os.path.join(folder, "run")
        set_variables(executed, WORKDIR=workdir)
        run(executed)
        count = 0
        for cell, done in zip(notebook.cells, executed.cells, strict=True):
            if cell.cell_type == "code" and not tagged(cell, "install"):
                count += 1
                cell.outputs, cell.execution_count = clean_outputs(done, workdir), count
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "execution_count" in output:
                output.execution_count = cell.execution_count
    notebook.metadata["executed"] = current
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
