"""Loads config files for the command line, with one-line errors that include the line number in the file.

A config file is Python code and may fail like any program. `ml_collections` reports some failures with a traceback and others
not at all: a misspelled field in an unlocked config would silently become a new field.
"""

import contextlib
import copy
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ddpm_jax import choices, configs
from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError, error_line
from ddpm_jax.runtime.registry import is_installed
from ddpm_jax.user_messages import UsageError, UserError, defaults_file, did_you_mean, format_flag_error

_BESIDE: list[str] = []  # names of the modules beside the last config file that it imported


class ConfigFileParser(flags.ArgumentParser):
    """NAME, FILE.py or FILE.py:ARGUMENT -> the result of its `get_config`, locked; see `load`.

    Args:
      defaults: all fields of a config; the file must return exactly these fields.
    """

    syntactic_help = "a file with a function get_config()"

    def __init__(self, defaults: ConfigDict):
        super().__init__()
        self._defaults = defaults

    def parse(self, argument: str) -> ConfigDict:
        """See the class. Raises UserError if the file is not such a config or raises an ExpectedError itself."""
        try:
            config = load(argument)
            _check_fields(config, self._defaults, f"--config={argument}")
        except ExpectedError as error:
            # absl would catch a ValueError and add a prefix.
            user_error = UserError(str(error))
            user_error.exit_code = error.exit_code
            raise user_error from error
        config.lock()
        return config

    def flag_type(self) -> str:
        """For --help."""
        return "config file"


def load(argument: str) -> ConfigDict:
    """The result of `get_config` of a config file.

    Args:
      argument: FILE.py, a path; or NAME, the shipped config configs/NAME.py. A name has neither a separator nor an ending, so
        a file or folder of the current directory never hides a shipped config: ./digits.py and digits.py are the file, digits
        is the shipped config. ":ARGUMENT" after either is passed to `get_config`.

    Raises:
      UsageError: the file does not exist, fails, or does not return a config.
      ExpectedError: raised by the file itself.
    """
    path, colon, given = argument.partition(":")
    is_name = re.fullmatch(r"[\w-]+", path) is not None
    file = configs.FOLDER / f"{path}.py" if is_name else pathlib.Path(path).expanduser().absolute()
    if not file.is_file():
        fault = "no such config" if is_name else "a folder, not a file" if file.is_dir() else "no such file"
        raise UsageError(f"--config={argument}: {fault}{_nearest(path)}")
    try:
        spec = importlib.util.spec_from_file_location("config_config", file)
        if spec is None or spec.loader is None:
            raise UsageError(f"--config={argument}: the name of a config file must end in .py")
        module = importlib.util.module_from_spec(spec)
        with _imports_beside(file):
            spec.loader.exec_module(module)
            get_config = getattr(module, "get_config", None)
            if get_config is None:
                raise UsageError(f"--config={argument}: the file has no function get_config; {defaults_file()} is an example")
            arguments = [given] if colon else []
            try:
                inspect.signature(get_config).bind(*arguments)
            except TypeError:
                fault = f"its get_config takes no argument: leave :{given} out"
                fault = fault if colon else "write FILE.py:ARGUMENT for its argument"
                raise UsageError(f"--config={argument}: {fault}") from None
            config = get_config(*arguments)
    except ExpectedError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"--config={argument} fails{_place(error, file)}: {_reason(error)}") from error
    if not isinstance(config, ConfigDict):
        kind = "nothing" if config is None else f"a {type(config).__name__}"
        raise UsageError(f"--config={argument}: its get_config returns {kind}, but must return a ConfigDict")
    return config


@contextlib.contextmanager
def _imports_beside(file: pathlib.Path) -> Iterator[None]:
    """Context manager in which the folder of the file comes first in sys.path, as for a script that Python runs.

    Modules of that folder that are imported inside are imported again by the next config file: it may be in another folder,
    or the module may have changed.
    """
    folder = str(file.parent)
    while _BESIDE:
        sys.modules.pop(_BESIDE.pop(), None)
    importlib.invalidate_caches()
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        new = [name for name in set(sys.modules) - before if not name.startswith("ddpm_jax.")]
        files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in new}
        beside = [name for name, path in files.items() if path.startswith(f"{folder}{os.sep}") and not is_installed(path)]
        _BESIDE.extend(beside)


