"""The Python of the tutorial pages prints what the pages state, and their equations are written as GitHub renders them."""

import importlib.util
import pathlib
import re

import jax
import pytest
from markdown_it import MarkdownIt

import ddpm_jax
from tests.test_api import TINY

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGES = ("how-ddpm-works.md", "ddpm-details.md", "exercises.md")
# A network that was trained for four steps replaces that of `make demo`, and is sampled in fewer steps.
RUN = TINY | {"diffusion.num_timesteps": 1000, "diffusion.schedule": "cosine"}
FASTER = {
    "num_steps=250": "num_steps=3",
    "(10, 20, 50)": "(4, 4, 4)",
    "num_steps=50": "num_steps=4",
    "(1000, 50,": "(1000, 10,",
}
NUMBER = re.compile(r"-?\d[\d.e-]*")


@pytest.fixture
def page_blocks():
    spec = importlib.util.spec_from_file_location("page_blocks", DOCS / "page_blocks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def session(tmp_path, monkeypatch):
    """An empty folder and JAX as a user has it: broadcasting without complaint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("page", ["how-ddpm-works.md", "ddpm-details.md"])
def test_outputs_of_the_pages(page_blocks, session, page):
    executed = list(page_blocks.execute((DOCS / page).read_text(), page))
    assert len(executed) == {"how-ddpm-works.md": 6, "ddpm-details.md": 2}[page]
    for block in executed:
        assert block.printed == (block.stated or ""), block.code


@pytest.mark.slow
def test_outputs_of_the_exercises(page_blocks, session):
    """Exactly, where no trained network is used; else the same lines with other numbers."""
    config = ddpm_jax.get_config("digits")
    config.update_from_flattened_dict(RUN)
    ddpm_jax.train(config, "runs/digits")
    text = (DOCS / "exercises.md").read_text()
    assert len(re.findall(r"^## \d+\. ", text, re.MULTILINE)) == len(re.findall("<details>", text)) == 10
    assert all(slow in text for slow in FASTER)

    def faster(code):
        for slow, fast in FASTER.items():
            code = code.replace(slow, fast)
        return code

    executed = list(page_blocks.execute(text, "exercises.md", faster))
    with_run = [block for block in executed if "run." in block.code or "network(" in block.code]
    assert (len(executed), len(with_run)) == (13, 3)
    for block in executed:
        stated, printed = block.stated or "", block.printed
        if block in with_run:
            stated, printed = (re.sub(r"DDIM in \d+", "DDIM in", lines) for lines in (stated, printed))
            stated, printed = NUMBER.sub("#", stated), NUMBER.sub("#", printed).replace("nan", "#")
        assert printed == stated, block.code
    assert pathlib.Path("runs/exercise_1.png").exists()


def test_a_wrong_output_is_found_and_updated(page_blocks, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("A\n\n```python\nx = 1\n```\n\nB\n\n```python\nprint(x + 1)\n```\n\n```text\n3\n```\n\nC\n")
    monkeypatch.setattr("sys.argv", ["page_blocks.py", str(page)])
    assert page_blocks.main() == 1
    assert "print(x + 1)" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["page_blocks.py", "--update", str(page)])
    assert page_blocks.main() == 0
    assert page.read_text() == "A\n\n```python\nx = 1\n```\n\nB\n\n```python\nprint(x + 1)\n```\n\n```text\n2\n```\n\nC\n"
    monkeypatch.setattr("sys.argv", ["page_blocks.py", str(page)])
    assert page_blocks.main() == 0


def equations(text):
    """The equations of a page, `$$` blocks and those in the text, and the page without them and without code."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    pattern = re.compile(r"^\$\$\n.*?\n\$\$$|\$[^$\n]+\$", re.DOTALL | re.MULTILINE)
    return pattern.findall(text), pattern.sub("", text)


def damaged_equations(text):
    """Those that a Markdown parser that does not know equations changes: \\{ loses its backslash, _a_ becomes italic."""
    shown = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for part in token.children or ():
            shown += {"text": part.content, "softbreak": "\n"}.get(part.type, "\0")
        shown += "\0"
    return [equation for equation in equations(text)[0] if equation not in shown]


@pytest.mark.parametrize("page", PAGES)
def test_equations_survive_markdown(page):
    text = (DOCS / page).read_text()
    found, rest = equations(text)
    assert len(found) > 30
    assert "$" not in rest
    assert not damaged_equations(text)
    for equation in found:
        assert "boldsymbol" not in equation  # GitHub shows it as text
        assert equation.count("{") == equation.count("}"), equation


def test_damaged_equations_are_found():
    good = "a $x_t$ and $\\hat x_{t}$ `$code$` b\n\n$$\ny_{t} = x_t\n$$\n\n```sh\necho $HOME\n```\n"
    assert equations(good)[0] == ["$x_t$", "$\\hat x_{t}$", "$$\ny_{t} = x_t\n$$"]
    assert "$" not in equations(good)[1]
    assert not damaged_equations(good)
    assert damaged_equations("set $\\{x\\}$\n") == ["$\\{x\\}$"]
    assert len(damaged_equations("$\\hat{x}_t$ and $y_{t}$\n")) == 2
