"""From the library's words to the user's: errors and log lines that name the fields of the config."""

import contextlib
import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddpm_jax.runtime.errors import ExpectedError
from ddpm_jax.runtime.progress import LineHandler

# Arguments that are called otherwise than their fields, or as several fields are.
_FIELDS = {
    "batch_size": "train.batch_size",
    "folder": "data.data_dir",
    "levels": "data.value_range",
    "rtol": "evaluation.ode_tolerance",
    "split": "data.split",
}
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")

# What absl, ml_collections and Python say of a wrong value, and the same in words.
_FLAG_ERROR_REWRITES = (
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number"),
    (r"could not convert string to float: (.*)", r"\1 is no number"),
    (r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither true nor false"),
    (r"Overriding (\S+) is not allowed.*", r"\1 is a section: set one of its fields, such as --\1.FIELD=VALUE"),
    (r"Found (\S+) in argv before a value for --config was specified", r"\1 comes before --config: put --config=FILE first"),
    (r"Error while parsing string: (.*) as tuple\..*", r"\1 is no list: write it as '(1,2)', quotes included"),
)


class UserError(ExpectedError):
    """Raised by the command line: something outside the program is wrong."""


class UsageError(UserError, ValueError):
    """Raised by the command line: a flag or a field of the config is wrong."""

    exit_code = 2


@contextlib.contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Context in which the library is given values of a config: its ValueErrors become one line that names the field.

    Around calls that only check and keep their arguments: a ValueError of other work may be a bug.

    Args:
      where: what the line begins with: a section or a field, such as "diffusion" or "sampling.params is 'x'".

    Raises:
      UsageError: "config.WHERE: " and the message. One that names a field already stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UsageError(f"config.{where}: {error}") from error


def name_fields(text: str, config: Mapping[str, Any]) -> str:
    """Replaces arguments in backquotes by fields: `channels` -> config.data.channels, `order=2` -> --config.sampling.order=2.

    Args:
      text: of an error or a log line.
      config: sections by name, each with its fields. A name that is not a field of exactly one section stays as it is.
    """

    def field(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        sections = [section for section, fields in config.items() if isinstance(fields, Mapping) and name in fields]
        if name in _FIELDS:
            path = _FIELDS[name]
        elif name in config and not isinstance(config[name], Mapping):
            path = name
        elif len(sections) == 1:
            path = f"{sections[0]}.{name}"
        else:
            return match[0]
        if value is None:
            return f"config.{path}"
        return f"--config.{path}=" + (f"'{value}'" if value.startswith("(") else value.strip("'"))

    return _ARGUMENT.sub(field, text)


def configure_logging(config: Mapping[str, Any]) -> None:
    """Has the package's log lines printed on stderr by process 0, plain, with fields in place of arguments.

    Args:
      config: as `name_fields` takes it.
    """
    logger, handler = logging.getLogger("ddpm_jax"), LineHandler()
    handler.addFilter(_of_primary_process)
    handler.setFormatter(_FieldFormatter(config))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl prints what reaches the root logger, with a prefix


class _FieldFormatter(logging.Formatter):
    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self._config = config

    def format(self, record: logging.LogRecord) -> str:
        return name_fields(super().format(record), self._config)


def _of_primary_process(record: logging.LogRecord) -> bool:
    import jax  # only now: the command line is parsed without it

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def format_flag_error(error: Exception) -> str:
    """One line of what absl or ml_collections raised over the command line."""
    if isinstance(error, KeyError | AttributeError):  # no such field; the inner text is the repr of a KeyError, hint and all
        text = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'")
        if found := re.search(r"Attempting to lookup: ([\w.]+)", text):  # a field of a number
            name, _, rest = found[1].rpartition(".")
            return f"config.{name} is one value and has no field {rest!r}: write --config.{name}=VALUE"
        field, _, hint = text.partition("\n")
        if found := re.search(r'Key "(.*?)" does not exist', field):
            field = found[1]
        name = field.removeprefix("KeyError(").strip("()\"'")
        return f"the config has no field {name!r}: " + (_hint(hint or text) or "configs/defaults.py lists them all")
    line = " ".join(str(error).split())
    for saying, words in _FLAG_ERROR_REWRITES:
        line = re.sub(saying, words, line)
    return line


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """A question about the nearest of `names`, or ""."""
    found = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {found[0]!r}?" if found else ""


def _hint(text: str) -> str:
    found = re.search(r'Did you mean "(.*?)"', text)
    return f"did you mean {found[1]!r}?" if found else ""
