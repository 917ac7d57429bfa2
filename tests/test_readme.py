"""The README and the pages with longer commands: their commands are valid. test_python_page.py runs its Python."""

import pathlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text()
NAMES = ("training.md", "sampling.md", "super_resolution.md", "finetuning.md", "exporting.md")
PAGES = [README, *(README.parent / "docs" / name for name in NAMES)]


def commands(page):
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("python main.py")]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


# ml_collections loads config files with a deprecated method; this project cannot change that.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_can_be_parsed(command, repository, monkeypatch):
    """As in main.py, without running it: an unknown field or a value of the wrong type is an error."""
    monkeypatch.chdir(repository)
    from ddpm_jax.cli import modes

    values = flags.FlagValues()
    for name in ("workdir", "output", "mode", "runs"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
    line = modes.expand_short_form(shlex.split(command, comments=True)[1:])
    if not any(part.startswith("--config=") for part in line):
        line.insert(1, "--config=configs/digits.py")  # instead of the config of the workdir
    monkeypatch.setattr("sys.argv", line)  # where ml_collections finds the fields of the config
    rest = values(line)
    assert rest[1:] == []
    assert values.config.seed == 0
    assert values.workdir or values.runs
    assert (values.mode or "train") in modes.MODES


def test_its_links_and_figures_exist():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert len(targets) > 5
    for target in targets:
        assert (README.parent / target).exists(), target
