"""Messages for users: arguments become fields, ValueErrors become usage errors, log lines are plain."""

import io
import logging
import sys

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from ddpm_jax import user_messages
from ddpm_jax.configs import defaults
from ddpm_jax.runtime import errors, progress

CONFIG = defaults.get_config().to_dict()


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("`channels` is 2: it must be 1", "config.data.channels is 2: it must be 1"),
        ("train without them: `on_decode_error='skip'`", "train without them: --config.data.on_decode_error=skip"),
        ("such as `levels=(0,4095)`", "such as --config.data.value_range='(0,4095)'"),
        ("`folder=PATH`", "--config.data.data_dir=PATH"),
        ("set `rtol` to more", "set config.evaluation.ode_tolerance to more"),
        ("`batch_size` is 3", "config.train.batch_size is 3"),  # a field of several sections
        ("`seed` is -1", "config.seed is -1"),  # a top-level field
        ("choose another `workdir`, or `output=x`", "choose another --workdir, or --output=x"),  # flags of their own
        ("`num_steps` and `nothing` and `train`",) * 2,  # a field of two sections, of none, and a section
    ],
)
def test_arguments_become_fields(message, line):
    assert user_messages.name_fields(message, CONFIG) == line


def test_every_field_of_an_argument_exists():
    for path in user_messages._FIELDS.values():
        section, name = path.split(".")
        assert name in CONFIG[section]


def test_a_value_error_names_its_section_once():
    def build():
        with user_messages.config_errors("diffusion"):
            raise ValueError("no such schedule")

    with (
        pytest.raises(user_messages.UsageError, match=r"^config\.diffusion: no such schedule$") as caught,
        user_messages.config_errors("x"),
    ):
        build()
    assert isinstance(caught.value, ValueError)  # for callers of `build`
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", [TypeError, KeyError, RuntimeError, errors.ConflictError])
def test_other_errors_pass(kind):
    with pytest.raises(kind), user_messages.config_errors("sampling"):
        raise kind("x")


def test_every_error_of_the_library_is_a_standard_one():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ExpectedError)]
    ours = [kind for kind in kinds if kind is not errors.ExpectedError]
    assert len(ours) >= 8
    for kind in ours:
        assert issubclass(kind, (ValueError, OSError, RuntimeError))
        assert str(kind("one line")) == "one line"
        assert kind.exit_code == (2 if kind is errors.InvalidArgumentError else 1)


def test_log_lines_are_plain_on_stderr_and_name_fields(printed_log, capsys):
    logging.getLogger("ddpm_jax.data").info("5% of `folder`")
    logging.getLogger("ddpm_jax.data").warning("warning: check `folder`")
    logging.getLogger("ddpm_jax").debug("nothing")
    assert capsys.readouterr() == ("", "5% of config.data.data_dir\nwarning: check config.data.data_dir\n")


def test_log_lines_are_printed_once_after_configuring_twice(printed_log, capsys):
    user_messages.configure_logging(CONFIG)
    logging.getLogger("ddpm_jax").info("once")
    assert capsys.readouterr().err == "once\n"


@pytest.mark.parametrize(("index", "line"), [(0, "here\n"), (1, "")])
def test_only_the_first_process_of_a_job_logs(printed_log, capsys, monkeypatch, index, line):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    logging.getLogger("ddpm_jax").info("here")
    assert capsys.readouterr().err == line


def test_a_log_line_clears_the_status_line_of_a_terminal(printed_log, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with progress.Progress(10, out=out) as bar:
        bar.update(1)
        logging.getLogger("ddpm_jax").info("a note")
        bar.update(10)
    logging.getLogger("ddpm_jax").info("after it")
    first, note, last = out.getvalue().replace("\r\x1b[K", "\r").split("\r")[1:]
    assert first.startswith("1 / 10 images")
    assert note == "a note\n"
    assert last.startswith("10 / 10 images")
    assert capsys.readouterr().err == "after it\n"


def parse(argv):
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", defaults.get_config(), flag_values=values)
    values(argv)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("optimizer.learning_rat=1", "the config has no field 'learning_rat': did you mean 'learning_rate'?"),
        ("optimizer.lr=1", "the config has no field 'lr': configs/defaults.py lists all fields"),
        ("optim.lr=1", "the config has no field 'optim': configs/defaults.py lists all fields"),
        ("train.batch_size=x", "flag --config.train.batch_size=x: 'x' is not an integer"),
        ("train.batch_size=1.5", "flag --config.train.batch_size=1.5: '1.5' is not an integer"),
        ("optimizer.learning_rate=x", "flag --config.optimizer.learning_rate=x: 'x' is not a number"),
        ("data.random_flip=x", "flag --config.data.random_flip=x: 'x' is neither true nor false"),
        (
            "model.unet.ch_mult=(1,",
            "flag --config.model.unet.ch_mult=(1,: (1, is not a list: write it as '(1,2)', quotes included",
        ),
    ],
)
def test_each_kind_of_wrong_value(flag, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", f"--config.{flag}"])  # ml_collections finds the fields to define there
    with pytest.raises((flags.Error, TypeError, ValueError, KeyError, AttributeError)) as caught:
        parse(sys.argv)
    assert user_messages.format_flag_error(caught.value) == expected


def test_other_errors_are_kept_in_one_line():
    assert user_messages.format_flag_error(ValueError("one\n  two")) == "one two"
