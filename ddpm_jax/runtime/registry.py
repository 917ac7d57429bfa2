"""Interchangeable parts by name: a registry maps names to factories, `module:function` names a factory of the user's own.

A factory is a function or class. Its options are its parameters, except the positional ones and the parts that the program
provides to the parameters of their names.
"""

import functools
import hashlib
import importlib
import inspect
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpm_jax.runtime.errors import ExpectedError, InvalidArgumentError, error_line

_PACKAGE = str(pathlib.Path(__file__).parents[1]) + "/"
_DIGEST = "__ddpm_jax_digest__"  # attribute of imported modules of the user's own


def is_custom(name: str) -> bool:
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
    if not is_custom(name):
        raise InvalidArgumentError(
            f"unknown {kind} {name!r}: choose one of {', '.join(registry)}, or module:function for one of your own"
        )
    return load(name, kind)


def load(name: str, kind: str) -> Callable[..., Any]:
    """The function or class that module:function names; the module may be in the current folder.

    Raises:
      InvalidArgumentError: it cannot be imported, or is neither.
    """
    _, _, function = name.partition(":")
    try:
        found = getattr(_module(name), function)
    except (Exception, SystemExit) as error:  # raised by the user's module
        raise InvalidArgumentError(f"the {kind} {name} cannot be imported: {fault(error)}") from error
    if not callable(found):
        raise InvalidArgumentError(f"the {kind} {name} is of type {type(found).__name__}: a function or class is required")
    return found


def _module(name: str) -> types.ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current folder
    module = importlib.import_module(name.partition(":")[0])
    file = getattr(module, "__file__", None)
    if file and not is_installed(file) and not hasattr(module, _DIGEST):
        # Now, not when it is asked for: the file may change while the imported code stays in use.
        setattr(module, _DIGEST, hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:12])
    return module


def source_digest(name: str) -> dict[str, str]:
    """File of module:function -> first 12 digits of its SHA-256 when it was imported; empty for an installed package."""
    module = _module(name)
    if not hasattr(module, _DIGEST):
        return {}
    suffix = pathlib.Path(str(module.__file__)).suffix
    return {f"{name.partition(':')[0].replace('.', '/')}{suffix}": getattr(module, _DIGEST)}


def fault(error: BaseException) -> str:
    """One line about an error in the user's own module, with file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_installed(frame.filename) and not frame.filename.startswith(_PACKAGE)]
    place = f" (line {own[-1].lineno} of {own[-1].filename})" if own and "<frozen" not in own[-1].filename else ""
    return f"{error_line(error, most=200, kind=True)}{place}"


def is_installed(file: str) -> bool:
    """Whether a module's file is of an installed package."""
    return bool({"site-packages", "dist-packages"} & set(pathlib.PurePath(file).parts))


def defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a factory that have a default: name -> default."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def bind(
    name: str,
    registry: Mapping[str, Any],
    kind: str,
    *,
    num_args: int,
    options: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
    required: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> functools.partial:
    """The factory called `name` with its options, and with those of `parts` that it has parameters for.

    Args:
      name, registry, kind: as for `find`.
      num_args: number of positional arguments, which every factory of this kind takes.
      options: option -> value.
      parts: object by parameter name.
      required: parts that the factory must have parameters for.
      ignored: parameters that are neither parts nor options.

    Raises:
      InvalidArgumentError: as `find`; the factory does not have one of the options or required parts, needs an option that is
        not given, or does not take `num_args` arguments.
    """
    factory = find(name, registry, kind)
    parameters = list(inspect.signature(factory).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < num_args and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise InvalidArgumentError(f"the {kind} {name} has {len(positional)} positional parameters: {num_args} are required")
    named = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY or p in positional[num_args:]}
    given = {part: value for part, value in (parts or {}).items() if part in named}
    if missing := [part for part in required if part not in given]:
        raise InvalidArgumentError(f"the {kind} {name} has no parameter {missing[0]!r}")
    own = [option for option in named if option not in {*given, *ignored}]
    for option in options:
        if option not in own and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise InvalidArgumentError(f"the {kind} {name} has no option {option!r}: it has {', '.join(own) or 'none'}")
    for option in own:
        if option not in options and named[option].default is inspect.Parameter.empty:
            raise InvalidArgumentError(f"the {kind} {name} needs the option {option!r}")
    return functools.partial(factory, **given, **options)


def make(name: str, registry: Mapping[str, Any], kind: str, *args: Any, **settings: Any) -> Any:
    """Call the factory called `name` with `args` and the settings of `bind`.

    Raises:
      InvalidArgumentError: as `bind`, or a factory of the user's own fails.
    """
    return call(name, registry, kind, bind(name, registry, kind, num_args=len(args), **settings), *args)


def call(name: str, registry: Mapping[str, Any], kind: str, factory: Callable[..., Any], *args: Any) -> Any:
    """`factory(*args)`, the factory of `bind`.

    Raises:
      InvalidArgumentError: a factory of the user's own fails.
    """
    if name in registry:
        return factory(*args)
    try:
        return factory(*args)
    except ExpectedError:
        raise
    except Exception as error:
        raise InvalidArgumentError(f"the {kind} {name} fails: {fault(error)}") from error
