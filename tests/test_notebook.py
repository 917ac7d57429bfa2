"""The notebook runs top to bottom, shrunk, and shows what it says."""

import asyncio
import json
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "notebooks" / "ddpm_colab.ipynb"

SETTINGS = """
WORKDIR = {workdir!r}
FIELDS = [
    "--config.model.ch=8", "--config.model.ch_mult=(1,)", "--config.model.attn_resolutions=()",
    "--config.train.num_steps=8", "--config.train.log_every=2", "--config.train.batch_size=16",
    "--config.train.checkpoint_every=4", "--config.train.sample_every=0", "--config.train.tensorboard=False",
    "--config.sampling.num_steps=10", "--config.sampling.num_images=4", "--config.sampling.batch_size=4",
    "--config.illustrate.num_stages=6",
]
ANCESTRAL_STEPS = 20
"""


def pictures(cell):
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


# nbclient runs its event loop in ways that newer Pythons announce the end of; nothing of ours can change that.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_and_shows_its_pictures(tmp_path, repository, compiled_fast, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", compiled_fast)  # one device, as a person has
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    tagged = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    tagged["parameters"].source = SETTINGS.format(workdir=str(tmp_path / "run"))
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(repository)}})
    asyncio.run(client.async_execute())

    shown = sum(len(pictures(cell)) for cell in notebook.cells)
    assert shown == 7  # forward strip, loss, reverse, chain, forward sheet, two grids
    assert all(len(pictures(tagged[name])) == 1 for name in ("forward", "loss", "reverse", "samples"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8


def test_it_is_committed_without_outputs_and_names_commands_that_exist(repository):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert (repository / "configs" / "cifar10.py").exists()
    assert "--config=configs/cifar10.py" in notebook.cells[-1].source