def set_fields(config: ConfigDict, values: dict[str, Any], *, prefix: str = "") -> None:
    """Sets the fields of `config` to those of a nested dictionary, up to the first invalid one.

    Args:
      config: has all fields, with values of the right types.
      values: fields by name; sections are dictionaries.
      prefix: for the names in the error.

    Raises:
      InvalidArgumentError: a field is unknown, or its value has the wrong type.
    """
    for name, value in values.items():
        field = prefix + name
        if name not in config and (choices.is_free(prefix.rstrip(".")) or _is_part(values, prefix, name)):
            with config.unlocked():
                config[name] = ConfigDict(value) if isinstance(value, dict) else value
            continue
        if name not in config:
            raise InvalidArgumentError(f"the field {field} is unknown to this version")
        if isinstance(config[name], ConfigDict):
            if not isinstance(value, dict):
                raise InvalidArgumentError(f"{field} is {value!r}, but must be a section with fields")
            set_fields(config[name], value, prefix=f"{field}.")
            continue
        try:
            if value is None:
                raise TypeError
            config[name] = value
        except TypeError as error:
            kind = type(config[name]).__name__
            raise InvalidArgumentError(f"{field} is {value!r}, but must be of the type {kind}") from error


def _is_part(fields: Mapping[str, Any], prefix: str, name: str) -> bool:
    """Whether `name` is the section of a part that these fields choose; it need not be in the defaults."""
    section = prefix.removeprefix("config.").rstrip(".")
    return choices.is_chosen(section, fields, name) and isinstance(fields[name], dict | ConfigDict)


def _check_fields(config: ConfigDict, defaults: ConfigDict, where: str, prefix: str = "config.") -> None:
    """Raises UsageError unless the config has the fields of the defaults, with values of their types."""
    for name in sorted(set(config) | set(defaults)):
        field = prefix + name
        free = choices.is_free(field.removeprefix("config.")) and isinstance(config.get(name), ConfigDict)
        if free or (name not in defaults and _is_part(config, prefix, name)):
            continue  # checked when the part is made
        if name not in defaults:
            hint = did_you_mean(name, list(defaults)) or f"{defaults_file()} lists all fields"
            raise UsageError(f"{where} sets {field}, which does not exist: {hint}")
        if name not in config:
            raise UsageError(f"{where} lacks {field}: begin with the get_config() of {defaults_file()} and change its fields")
        value, default = config[name], defaults[name]
        if isinstance(default, ConfigDict) != isinstance(value, ConfigDict):
            raise UsageError(f"{where}: {field} must be {'a section' if isinstance(default, ConfigDict) else 'one value'}")
        if isinstance(default, ConfigDict):
            _check_fields(value, default, where, f"{field}.")
        # The same rules as for assignment: an integer is accepted for a float, and a list for a tuple.
        elif type(value) is not type(default):
            try:
                set_fields(copy.deepcopy(defaults), {name: value})
            except InvalidArgumentError as error:
                raise UsageError(f"{where}: {prefix}{error}") from error


def _nearest(path: str) -> str:
    """A hint for a name or path of --config: a file of that name here, or the most similar shipped config."""
    if (own := pathlib.Path(f"{path}.py").expanduser()).is_file():
        return f"; did you mean --config={own}?"
    found = difflib.get_close_matches(pathlib.Path(path).stem, configs.names(), n=1)
    return f"; did you mean --config={found[0]}?" if found else f"; choose one of {', '.join(configs.names())}, or a file"


def _place(error: BaseException, file: pathlib.Path) -> str:
    """The innermost line of the file in the traceback."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" in line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} (SyntaxError)"
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":  # importable only by main.py of a clone
        return "there is no package configs: import the shipped configs from ddpm_jax.configs"
    if isinstance(error, SystemExit):
        return f"it ends the program (SystemExit: {error.code})"
    if isinstance(error, KeyError | AttributeError) and "does not exist and cannot be added" in str(
        error
    ):  # a locked ConfigDict
        return format_flag_error(error)
    return error_line(error, kind=True)


def repeated_lists(flag_values: flags.FlagValues, arguments: list[str]) -> str:
    """The first list that the command line sets more than once, or "": ml_collections would concatenate its values."""
    names = [word.lstrip("-").partition("=")[0] for word in arguments if word.startswith("-")]
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and name in flag_values and isinstance(flag_values[name], flags.MultiFlag):
            return name
    return ""
