"""Interchangeable parts by name: a registry maps names to factories, `module:function` names a factory of the user's own.

A factory is a function or class. Its options are its parameters, except the positional ones and the parts that the program
provides to the parameters of their names.
"""

import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_jax.runtime.errors import InvalidArgumentError, error_line

FLAX_PARAMETERS = ("parent", "name")  # of every flax module; not options


def is_own(name: str) -> bool:
    """Whether `name` has the form module:function. TFDS's versions, such as mnist:3.0.1, do not."""
    module, _, function = name.partition(":")
    return bool(module) and function.isidentifier()


def find(name: str, registry: Mapping[str, Any], kind: str) -> Any:
    """The factory called `name`.

    Args:
      name: a key of the registry, or module:function. The module may be in the current folder.
      registry: name -> factory.
      kind: what the factory makes, such as "sampler", for errors.

    Raises:
      InvalidArgumentError: there is no such name, or the module or function cannot be imported.
    """
    if name in registry:
        return registry[name]
    if not is_own(name):
        raise InvalidArgumentError(
            f"unknown {kind} {name!r}: choose one of {', '.join(registry)}, or module:function for one of your own"
        )
    return load(name, kind)


def load(name: str, kind: str) -> Any:
    """The function or class that module:function names; the module may be in the current folder.

    Raises:
      InvalidArgumentError: it cannot be imported.
    """
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current folder
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # raised by the user's module
        raise InvalidArgumentError(f"the {kind} {name} cannot be imported: {fault(error)}") from error


def fault(error: Exception) -> str:
    """One line about an error in the user's own module, with file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    place = f" (line {own[-1].lineno} of {own[-1].filename})" if own and "<frozen" not in own[-1].filename else ""
    return f"{error_line(error, most=200, kind=True)}{place}"


def defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a factory that have a default: name -> default."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in FLAX_PARAMETERS}


def bind(
    name: str,
    registry: Mapping[str, Any],
    kind: str,
    *,
    num_args: int,
    options: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
) -> functools.partial:
    """The factory called `name` with its options, and with those of `parts` that it has parameters for.

    Args:
      name, registry, kind: as for `find`.
      num_args: number of positional arguments, which every factory of this kind takes.
      options: option -> value.
      parts: object by parameter name.

    Raises:
      InvalidArgumentError: as `find`; the factory does not have one of the options, or needs one that is not given.
    """
    factory = find(name, registry, kind)
    parameters = list(inspect.signature(factory).parameters.values())[num_args:]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    given = {part: value for part, value in (parts or {}).items() if part in named}
    own = [option for option in named if option not in {*given, *FLAX_PARAMETERS}]
    any_option = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in own and not any_option:
            raise InvalidArgumentError(f"the {kind} {name} has no option {option!r}: it has {', '.join(own) or 'none'}")
    for option in own:
        if option not in options and named[option].default is inspect.Parameter.empty:
            raise InvalidArgumentError(f"the {kind} {name} needs the option {option!r}")
    return functools.partial(factory, **given, **options)


def make(
    name: str,
    registry: Mapping[str, Any],
    kind: str,
    *args: Any,
    options: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
) -> Any:
    """Call the factory called `name` with `args`, its options and parts, as for `bind`."""
    return bind(name, registry, kind, num_args=len(args), options=options, parts=parts)(*args)
