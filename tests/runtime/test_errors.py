"""What libraries say of a wrong flag, said to a person. That main.py says it: tests/cli/test_main.py."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import defaults
from ddpm_jax.runtime.errors import FileAccessError, error_line, format_flag_error, os_errors


def parse(argv):
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", defaults.get_config(), flag_values=values)
    values(argv)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("optimizer.learning_rat=1", "the config has no field 'learning_rat': did you mean 'learning_rate'?"),
        ("optimizer.lr=1", "the config has no field 'lr': configs/defaults.py lists them all"),
        ("optim.lr=1", "the config has no field 'optim': configs/defaults.py lists them all"),
        ("train.batch_size=x", "flag --config.train.batch_size=x: 'x' is no whole number"),
        ("train.batch_size=1.5", "flag --config.train.batch_size=1.5: '1.5' is no whole number"),
        ("optimizer.learning_rate=x", "flag --config.optimizer.learning_rate=x: 'x' is no number"),
        ("train.tensorboard=x", "flag --config.train.tensorboard=x: 'x' is neither true nor false"),
        ("model.ch_mult=(1,", "flag --config.model.ch_mult=(1,: (1, is no list: write it as '(1,2)', quotes included"),
    ],
)
def test_each_kind_of_wrong_value(flag, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", f"--config.{flag}"])  # ml_collections looks there for fields to define
    with pytest.raises((flags.Error, TypeError, ValueError, KeyError, AttributeError)) as caught:
        parse(sys.argv)
    assert format_flag_error(caught.value) == said


def test_anything_else_stays_but_in_one_line():
    assert format_flag_error(ValueError("one\n  two")) == "one two"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "permission denied"),
        (OSError("no number"), "no number"),
        (ValueError("one\n  two"), "one two"),
        (EOFError(), "EOFError"),
        (ValueError("UNKNOWN: ... [os_error_code='28'] writing /a"), "no space left on device"),
        (ValueError("x" * 200), "x" * 157 + "..."),
        ("not known", "not known"),  # the reason of a URLError may be a text
    ],
)
def test_an_error_in_one_line(error, line):
    assert error_line(error) == line


def test_the_line_of_an_error_of_others_says_all_of_it():
    assert error_line(KeyError("x"), kind=True) == "KeyError: 'x'"
    assert error_line(EOFError(), kind=True) == "EOFError"
    assert error_line(PermissionError(13, "Permission denied", "/a/b"), kind=True).endswith("Permission denied: '/a/b'")
    assert error_line(ValueError("y" * 50), kind=True, most=20) == "ValueError: yyyyy..."


def test_a_system_error_becomes_one_line_and_others_pass():
    match = r"^cannot write /a: no space left on device; go elsewhere$"
    with pytest.raises(FileAccessError, match=match), os_errors("cannot write /a", "; go elsewhere"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileAccessError, match=r"^first$"), os_errors("second"):
        raise FileAccessError("first")
    with pytest.raises(ValueError, match="third"), os_errors("second"):
        raise ValueError("third")
