"""Converts errors and log lines of the library for the user, with config fields instead of arguments."""

import contextlib
import difflib
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ddpm_jax import configs
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError, InvalidDataError
from ddpm_jax.runtime.progress import LineHandler, show_status_lines

# Arguments whose names differ from their fields or match several fields.
_FIELDS = {
    "array_dtype": "data.dtype",
    "batch_size": "train.batch_size",
    "dtype": "model.dtype",
    "folder": "data.data_dir",
    "levels": "data.value_range",
    "rtol": "evaluation.ode_tolerance",
    "split": "data.split",
}
# Arguments that are flags of their own.
_FLAGS = (
    "workdir",
    "compilation_cache",
    "output",
    "runs",
    "resize",
    "profile",
    "target",
    "host",
    "port",
    "coordinator",
    "num_processes",
    "process_id",
)
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")

# Error messages of absl, ml_collections and Python, and readable replacements.
_FLAG_ERROR_REWRITES = (
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not an integer"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
    (r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither true nor false"),
    (r"Overriding (\S+) is not allowed.*", r"\1 is a section: set one of its fields, such as --\1.FIELD=VALUE"),
    (r"Found (\S+) in argv before a value for --config was specified", r"\1 comes before --config: put --config=FILE first"),
    (r"Error while parsing string: (.*) as tuple\..*", r"\1 is not a list: write it as '(1,2)', quotes included"),
)


class UserError(ExpectedError):
    """Raised by the command line: something outside the program is wrong."""


class UsageError(UserError, ValueError):
    """Raised by the command line: a flag or a field of the config is wrong."""

    exit_code = 2


@contextlib.contextmanager
def config_errors(where: str, options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Context manager that converts a ValueError of the library to one line that names the field.

    For calls that only validate and store their arguments: a ValueError of other code may be a bug.

    Args:
      where: start of the line: a section or a field, such as "diffusion" or "sampling.params is 'x'".
      options: name -> dotted name of a field. In a message that has the name in backquotes, it becomes that of the field.

    Raises:
      UsageError: "config.WHERE: " and the message, unless that begins with a name in backquotes. A UserError, which already
        names a field, is unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        line = str(error) if str(error).startswith("`") else f"config.{where}: {error}"
        for option, field in (options or {}).items():
            line = line.replace(f"`{option}`", f"config.{field}")
        raise UsageError(line) from error


def name_fields(text: str, config: Mapping[str, Any]) -> str:
    """Replaces arguments in backquotes with fields or flags: `channels` -> config.data.channels, `workdir` -> --workdir.

    Args:
      text: an error message or a log line.
      config: sections by name, each with its fields. A name of no field, or of several, is unchanged.
    """

    def field(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name in _FLAGS:
            return f"--{name}" if value is None else f"--{name}={value}"
        if name in _FIELDS:
            paths = [_FIELDS[name]]
        else:
            paths = [name] if name in config and not isinstance(config[name], Mapping) else list(_paths(config, name))
        if len(paths) != 1:
            return match[0]
        path = paths[0]
        if value is None:
            return f"config.{path}"
        return f"--config.{path}=" + (f"'{value}'" if value.startswith("(") else value.strip("'"))

    return _ARGUMENT.sub(field, text)


def _paths(config: Mapping[str, Any], name: str, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields called `name`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _paths(value, name, f"{prefix}{key}.")
        elif key == name:
            yield prefix + key


def name_arguments(text: str, arguments: Mapping[str, str]) -> str:
    """Replaces fields of the config and flags in a message with the arguments of a Python call.

    Args:
      text: an error message or a log line.
      arguments: dotted name of a field -> name of the argument that sets it. Other fields keep their names.
    """
    text = re.sub(r"(?:--)?\bconfig\.(\w+(?:\.\w+)*)", lambda match: arguments.get(match[1], f"config.{match[1]}"), text)
    return re.sub(rf"--(?=(?:config|{'|'.join(_FLAGS)})\b)", "", text)


@contextlib.contextmanager
def argument_errors(arguments: Mapping[str, str]) -> Iterator[None]:
    """Context manager that converts errors of the command line to those of a Python call, which name its arguments.

    Args:
      arguments: see `name_arguments`.

    Raises:
      InvalidArgumentError: a ValueError, instead of a UsageError.
      InvalidDataError: a ValueError, instead of another UserError.
      ExpectedError: any other keeps its class.
    """
    try:
        yield
    except ExpectedError as error:
        kind: type[ExpectedError] = type(error)
        if isinstance(error, UserError):
            kind = InvalidArgumentError if error.exit_code == UsageError.exit_code else InvalidDataError
        raise kind(name_arguments(str(error), arguments)) from error


@contextlib.contextmanager
def show_progress_and_log(shown: bool, arguments: Mapping[str, str]) -> Iterator[None]:
    """Context manager of a Python call: progress lines and the package's log lines appear on stderr only if `shown`.

    Args:
      shown: whether they appear. Log lines appear as the caller has configured `logging`, if that handles those of ddpm_jax.
      arguments: see `name_arguments`.
    """
    logger = logging.getLogger("ddpm_jax")
    with show_status_lines(shown):
        if not shown or logger.hasHandlers():
            yield
            return
        handler, level = LineHandler(), logger.level
        handler.addFilter(_is_from_primary_process)
        handler.setFormatter(_RenamingFormatter(lambda text: name_arguments(text, arguments)))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def configure_logging(config: Mapping[str, Any]) -> None:
    """Prints the package's log lines on stderr, in process 0 only, with config fields instead of arguments.

    Args:
      config: see `name_fields`.
    """
    logger, handler = logging.getLogger("ddpm_jax"), LineHandler()
    handler.addFilter(_is_from_primary_process)
    handler.setFormatter(_RenamingFormatter(lambda text: name_fields(text, config)))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl would print it again, with a prefix


class _RenamingFormatter(logging.Formatter):
    def __init__(self, rename: Callable[[str], str]):
        super().__init__()
        self._rename = rename

    def format(self, record: logging.LogRecord) -> str:
        return self._rename(super().format(record))


def _is_from_primary_process(record: logging.LogRecord) -> bool:
    import jax  # imported lazily: the command line is parsed without it

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def format_flag_error(error: Exception) -> str:
    """Formats an error of absl or ml_collections about the command line as one line."""
    if isinstance(error, KeyError | AttributeError):  # no such field; the inner text is the repr of a KeyError with its hint
        text = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'")
        if found := re.search(r"Attempting to lookup: ([\w.]+)", text):  # a field of a scalar
            name, _, rest = found[1].rpartition(".")
            return f"config.{name} is one value and has no field {rest!r}: write --config.{name}=VALUE"
        field, _, hint = text.partition("\n")
        if found := re.search(r'Key "(.*?)" does not exist', field):
            field = found[1]
        name = field.removeprefix("KeyError(").strip("()\"'")
        return f"the config has no field {name!r}: " + (_hint(hint or text) or f"{defaults_file()} lists all fields")
    line = " ".join(str(error).split())
    for pattern, replacement in _FLAG_ERROR_REWRITES:
        line = re.sub(pattern, replacement, line)
    return line


def program_command() -> list[str]:
    """The words that start this program as it was started, to print commands that can be pasted."""
    started = pathlib.Path(sys.argv[0])
    if started.name == "main.py":
        return [short_path(sys.executable), sys.argv[0]]
    if started.name == "__main__.py":
        return [short_path(sys.executable), "-m", "ddpm_jax"]
    return ["ddpm-jax"]


def defaults_file() -> str:
    """Where the user finds the file with all fields: configs/defaults.py in a clone, or the path in the installed package."""
    return short_path(str(configs.FOLDER / "defaults.py"))


def short_path(path: str) -> str:
    """The path relative to the current folder, if it is inside."""
    here = str(pathlib.Path.cwd()) + "/"
    return path.removeprefix(here) or path


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """A question about the most similar of `names`, or ""."""
    found = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {found[0]!r}?" if found else ""


def _hint(text: str) -> str:
    found = re.search(r'Did you mean "(.*?)"', text)
    return f"did you mean {found[1]!r}?" if found else ""
