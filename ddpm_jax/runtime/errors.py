"""Errors that a person can cause and mend: one line, no traceback.

`main.py` prints the message of these two and exits with their code; every other
exception is a defect of this program and keeps its traceback.
"""

import difflib
import re
from collections.abc import Sequence

# What absl, ml_collections and Python say of a wrong value, and the same in words.
_FLAG_ERROR_REWRITES = (
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number"),
    (r"could not convert string to float: (.*)", r"\1 is no number"),
    (r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither true nor false"),
    (r"Overriding (\S+) is not allowed.*", r"\1 is a section: set one of its fields, such as --\1.FIELD=VALUE"),
    (r"Found (\S+) in argv before a value for --config was specified", r"\1 comes before --config: put --config=FILE first"),
    (r"Error while parsing string: (.*) as tuple\..*", r"\1 is no list: write it as '(1,2)', quotes included"),
)


class UserError(Exception):
    """Something outside the program is wrong. The message says what, and what to do about it."""

    exit_code = 1


class UsageError(UserError):
    """A flag or a config value is wrong."""

    exit_code = 2


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
