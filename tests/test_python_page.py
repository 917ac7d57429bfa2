"""The Python of docs/python.md and README.md runs, block after block, with a tiny config instead of digits."""

import logging
import re

import jax
import numpy as np
import pytest

from ddpm_jax import configs
from tests.small_network import Small
from tests.test_api import TINY

TINY_DIGITS = """
from ddpm_jax.configs import digits

def get_config():
    config = digits.get_config()
    config.update_from_flattened_dict({fields})
    return config
"""
# Numbers of steps and images of the page that would take minutes; each must be in it.
FEWER = {
    "docs/python.md": {"range(2000)": "range(2)", "num_images=1000": "num_images=8", "num_steps = 5000": "num_steps = 3"},
    "README.md": {},
}
# The U-Net is made, but a network that compiles faster is trained.
FASTER = {
    "attn_resolutions=(4,), dropout=0.0)": "attn_resolutions=(4,), dropout=0.0) and Small(out_channels=1)",
    "1000, 20": "1000, 3",
}


@pytest.fixture
def tiny_digits(tmp_path, monkeypatch):
    """The shipped config digits is a tiny one, and the current folder is empty."""
    shipped, folder = tmp_path / "configs", tmp_path / "here"
    shipped.mkdir()
    folder.mkdir()
    fields = TINY | {"diffusion.num_timesteps": 100, "evaluation.vlb_num_timesteps": 4}
    (shipped / "digits.py").write_text(TINY_DIGITS.format(fields=fields))
    monkeypatch.setattr(configs, "FOLDER", shipped)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(logging.getLogger("ddpm_jax"), "handlers", [logging.NullHandler()])


def blocks_of(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", FEWER)
def test_its_python_runs(name, repository, tiny_digits, capsys):
    names = {"Small": Small}
    text = "\n# next block\n".join(blocks_of(repository / name))
    for many, few in FEWER[name].items():
        assert many in text
        text = text.replace(many, few)
    for many, few in FASTER.items():
        assert many in text or name != "docs/python.md"
        text = text.replace(many, few)
    for block in text.split("\n# next block\n"):
        exec(compile(block, name, "exec"), names)
    if name == "README.md":
        assert names["images"].shape == (16, 8, 8, 1)
        assert names["x_t"].shape == names["mean"].shape
        return
    assert names["samples"].images.shape == (16, 8, 8, 1)
    assert set(names["samples"].labels) == {3}
    assert names["digits"].shape == (16, 8, 8, 1)
    assert names["digits"].dtype == np.uint8
    assert np.isfinite(names["loss"])
    assert jax.tree.leaves(names["params"])


def test_the_loop_has_15_lines(repository):
    (loop,) = (block for block in blocks_of(repository / "docs" / "python.md") if "def train_step" in block)
    assert len([line for line in loop.splitlines() if line]) == 15
