"""What a request may contain: any program can send anything, whatever the controls of the page offer."""

import math
import re
from collections.abc import Collection
from typing import Any

from ddpm_jax.runtime.errors import InvalidArgumentError

_SPLIT = re.compile(r"[\w.+\[\]:% -]{0,100}")  # as test, train[:90%] or train[:10]+test; no folders


def integer(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> int:
    """A value as an integer in low..high; `name` is for the error.

    Raises:
      InvalidArgumentError: it is not one.
    """
    found = number(value, name, low, high)
    if found != int(found):
        raise InvalidArgumentError(f"{name} is {found:g}: it must be an integer")
    return int(value)


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A value as a finite number in low..high, as `integer`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidArgumentError(f"{name} is {_short(value)}: it must be a number")
    if not low <= value <= high:
        raise InvalidArgumentError(f"{name} is {_short(value)}: choose {low}..{high}")
    return float(value)


def choice(value: Any, name: str, choices: Collection[str]) -> str:
    """A value that is one of `choices`.

    Raises:
      InvalidArgumentError: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgumentError(f"{name} is {_short(value)}: choose one of {', '.join(choices)}")
    return value


def split(value: Any, configured: Collection[str]) -> str:
    """A split of the data set: one of `configured`, or the name of another, or a part such as train[:90%].

    Raises:
      InvalidArgumentError: it is not.
    """
    if isinstance(value, str) and (value in configured or _SPLIT.fullmatch(value)):
        return value
    raise InvalidArgumentError(f"the split is {_short(value)}: write a name such as test, or a part such as train[:90%]")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float) or value is None else f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
