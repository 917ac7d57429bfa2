"""Errors that a person can cause and mend: one line, no traceback.

`main.py` prints the message of these two and exits with their code; every other
exception is a defect of this program and keeps its traceback.
"""

import re

# What absl, ml_collections and Python say of a wrong value, and the same in words.
_SAYINGS = (
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number"),
    (r"could not convert string to float: (.*)", r"\1 is no number"),
    (r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither true nor false"),
    (r"Error while parsing string: (.*) as tuple\..*", r"\1 is no list: write it as '(1,2)', quotes included"),
)


class PersonError(Exception):
    """Something outside the program is wrong. The message says what, and what to do about it."""

    exit_code = 1


class UsageError(PersonError):
    """A flag or a config value is wrong."""

    exit_code = 2


def said_of_flags(error: Exception) -> str:
    """One line of what absl or ml_collections raised over the command line."""
    if isinstance(error, KeyError | AttributeError):  # no such field; the inner text is the repr of a KeyError, hint and all
        field, _, hint = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'").partition("\n")
        name = field.removeprefix("KeyError(").strip("()\"'")
        return f"the config has no field {name!r}: " + (_hint(hint) or "configs/defaults.py lists them all")
    line = " ".join(str(error).split())
    for saying, words in _SAYINGS:
        line = re.sub(saying, words, line)
    return line


def _hint(text: str) -> str:
    found = re.search(r'Did you mean "(.*?)"', text)
    return f"did you mean {found[1]!r}?" if found else ""
