"""The documentation site and the files that GitHub reads: every page is listed, and workflows call what exists."""

import inspect
import pathlib
import re
import runpy
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml

import ddpm_jax

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
INDEX = (DOCS / "index.md").read_text()
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture
def run_file(monkeypatch):
    """Runs a file of docs/ and returns its names; restores sys.path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda name: runpy.run_path(str(DOCS / name))


def toctree_pages(repository_pages):
    """The pages of the toctrees of index.md in order, as files relative to docs/; pages that are copies by their original."""
    originals = {pathlib.PurePath(page).with_suffix("").as_posix(): f"../{file}" for file, page in repository_pages.items()}
    pages = []
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", INDEX, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                name = re.sub(r".*<(.+)>$", r"\1", line)
                pages.append(originals.get(name, f"{name}.md"))
    return pages


def test_every_page_is_listed_and_in_the_toctree(run_file):
    repository_pages = run_file("conf.py")["repository_pages"]
    pages = toctree_pages(repository_pages)
    listed = re.findall(r"^- \[[^\]]*\]\(([^)]+)\)", INDEX, re.MULTILINE)
    assert pages == listed
    assert sorted(pages) == sorted(
        [page.name for page in DOCS.glob("*.md") if page.name != "index.md"] + [f"../{file}" for file in repository_pages]
    )
    assert all((DOCS / page).is_file() for page in pages)


@pytest.mark.parametrize(
    ("link", "in_readme", "in_page"),
    [
        ("[a](docs/pods.md#x)", "[a](../pods.md#x)", "[a](docs/pods.md#x)"),
        ("![a](docs/images/chain.png)", "![a](../images/chain.png)", "![a](docs/images/chain.png)"),
        ("[`a`](configs/digits.py)", "[`a`](../../configs/digits.py)", "[`a`](configs/digits.py)"),
        ("[a](CONTRIBUTING.md)", "[a](contributing.md)", "[a](CONTRIBUTING.md)"),
        ("[a](../CONTRIBUTING.md)", "[a](../../../CONTRIBUTING.md)", "[a](generated/contributing.md)"),
        ("[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("[a](#part)", "[a](#part)", "[a](#part)"),
    ],
)
def test_links_point_to_the_same_file_on_the_site(run_file, link, in_readme, in_page):
    rewrite_links = run_file("_extensions/repository_files.py")["rewrite_links"]
    moved = {REPOSITORY / name: DOCS / "generated" / f"{name.removesuffix('.md').lower()}.md" for name in ("CONTRIBUTING.md",)}
    assert rewrite_links(link, REPOSITORY / "README.md", DOCS / "generated" / "readme.md", moved) == in_readme
    assert rewrite_links(link, DOCS / "pods.md", DOCS / "pods.md", moved) == in_page


def test_the_pages_are_regenerated_when_a_module_is_removed(run_file, tmp_path):
    for file in ("ddpm_jax/__init__.py", "ddpm_jax/models/__init__.py", "ddpm_jax/models/unet.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    pages = tmp_path / "docs" / "generated" / "api"
    pages.mkdir(parents=True)
    for module in ("ddpm_jax", "ddpm_jax.models", "ddpm_jax.models.unet"):
        (pages / f"{module}.rst").touch()
    remove_old_pages = run_file("_extensions/api_docstrings.py")["remove_old_pages"]
    app = SimpleNamespace(srcdir=tmp_path / "docs")
    remove_old_pages(app)
    assert len(list(pages.iterdir())) == 3
    (tmp_path / "ddpm_jax" / "models" / "unet.py").rename(tmp_path / "ddpm_jax" / "models" / "u_net.py")
    remove_old_pages(app)
    assert not list(pages.iterdir())


def test_equations_in_docstrings_become_code_and_sections_are_kept(run_file):
    def documented():
        """A sum.

            |a + b|

        (34) has the rest.

        Args:
          a: a number,
            continued.
        """

    lines = inspect.getdoc(documented).splitlines()
    run_file("_extensions/api_docstrings.py")["keep_equations"](None, "function", "", documented, None, lines)
    assert lines[:8] == ["A sum.", "", "::", "", "    |a + b|", "", "\\(34) has the rest.", ""]
    assert lines[8:] == ["Args:", "  a: a number,", "    continued."]


Alias = dict[str, list[int]]


class Fields(NamedTuple):
    """A class whose fields are its arguments."""

    table: Alias
    scale: float = 1.0

    def scaled(self, by: float, *, table: Alias | None = None) -> Alias:
        """A method."""

    @staticmethod
    def empty(size: int) -> Alias:
        """A function in a class."""


@pytest.mark.parametrize(
    ("what", "obj", "expected"),
    [
        ("class", Fields, ("(table: Alias, scale: float = 1.0)", None)),
        ("method", Fields.scaled, ("(by: float, *, table: Alias | None=None)", "Alias")),
        ("method", Fields.empty, ("(size: int)", "Alias")),
        ("class", KeyError, None),
    ],
)
def test_signatures_are_those_of_the_source(run_file, what, obj, expected):
    signature_of_source = run_file("_extensions/api_docstrings.py")["signature_of_source"]
    assert signature_of_source(None, what, obj.__qualname__, obj, None, "(...)", None) == expected


def test_the_citation_has_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == ddpm_jax.__version__
    assert citation["cff-version"] == "1.2.0"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_call_targets_that_exist(file):
    workflow = yaml.safe_load(file.read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        program, *arguments = command.split()
        if program == "make":
            assert set(arguments) <= TARGETS, command
        elif not program.startswith(".venv"):
            assert (REPOSITORY / program).is_file(), command


@pytest.mark.parametrize("file", sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda file: file.name)
def test_issue_templates_can_be_parsed(file):
    template = yaml.safe_load(file.read_text())
    assert file.name == "config.yml" or {"name", "description", "body"} <= set(template)
