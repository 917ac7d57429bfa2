"""The lines of Python that make the images of the page again, whatever settings the command line changed."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import sampling_config
from ddpm_jax.api.arguments import configure
from ddpm_jax.api.run import Run

# The fields of config.edit that a method reads. Interpolation is deterministic, and reads no others of config.sampling.
_EDIT = {
    "sample": (),
    "inpaint": ("samples_per_image", "jump_length", "resampling"),
    "image_to_image": ("samples_per_image", "strength"),
    "interpolate": ("num_frames", "inversion_iters"),
}
_NO_EFFECT = ("num_images", "batch_size")
_CONDITION = ("condition_images", "condition_split")


def load_lines(run: Run, config: ConfigDict, saved: ConfigDict) -> list[str]:
    """The line that loads the run, and comments on what neither it nor an argument sets.

    Args:
      run: of the images.
      config: of the page.
      saved: of the workdir, which `ddpm_jax.load` reads.
    """
    changed = sampling_config.changed_fields(config, saved.to_dict())
    if config.data.condition:
        pairs = {f"sampling.{name}": (config.sampling[name], saved.sampling[name]) for name in _CONDITION}
        changed |= {field: here for field, (here, there) in pairs.items() if here != there}
    notes = [f"# the page has --config.{field}={value}; this has the setting of the run" for field, value in changed.items()]
    return [f"run = ddpm_jax.load({str(run.workdir)!r}, step={run.step}, params={config.sampling.params!r})", *notes]


def call(
    method: str, positional: Sequence[Any], arguments: dict[str, Any], config: ConfigDict, saved: ConfigDict, result: str = ""
) -> str:
    """A call of a method of `Run`, with the arguments that the run in memory takes from `config` and a loaded one would not.

    Args:
      method: its name.
      positional: arguments, as text or numbers.
      arguments: by name; None for those that are not given.
      config, saved: as for `load_lines`.
      result: what is read of the result, such as ".images[0]".
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    given |= _missing(method, given, config, saved)
    named = [f"{name}={value!r}" for name, value in given.items()]
    return f"run.{method}({', '.join([*map(str, positional), *named])}){result}"


def _missing(method: str, given: dict[str, Any], config: ConfigDict, saved: ConfigDict) -> dict[str, Any]:
    """The arguments whose fields differ between the configs."""
    sections = ("sampling",) if method == "sample" else ("edit", "sampling")
    (here, names), (there, _) = (configure(each, given, sections) for each in (config, saved))
    found = {}
    for field, name in names.items():
        if field.startswith("edit."):
            is_read = name in _EDIT[method]
        elif name.startswith("condition_"):
            is_read = bool(config.data.condition)
        else:
            is_read = name == "label" if method == "interpolate" else name not in _NO_EFFECT
        value = _value(here, field)
        if is_read and name not in given and value is not None and value != _value(there, field):
            found[name] = value
    return found


def _value(config: ConfigDict, field: str) -> Any:
    """The value of a field by its dotted name; None if there is no such field."""
    value: Any = config
    for part in field.split("."):
        value = value.get(part) if isinstance(value, ConfigDict) else None
    return value
