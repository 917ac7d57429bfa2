"""The built wheel: its files and metadata, and the program installed from it, used from another folder."""

import ast
import email
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ddpm_jax
from ddpm_jax import configs
from ddpm_jax.plotting.explorer import page as explorer

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "ddpm_jax", "configs", "tests")
TINY = (
    "model.unet.ch=8",
    "model.unet.ch_mult=(1,)",
    "model.unet.attn_resolutions=()",
    "train.num_steps=2",
    "train.batch_size=8",
)
TINY += ("train.log_every=1", "train.sample_every=0", "sampling.num_steps=2", "sampling.batch_size=4")


def pip(*arguments, cwd):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, repository):
    """A wheel, built of a copy: setuptools writes into the folder of the sources."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
        else:
            shutil.copy(repository / name, sources / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={out}", ".", cwd=sources)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--no-compile", f"--target={folder}", str(wheel), cwd=folder)
    return folder


@pytest.fixture
def start(installed, tmp_path, repository, compiled_fast):
    """(command, *flags) -> stdout and stderr of the installed program, started in another folder."""
    environment = os.environ | {"PYTHONPATH": str(installed), "XLA_FLAGS": compiled_fast, "JAX_PLATFORMS": "cpu"}

    def run(command, *flags, code=0):
        line = [*command, *flags]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert str(repository / "ddpm_jax") not in done.stderr
        return done.stdout, done.stderr

    return run


@pytest.mark.slow
def test_its_files(wheel, repository):
    """All modules and configs, the sources of the explorer, py.typed and the license; no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        extra = {name.partition(".dist-info/")[2] for name in archive.namelist()} - {""}
    modules = {str(file.relative_to(repository)) for file in (repository / "ddpm_jax").rglob("*.py")}
    experiments = {f"ddpm_jax/configs/{file.name}" for file in (repository / "configs").glob("*.py")}
    page = {f"ddpm_jax/plotting/explorer/{name}" for name in (*explorer.SCRIPTS, "index.html", "style.css")}
    assert names == modules | experiments | page | {"ddpm_jax/interop/onnx_networks.js", "ddpm_jax/py.typed"}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= extra


@pytest.mark.slow
def test_its_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        text = email.message_from_string(archive.read(file).decode())
    assert (text["Name"], text["Version"]) == ("ddpm-jax", ddpm_jax.__version__)
    assert text["License-Expression"] == "Apache-2.0"
    assert text.get_payload().startswith("# ddpm_jax")
    assert {"tensorboard", "wandb", "tfds", "cuda12", "cuda13", "tpu", "dev"} <= set(text.get_all("Provides-Extra"))
    base = [line for line in text.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("jax>=") for line in base)
    assert not [line for line in base if line.startswith("tensor")]


@pytest.mark.slow
def test_it_trains_and_samples_from_another_folder(start, tmp_path, repository):
    """By module, by the installed command and by the name of a config, without any file of the repository."""
    module = [sys.executable, "-m", "ddpm_jax"]
    shared = [f"--compilation_cache={repository / '.cache' / 'xla'}", *(f"--config.{field}" for field in TINY)]
    _, log = start(module, "--config=digits", "--workdir=run", *shared)
    assert "-m ddpm_jax --workdir=run --mode=sample" in log
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["name"] == "digits"
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    start(module, "--workdir=run", "--mode=sample", *shared[:1], "--config.sampling.num_images=3", "--output=images")
    assert (tmp_path / "images" / "grid.png").exists()


@pytest.mark.slow
def test_its_python_interface(start, repository):
    fields = {name: ast.literal_eval(value) for name, _, value in (field.partition("=") for field in TINY)}
    program = (
        f"import jax, ddpm_jax\njax.config.update('jax_compilation_cache_dir', {str(repository / '.cache' / 'xla')!r})\n"
        f"config = ddpm_jax.get_config('digits')\nconfig.update_from_flattened_dict({fields})\n"
        "ddpm_jax.train(config, 'run')\nprint(ddpm_jax.load('run').sample(3, label='3').images.shape)"
    )
    assert start([sys.executable, "-c", program]) == ("(3, 8, 8, 1)\n", "")


@pytest.mark.slow
def test_the_command_and_a_config_of_a_user(start, installed, tmp_path):
    command = [sys.executable, str(installed / "bin" / "ddpm-jax")]
    assert start(command, "--version")[0] == f"ddpm_jax {ddpm_jax.__version__}\n"
    text, _ = start(command, "--help")
    assert str(installed / "ddpm_jax" / "configs" / "defaults.py") in text
    assert all(name in text for name in configs.names())
    (tmp_path / "own.py").write_text(
        "from ddpm_jax.configs import digits\n\ndef get_config():\n    config = digits.get_config()\n"
        "    config.data.name = 'digitz'\n    return config\n"
    )
    _, log = start(command, "--config=own.py", "--workdir=run", "--config.train.num_steps=x", code=2)
    assert log == "error: flag --config.train.num_steps=x: 'x' is not an integer\n"
    _, log = start(command, "--config=configs/digits.py", "--workdir=run", code=2)
    assert log == "error: --config=configs/digits.py: no such file; did you mean --config=digits?\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.py"]


def test_the_pinned_versions_are_in_the_ranges(repository):
    """requirements.txt and requirements-test.txt have a version of everything that the base and the extra dev need."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = {}
    for name in ("requirements.txt", "requirements-test.txt"):
        lines = [line.partition("#")[0].strip() for line in (repository / name).read_text().splitlines()]
        for pin in (Requirement(line) for line in lines if line and not line.startswith("-r")):
            pins.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    by_others = {"etils", "scipy"}  # jax and orbax require them, and requirements.txt leaves their versions to pip
    dev = [line for line in extras["dev"] if not line.startswith("ddpm-jax")]
    for line in (*project["dependencies"], *extras["tensorboard"], *extras["tfds"], *dev):
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        assert name in pins or name in by_others, name
        assert all(wanted.specifier.contains(version) for version in pins.get(name, ())), line
