"""README, CONTRIBUTING and docs/: links, figures, and named functions, fields, modes and files exist."""

import functools
import importlib
import pathlib
import pkgutil
import re

import pytest
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax import choices
from ddpm_jax.configs import defaults

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CONFIG = defaults.get_config()
SECTIONS = {name: section for name, section in CONFIG.items() if isinstance(section, ConfigDict)}
FIELDS = {f"{name}.{field}" for name, section in SECTIONS.items() for field in section}
OTHER_MODULES = {
    "lax": "jax.lax",
    "np": "numpy",
    "jnp": "jax.numpy",
    "jax": "jax",
    "nn": "flax.linen",
    "optax": "optax",
    "ddpm_jax": "ddpm_jax",
}  # whose functions pages may name
SOURCES = (".py", ".md", ".ipynb", ".toml", ".yaml")  # files of the repository; the program may write others
WRITTEN = (
    ".json",
    ".lock",
    ".jsonl",
    ".txt",
    ".npz",
    ".npy",
    ".png",
    ".webp",
    ".html",
    ".pth",
    ".safetensors",
    ".bin",
    ".onnx",
    ".pt",
)  # files that the program may write
WRITTEN_IN = ("eval", "samples", "checkpoints")  # folders of a workdir

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@functools.cache
def modules():
    """Last name -> full names of the modules of the package."""
    found = {}
    for module in pkgutil.walk_packages(ddpm_jax.__path__, "ddpm_jax."):
        found.setdefault(module.name.rpartition(".")[2], []).append(module.name)
    return found


@functools.cache
def words_of_the_sources():
    """Every word in the Python files: names of functions and arrays, values of fields, flags."""
    files = [REPOSITORY / "main.py"]
    for folder in ("ddpm_jax", "configs", "benchmarks"):
        files += (REPOSITORY / folder).rglob("*.py")
    return {word for file in files for word in re.findall(r"\w+", file.read_text())}


def in_backticks(text):
    """The text in backticks outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def names(text):
    """(name, whether it exists) for every function, config field and file in a page."""
    for name in re.findall(r"\bconfig\.(\w+(?:\.\w+)*)", text):  # also in code blocks: --config.ema.decay=0.99
        if name not in ("json", "to_dict"):
            yield f"config.{name}", is_field(name)
    for quoted in in_backticks(text):
        if re.match(r"config\.\w+", quoted) and quoted != "config.json":
            continue  # a field, checked above
        path = re.fullmatch(r"[\w./-]+(\.\w+)", quoted)
        if path and path[1] in SOURCES:
            yield quoted, is_file(quoted) or quoted.split("/")[0] in WRITTEN_IN
        elif match := re.fullmatch(r"(?:(\w+)/)?(\w+)\.(\w+)(=.*)?", quoted):
            if f".{match[3]}" in WRITTEN:
                continue
            yield quoted, f"{match[2]}.{match[3]}" in FIELDS or (not match[4] and is_attribute(match[2], match[3]))
        elif match := re.fullmatch(r"([a-z]\w*)=(?!=).*", quoted):
            yield quoted, any(match[1] in section for section in SECTIONS.values())
        elif re.fullmatch(r"\w*[a-z]_[a-z]\w*", quoted):
            yield quoted, quoted in words_of_the_sources() or hasattr(multihost_utils, quoted)


def is_field(name):
    """Whether the config has this field or section; a free section has every field."""
    section = CONFIG
    for part in name.split("."):
        if choices.is_free(name.rpartition(".")[0]):
            return True
        if not isinstance(section, ConfigDict) or part not in section:
            return False
        section = section[part]
    return True


def is_file(path):
    """Whether the file exists in the repository, in the package, or (a bare name) anywhere in the package."""
    if "/" in path:
        return any((root / path).is_file() for root in (REPOSITORY, REPOSITORY / "ddpm_jax", REPOSITORY / "docs"))
    return (REPOSITORY / path).is_file() or any(any((REPOSITORY / folder).rglob(path)) for folder in ("ddpm_jax", "docs"))


def is_attribute(module, name):
    """Whether a module of that name in the package (or of OTHER_MODULES), or a class in it, has this attribute."""
    candidates = modules().get(module, []) + ([OTHER_MODULES[module]] if module in OTHER_MODULES else [])
    return any(hasattr(importlib.import_module(full), name) for full in candidates)


def modes(text):
    return set(re.findall(r"--mode=(\w+)", text))


@each_page
def test_links_and_figures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@each_page
def test_named_things_exist(page):
    found = dict(names(page.read_text()))
    assert found, "no function, field or file is named here: the names are not in backticks"
    assert not [name for name, exists in found.items() if not exists]


@each_page
def test_modes_exist(page):
    from ddpm_jax.cli import modes as table

    assert modes(page.read_text()) <= set(table.MODES)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`gaussian.q_sample`, `vlb.prior_bpd`, `posthoc_ema.solve_posthoc_weights`, `lax.scan`", []),
        ("`gaussian.q_simple`", ["gaussian.q_simple"]),
        ("`ode_likelihood.no_density`", ["ode_likelihood.no_density"]),
        ("`no_module.q_sample`", ["no_module.q_sample"]),
        ("`lax.scan`, `jax.jit`, `lax.scam`", ["lax.scam"]),
        ("`evaluation.max_features`, `sampling.params=ema`, `evaluation.kept_fetures`", ["evaluation.kept_fetures"]),
        ("`prediction=eps`, `predicktion=eps`", ["predicktion=eps"]),
        ("--config.ema.decay=0.99 --config.seed=1 --config.ema.decays_=1", ["config.ema.decays_"]),
        ("```sh\npython main.py --config.train.steps=1\n```", ["config.train.steps"]),
        ("`config.sampling`, config.seed, config.simpling", ["config.simpling"]),
        ("`losses.py`, `models/layers.py`, `tests/test_docs.py`, `layers/losses.py`", ["layers/losses.py"]),
        ("`posterior_mean_coef1`, `fixed_large`, `eval/table.md`, `posterior_coef1`", ["posterior_coef1"]),
        ("`config.json`, `metrics.jsonl`, `nothing.py`", ["nothing.py"]),
    ],
)
def test_a_wrong_name_is_found(text, wrong):
    found = dict(names(text))
    assert [name for name, exists in found.items() if not exists] == wrong
    assert len(found) > len(wrong) or len(found) == len(wrong) == 1


def test_the_tutorial_names_many():
    assert len([name for name, _ in names((REPOSITORY / "docs" / "how-ddpm-works.md").read_text())]) > 40
