"""Choices of a config: fields that name one of several interchangeable parts, each with its options in a section of its own.

`sampling.sampler=unipc` reads `sampling.unipc`; a part without a section has its default options. `module:function` names a
part of the user's own, with the options in the section `own` of the choice, which may hold any fields.
"""

import ast
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
      own: subsection with the options of a part of the user's own.
      sweep: field of config.evaluation with more names; "" if there is none.
    """

    section: str
    field: str
    own: str
    sweep: str = ""

    @property
    def path(self) -> str:
        """The dotted name of the field."""
        return f"{self.section}.{self.field}"


DATA = Choice("data", "name", "options")
NETWORK = Choice("model", "name", "options")
SCHEDULE = Choice("diffusion", "schedule", "schedule_options")
LOSS = Choice("diffusion", "loss", "loss_options")
WEIGHTING = Choice("diffusion", "weighting", "weighting_options")
TIMESTEP_SAMPLER = Choice("diffusion", "timestep_sampler", "timestep_sampler_options")
OPTIMIZER = Choice("optimizer", "name", "options")
LEARNING_RATE = Choice("optimizer", "schedule", "schedule_options")
SAMPLER = Choice("sampling", "sampler", "sampler_options", sweep="samplers")
FEATURES = Choice("evaluation", "features", "features_options")
CHOICES = (DATA, NETWORK, SCHEDULE, LOSS, WEIGHTING, TIMESTEP_SAMPLER, OPTIMIZER, LEARNING_RATE, SAMPLER, FEATURES)


def section_of(config: ConfigDict, choice: Choice) -> str:
    """The dotted name of the section with the options of the chosen part."""
    name = config[choice.section][choice.field]
    return f"{choice.section}.{choice.own if registry.is_own(name) else name}"


def options_of(config: ConfigDict, choice: Choice) -> dict[str, Any]:
    """The options of the chosen part: name -> value, with tuples for lists."""
    _, _, name = section_of(config, choice).partition(".")
    options = config[choice.section].get(name)
    if not isinstance(options, ConfigDict):
        return {}
    return {option: tuple(value) if isinstance(value, list) else value for option, value in options.to_dict().items()}


def is_free(path: str) -> bool:
    """Whether `path`, such as model.options, is a section for the options of a part of the user's own: it holds any fields."""
    return any(f"{choice.section}.{choice.own}" == path for choice in CHOICES)


def is_chosen(section: str, fields: Mapping[str, Any], part: str) -> bool:
    """Whether a section with these fields chooses the part called `part`, so that it may have a section of this name."""
    return any(choice.section == section and fields.get(choice.field) == part for choice in CHOICES)


def take_free_flags(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split off the flags --config.SECTION.OPTIONS.NAME=VALUE of free sections, whose fields the flag parser does not know.

    Args:
      argv: the command line.

    Returns:
      The other arguments, and dotted name -> value. A value that is not a Python literal is a string.
    """
    rest, found = [], {}
    for argument in argv:
        name, equals, text = argument.lstrip("-").partition("=")
        section, _, option = name.removeprefix("config.").rpartition(".")
        if not (argument.startswith("-") and equals and name.startswith("config.") and option and is_free(section)):
            rest.append(argument)
            continue
        try:
            found[f"{section}.{option}"] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[f"{section}.{option}"] = text
    return rest, found


def set_free_fields(config: ConfigDict, fields: Mapping[str, Any]) -> None:
    """Set fields of free sections, from `take_free_flags`."""
    with config.unlocked():
        for path, value in fields.items():
            section, own, option = path.split(".")
            config[section][own][option] = value


def used_fields(config: ConfigDict, section: str) -> dict[str, Any]:
    """The fields of a section as plain values, without the options of parts that are not chosen."""
    chosen = {section_of(config, choice) for choice in CHOICES if choice.section == section}
    return {
        name: value
        for name, value in config[section].to_dict().items()
        if not isinstance(value, dict) or (value and f"{section}.{name}" in chosen)
    }


def check_flags(config: ConfigDict, flags: Iterable[str]) -> None:
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
        choices = [choice for choice in CHOICES if choice.section == section]
        used = {section_of(config, choice).partition(".")[2] for choice in choices}
        used |= {name for choice in choices if choice.sweep for name in config.evaluation[choice.sweep]}
        if part not in used:
            current = ", ".join(f"config.{choice.path} is {config[section][choice.field]}" for choice in choices)
            raise UsageError(f"--{flag} has no effect, since {current}: leave it out, or choose {part}")
