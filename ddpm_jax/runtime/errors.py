"""Errors that a person can cause and mend: one line, no traceback.

`main.py` prints the message of these two and exits with their code; every other
exception is a defect of this program and keeps its traceback.
"""


class PersonError(Exception):
    """Something outside the program is wrong. The message says what, and what to do about it."""

    exit_code = 1


class UsageError(PersonError):
    """A flag or a config value is wrong."""

    exit_code = 2
