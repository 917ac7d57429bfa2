"""Choices of a config: fields that name one of several interchangeable parts, each with its options in a section of its own.

`sampling.sampler=unipc` reads `sampling.unipc`; a part without a section has its default options. `module:function` names a
part of the user's own, with the options in the section `custom` of the choice, which may hold any fields.
"""

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ddpm_jax.runtime import registry
from ddpm_jax.user_messages import UsageError


class Choice(NamedTuple):
    """A field that names a part.

    Attributes:
      section: section of the config.
      field: field of that section with the name of the part.
      custom: subsection with the options of a part of the user's own.
      sweep: field of config.evaluation with more names; "" if there is none.
    """

    section: str
    field: str
    custom: str
    sweep: str = ""

    @property
    def path(self) -> str:
        """The dotted name of the field."""
        return f"{self.section}.{self.field}"


DATA = Choice("data", "name", "options")
CONDITION = Choice("data", "condition", "condition_options")
NETWORK = Choice("model", "name", "options")
SCHEDULE = Choice("diffusion", "schedule", "schedule_options")
LOSS = Choice("diffusion", "loss", "loss_options")
WEIGHTING = Choice("diffusion", "weighting", "weighting_options")
TIMESTEP_SAMPLER = Choice("diffusion", "timestep_sampler", "timestep_sampler_options")
OPTIMIZER = Choice("optimizer", "name", "options")
LEARNING_RATE = Choice("optimizer", "schedule", "schedule_options")
SAMPLER = Choice("sampling", "sampler", "sampler_options", sweep="samplers")
FEATURES = Choice("evaluation", "features", "features_options")
CHOICES = (
    DATA,
    CONDITION,
    NETWORK,
    SCHEDULE,
    LOSS,
    WEIGHTING,
    TIMESTEP_SAMPLER,
    OPTIMIZER,
    LEARNING_RATE,
    SAMPLER,
    FEATURES,
)


def section_of(config: ConfigDict, choice: Choice) -> str:
    """The dotted name of the section with the options of the chosen part."""
    return f"{choice.section}.{_part_section(choice, config[choice.section][choice.field])}"


def _part_section(choice: Choice, name: str) -> str:
    return choice.custom if registry.is_custom(name) else name


def options_of(config: ConfigDict, choice: Choice) -> dict[str, Any]:
    """The options of the chosen part: name -> value, with tuples for lists."""
    _, _, name = section_of(config, choice).partition(".")
    options = config[choice.section].get(name)
    return (
        {option: _with_tuples(value) for option, value in options.to_dict().items()} if isinstance(options, ConfigDict) else {}
    )


def _with_tuples(value: Any) -> Any:
    return tuple(_with_tuples(x) for x in value) if isinstance(value, list | tuple) else value


def custom_modules(config: ConfigDict, *choices: Choice) -> dict[str, str]:
    """File -> digest of the sources of the user's own parts that these choices name (by default all), `source_digest`."""
    names = [config[choice.section][choice.field] for choice in choices or CHOICES]
    return {file: sha for name in names if registry.is_custom(name) for file, sha in registry.source_digest(name).items()}


def is_free(path: str) -> bool:
    """Whether `path`, such as model.options, is a section for the options of a part of the user's own: it holds any fields."""
    return any(f"{choice.section}.{choice.custom}" == path for choice in CHOICES)


def is_chosen(section: str, fields: Mapping[str, Any], part: str) -> bool:
    """Whether a section with these fields chooses the part called `part`, so that it may have a section of this name."""
    return any(choice.section == section and fields.get(choice.field) == part for choice in CHOICES)


def take_free_flags(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split off the flags --config.SECTION.OPTIONS.NAME=VALUE of free sections, whose fields the flag parser does not know.

    Args:
      argv: the command line.

    Returns:
      The other arguments, and dotted name -> value: a number, a boolean, a tuple of such, or else a string.
    """
    rest, found, arguments = [], {}, list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, equals, text = argument.lstrip("-").partition("=")
        section, _, option = name.removeprefix("config.").rpartition(".")
        if not (argument.startswith("-") and name.startswith("config.") and option and is_free(section)):
            rest.append(argument)
        else:
            if not equals:  # the value is the next argument, or, before another flag, true
                text = arguments.pop(0) if arguments and not arguments[0].startswith("--") else "true"
            found[f"{section}.{option}"] = _parse(text)
    return rest, found


def _parse(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
        json.dumps(value)  # as it is saved
    except (ValueError, SyntaxError, TypeError):
        return text
    return text if isinstance(value, str | dict) or value is None else _with_tuples(value)


def set_free_fields(config: ConfigDict, fields: Mapping[str, Any]) -> None:
    """Set fields of free sections, from `take_free_flags`."""
    with config.unlocked():
        for path, value in fields.items():
            section, part, option = path.split(".")
            if option in config[section][part]:
                del config[section][part][option]  # the new value may have another type
            config[section][part][option] = value


def used_fields(config: ConfigDict, section: str) -> dict[str, Any]:
    """The fields of a section as plain values, without the options of parts that are not chosen."""
    chosen = {section_of(config, choice) for choice in CHOICES if choice.section == section}
    return {
        name: value
        for name, value in config[section].to_dict().items()
        if not isinstance(value, dict) or (value and f"{section}.{name}" in chosen)
    }


def _used_parts(config: ConfigDict, section: str) -> set[str]:
    """Names of the subsections of a section whose options have an effect."""
    choices = [choice for choice in CHOICES if choice.section == section]
    sweeps = [choice for choice in choices if choice.sweep]
    swept = {_part_section(choice, name) for choice in sweeps for name in config.evaluation[choice.sweep]}
    return swept | {section_of(config, choice).partition(".")[2] for choice in choices}


def _chosen(config: ConfigDict, section: str) -> str:
    """Such as: config.sampling.sampler is ddim."""
    choices = [choice for choice in CHOICES if choice.section == section]
    return ", ".join(f"config.{choice.path} is {config[section][choice.field]}" for choice in choices)


def unused_options(config: ConfigDict, defaults: ConfigDict) -> list[str]:
    """A line for each option that differs from its default but belongs to a part that is not chosen."""
    lines = []
    for section in dict.fromkeys(choice.section for choice in CHOICES):
        used = _used_parts(config, section)
        parts = {name: part for name, part in config[section].items() if isinstance(part, ConfigDict) and name not in used}
        for name, part in parts.items():
            default = defaults[section].get(name, {})
            for option, value in part.items():
                if option not in default or value != default[option]:
                    field = f"config.{section}.{name}.{option}"
                    lines.append(f"{field} is {value!r}, but has no effect, since {_chosen(config, section)}")
    return lines


def check_options_used(config: ConfigDict, flags: Iterable[str]) -> None:
    """Check that no flag sets an option of a part that is not chosen, which would have no effect.

    Args:
      config: as parsed.
      flags: names of the given flags, such as config.sampling.unipc.order.

    Raises:
      UsageError: one does.
    """
    for flag in flags:
        if flag.count(".") < 3:
            continue
        _, section, part = flag.split(".")[:3]
        if part not in _used_parts(config, section):
            other = "module:function" if is_free(f"{section}.{part}") else part
            raise UsageError(f"--{flag} has no effect, since {_chosen(config, section)}: leave it out, or choose {other}")
