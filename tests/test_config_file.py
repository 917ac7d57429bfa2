"""--config: names of shipped configs, paths, and the hint for a wrong one."""

import importlib
import json
import pathlib
import sys

import pytest

from ddpm_jax import config_file, configs
from ddpm_jax.configs import cifar10, defaults, digits, from_workdir
from ddpm_jax.runtime.errors import ConflictError
from ddpm_jax.user_messages import UsageError, UserError

OWN = """
from ddpm_jax.configs import digits

def get_config():
    config = digits.get_config()
    config.seed = 7
    return config
"""


@pytest.fixture(autouse=True)
def another_folder(tmp_path, monkeypatch):
    """As with an installed package: the current folder is not the repository."""
    monkeypatch.chdir(tmp_path)


def error_of(argument):
    with pytest.raises(UsageError) as caught:
        config_file.load(argument)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_is_a_shipped_config():
    assert config_file.load("digits") == digits.get_config()
    assert config_file.load("cifar10") == cifar10.get_config()


def test_every_shipped_config_has_a_name():
    assert {"digits", "cifar10", "image_folder"} <= set(configs.names())
    assert not {"defaults", "from_workdir", "__init__"} & set(configs.names())
    for name in configs.names():
        assert config_file.load(name) == importlib.import_module(f"ddpm_jax.configs.{name}").get_config()


def test_both_imports_are_the_files_of_the_repository(repository):
    assert pathlib.Path(defaults.__file__) == repository / "configs" / "defaults.py"


def test_a_file_of_the_same_name_needs_its_path(tmp_path):
    """A name without ending is the shipped config, whatever is in the current folder."""
    (tmp_path / "digits.py").write_text(OWN)
    (tmp_path / "cifar10").mkdir()
    assert config_file.load("digits").seed == 0
    assert config_file.load("cifar10").seed == 0
    for path in ("digits.py", "./digits.py", str(tmp_path / "digits.py")):
        assert config_file.load(path).seed == 7


def test_a_wrong_name_has_a_hint():
    assert error_of("digit") == "--config=digit: no such config; did you mean --config=digits?"
    assert error_of("cifar") == "--config=cifar: no such config; did you mean --config=cifar10?"
    assert error_of("configs/digit.py") == "--config=configs/digit.py: no such file; did you mean --config=digits?"
    nothing_near = error_of("x")
    assert nothing_near.startswith("--config=x: no such config; choose one of adm_imagenet64, ")
    assert nothing_near.endswith(", superres_fashion, or a file")


def test_a_file_without_its_ending_has_a_hint(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "own.py").write_text(OWN)
    assert error_of("own") == "--config=own: no such config; did you mean --config=own.py?"
    assert error_of("folder/own") == "--config=folder/own: no such file; did you mean --config=folder/own.py?"
    assert error_of("./folder") == "--config=./folder: a folder, not a file; did you mean --config=image_folder?"


def test_arguments_follow_a_name_or_a_path():
    assert error_of("digits:small") == "--config=digits:small: its get_config takes no argument: leave :small out"
    assert "write FILE.py:ARGUMENT" in error_of("from_workdir")


def test_an_import_that_works_in_a_clone_only_has_a_hint(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("import configs_of_another_project\n")
    assert "No module named 'configs_of_another_project'" in error_of("own.py")
    (tmp_path / "own.py").write_text("raise ModuleNotFoundError('No module named configs', name='configs')\n")
    assert error_of("own.py") == (
        "--config=own.py fails in line 1: there is no package configs: import the shipped configs from ddpm_jax.configs"
    )


def test_a_module_beside_the_file_can_be_imported(tmp_path):
    """From any current folder, in any folder, also after a change, and without a lasting change of sys.path."""
    before = list(sys.path)
    for folder, seed in (("a", 1), ("b", 2), ("a", 3)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "base_config.py").write_text(OWN.replace("7", f"{seed} + 0 * {'0' * seed}"))  # of another size
        (tmp_path / folder / "own.py").write_text(
            "import base_config\ndef get_config():\n    return base_config.get_config()\n"
        )
        assert config_file.load(f"{folder}/own.py").seed == seed
    (tmp_path / "a" / "own.py").write_text(
        "def get_config():\n    from base_config import get_config\n    return get_config()\n"
    )
    assert config_file.load("a/own.py").seed == 3
    assert sys.path == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.sampling.label = 'rose'", ""),
        ("config.model.unet.ch_mult = [1, 2]", ""),
        ("config.model.options.width = 3", ""),
        ("config.model.name = 'mlp'; config.model.mlp = ConfigDict({'width': 3})", ""),
        ("config.model.mlp = ConfigDict({'width': 3})", "sets config.model.mlp, which does not exist"),
        ("config.train.batch_size = None", "config.train.batch_size is None, but must be of the type int"),
        ("config.model.unet.channels = 3", "sets config.model.unet.channels, which does not exist"),
        ("config.sampling.options = ConfigDict()", "sets config.sampling.options, which does not exist"),
    ],
)
def test_fields_of_a_config_file_are_checked(tmp_path, line, message):
    """A section that is not in the defaults belongs to a registered part that the config chooses."""
    file = tmp_path / "own.py"
    head = "from ml_collections import ConfigDict\nfrom ddpm_jax.configs import digits\n\n\n"
    file.write_text(f"{head}def get_config():\n    config = digits.get_config()\n    {line}\n    return config\n")
    parser = config_file.ConfigFileParser(defaults.get_config())
    if not message:
        assert parser.parse(str(file)).is_locked
        return
    with pytest.raises(UserError) as caught:
        parser.parse(str(file))
    assert message in str(caught.value)


def test_a_run_of_an_older_version_gets_the_defaults_of_fields_that_are_not_used_in_training(tmp_path):
    saved = json.loads(digits.get_config().to_json())
    del saved["export"], saved["data"]["num_workers"], saved["visualize"]["animation"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert from_workdir.get_config(str(tmp_path)) == digits.get_config()
    del saved["data"]["random_flip"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ConflictError, match=r"config\.json was written by another version .*: it lacks data\.random_flip"):
        from_workdir.get_config(str(tmp_path))
