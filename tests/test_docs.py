"""Pages of docs/: their links and pictures exist, and so do the functions that they name."""

import importlib
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
ROOMS = {
    **dict.fromkeys(("schedules", "diffusion", "losses", "likelihood", "bound", "weightings", "timesteps"), "ddpm_jax.process"),
    **dict.fromkeys(
        ("ddim", "dpmpp", "unipc", "heun", "ode", "inversion", "guidance", "repaint", "sampler"), "ddpm_jax.samplers"
    ),
}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_named_functions_exist(page):
    for room, name in re.findall(r"`(\w+)\.(\w+)`", page.read_text()):
        if room in ROOMS and name not in ("py", "md"):
            module = importlib.import_module(f"{ROOMS[room]}.{room}")
            assert hasattr(module, name), f"{room}.{name}"


def test_there_is_a_name_to_check():
    assert len(re.findall(r"`diffusion\.\w+`", (DOCS / "how-ddpm-works.md").read_text())) > 10
