"""The record of a run: config.json, and history.jsonl with a line for each start of a training that took steps.

Both are written once the first step of a start is done, before any checkpoint can hold it. So a start that fails, a
finished run and the modes that only read change neither, and a run that is killed at any instant has a record of every
step in its checkpoints. Each line holds the whole config: steps that a killed run took and did not save are taken again by
the next start, perhaps with another config, and the line that comes last in the file is the one that counts.

config.json is the config of the last line. It is what `--workdir` without `--config` takes.
"""

import json
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import config_changes, workdir
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import InvalidDataError, error_line

HISTORY = "history.jsonl"


def latest_saved_step(folder: Path) -> int | None:
    """The step of the newest checkpoint in the workdir, by its name alone; None where there is none."""
    checkpoints = workdir.checkpoint_folder(folder)
    try:
        steps = [int(entry.name) for entry in checkpoints.iterdir() if entry.name.isdigit() and entry.is_dir()]
    except OSError:
        return None
    return max(steps, default=None)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl, oldest first; empty where there is none.

    Raises:
      InvalidDataError: the file cannot be read, or a line of it is damaged.
    """
    file = folder / HISTORY
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InvalidDataError(f"cannot read {file}: {error_line(error)}; restore it, or move it away") from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            lines.append(entry | {"step": int(entry["step"]), "config": dict(entry["config"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidDataError(f"line {number} of {file} is damaged; remove that line, or restore the file") from error
    return lines


def config_at(folder: Path, step: int | None) -> dict[str, Any] | None:
    """The config with which the step before the checkpoint of `step` was taken.

    Args:
      folder: workdir.
      step: of the checkpoint; None for the newest, and config.json's own where there is none.

    Returns:
      As recorded, without fields younger than the run; config.json where no line of the history is about that step; None
      where neither exists.
    """
    step = latest_saved_step(folder) if step is None else step
    if step is not None:
        for entry in reversed(read_history(folder)):
            if entry["step"] < step:
                return entry["config"]
    return workdir.read_config(folder) if (folder / "config.json").exists() else None


def recorded(folder: Path, step: int | None, defaults: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """As `config_at`, with `defaults` in fields younger than the run."""
    config = config_at(folder, step)
    return None if config is None else _filled(config, defaults or {})


def check_resume(folder: Path, config: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Checks that `config` may go on with the run in `folder`. A workdir without a checkpoint holds no run yet.

    Raises:
      ConflictError: it changes what a resume must keep (`config_changes.RULES`); names each field.
    """
    step = latest_saved_step(folder)
    old = None if step is None else recorded(folder, step, defaults)
    if old is not None:
        config_changes.check_resume(folder, old, config)


def check_reading(folder: Path, config: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """As `check_resume`, for a mode that reads the run: only what its checkpoints depend on must be the same."""
    step = latest_saved_step(folder)
    old = None if step is None else recorded(folder, step, defaults)
    if old is not None:
        config_changes.check_reading(folder, old, config)


def report_config(
    folder: Path, config: dict[str, Any], step: int | None, defaults: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The config for the report of a mode that read the checkpoint of `step`.

    The fields that such a mode uses are the call's; all others are those with which the checkpoint was trained, whatever
    the call's flags were.
    """
    old = recorded(folder, step, defaults)
    return config_changes.as_read(old, config) if old is not None else json.loads(json.dumps(config))


def resume_changes(
    folder: Path, config: dict[str, Any], step: int, defaults: dict[str, Any] | None = None
) -> dict[str, list[Any]]:
    """Field -> [old, new] for each field in which `config` differs from that of the checkpoint of `step`; empty at step 0."""
    old = recorded(folder, step, defaults) if step else None
    return {} if old is None else config_changes.changes(old, config)


def version_changes(folder: Path, versions: dict[str, str], step: int) -> dict[str, list[Any]]:
    """Library -> [old, new] for each version that differs from that of the start which took the step before `step`."""
    for entry in reversed(read_history(folder)):
        if entry["step"] < step:
            old = entry.get("versions", {})
            return {name: [old[name], new] for name, new in versions.items() if name in old and old[name] != new}
    return {}


def record_start(folder: Path, config: dict[str, Any], step: int, **about: Any) -> None:
    """Records that a training which began at `step` takes steps with `config`.

    Args:
      folder: workdir.
      config: resolved, of what JSON can hold.
      step: that it resumed from, 0 for a new run.
      **about: what else the line holds (date, versions, devices, ...), of what JSON can hold.

    Raises:
      FileAccessError: a file cannot be written.
    """
    config = json.loads(json.dumps(config))  # as the file will give it back: tuples become lists
    file, lines = folder / HISTORY, read_history(folder)
    old = workdir.read_config(folder) if (folder / "config.json").exists() else None
    if not lines and old is not None and step:
        # A run older than its history: what config.json says of its steps would be lost.
        lines = [{"step": 0, "note": "config.json as it was before this file existed", "config": old}]
        _write(file, lines)
    # config.json first: if the process dies here, the next start with --workdir alone does what this one meant to, and
    # the history still says the truth about the checkpoints.
    if old != config:
        write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    _write(file, [*lines, {"step": step, **about, "config": config}])


def _write(file: Path, lines: list[dict[str, Any]]) -> None:
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))


def _filled(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`config`, with the fields of `defaults` that it does not have."""
    filled = json.loads(json.dumps(defaults))
    for name, value in config.items():
        both = isinstance(value, dict) and isinstance(filled.get(name), dict)
        filled[name] = _filled(value, filled[name]) if both else value
    return filled
