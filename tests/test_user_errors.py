"""The library's words in the user's: arguments become fields, ValueErrors become usage errors."""

import pytest

from configs import defaults
from ddpm_jax import user_errors
from ddpm_jax.runtime import errors

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
        ("`seed` is -1", "config.seed is -1"),  # one of no section, and one of a section
        ("`num_steps` and `nothing` and `data`", "`num_steps` and `nothing` and `data`"),  # of two sections, of none, a section
    ],
)
def test_arguments_become_fields(message, line):
    assert user_errors.name_fields(message, CONFIG) == line


def test_every_field_that_an_argument_stands_for_exists():
    for path in user_errors._FIELDS.values():
        section, name = path.split(".")
        assert name in CONFIG[section]


def test_a_value_error_names_its_section_once():
    def build():
        with user_errors.config_errors("diffusion"):
            raise ValueError("no such schedule")

    with (
        pytest.raises(errors.UsageError, match=r"^config\.diffusion: no such schedule$") as caught,
        user_errors.config_errors("x"),
    ):
        build()
    assert isinstance(caught.value, ValueError)  # for callers of `build`
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", [TypeError, KeyError, RuntimeError, errors.ConflictError])
def test_other_errors_pass(kind):
    with pytest.raises(kind), user_errors.config_errors("sampling"):
        raise kind("x")


def test_every_error_of_the_library_is_a_standard_one():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ExpectedError)]
    ours = [kind for kind in kinds if kind not in (errors.ExpectedError, errors.UserError)]
    assert len(ours) >= 8
    for kind in ours:
        assert issubclass(kind, (ValueError, OSError, RuntimeError))
        assert str(kind("one line")) == "one line"
        assert kind.exit_code == (2 if kind in (errors.InvalidArgumentError, errors.UsageError) else 1)
