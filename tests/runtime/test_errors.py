"""What libraries say of a wrong flag, said to a person. That main.py says it: tests/cli/test_main.py."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import defaults
from ddpm_jax.runtime.errors import format_flag_error


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
