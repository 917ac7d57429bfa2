"""The record of a run: config.json, and history.jsonl with one line per training start that took steps.

Both are written after the first step of a start, before any checkpoint can contain it. A failed start, a finished run and
the modes that only read therefore change neither, and a run killed at any time has a record of every step in its
checkpoints. Each line holds the whole config: the next start repeats the unsaved steps of a killed run, perhaps with another
config, and the last line in the file applies.

config.json is the config of the last line. `--workdir` without `--config` uses it.
"""

import json
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import config_changes, workdir
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.checksums import is_committed
from ddpm_jax.runtime.errors import ConflictError, InvalidDataError, error_line

HISTORY = "history.jsonl"


def latest_saved_step(folder: Path) -> int | None:
    """The step of the newest checkpoint in the workdir, by folder name; None if there is none."""
    checkpoints = workdir.checkpoint_folder(folder)
    try:
        steps = [int(entry.name) for entry in checkpoints.iterdir() if entry.name.isdigit() and is_committed(entry)]
    except OSError:
        return None
    return max(steps, default=None)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl, oldest first; empty without the file.

    Raises:
      InvalidDataError: the file cannot be read, or a line is damaged.
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
    """The config of the training step before the checkpoint of `step`.

    `step` None is that of the newest checkpoint. config.json if the history has no line for the step, or if there is no
    checkpoint; None if neither exists.
    """
    step = latest_saved_step(folder) if step is None else step
    if step is not None:
        for entry in reversed(read_history(folder)):
            if entry["step"] < step:
                return entry["config"]
    return workdir.read_config(folder) if (folder / "config.json").exists() else None


def check_config(folder: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Checks that `config` may resume, or only read, the run in `folder`. Without a checkpoint there is no run yet.

    Raises:
      ConflictError: as `config_changes.check`; or a training would start from random values in the workdir of an import that
        was killed before it saved the weights.
    """
    step, lines = latest_saved_step(folder), read_history(folder)
    if resume and step is None and lines and "imported" in lines[-1]:
        source = lines[-1]["imported"].get("path")
        raise ConflictError(
            f"{folder}: an import of {source} did not complete: repeat it with the same command, or choose another --workdir"
        )
    old = None if step is None else config_at(folder, step)
    if old is not None:
        config_changes.check(folder, old, config, resume=resume)


def report_config(folder: Path, config: dict[str, Any], step: int | None) -> dict[str, Any]:
    """The config for the report of a mode that read the checkpoint of `step`.

    Fields that such a mode uses are from `config`; all others are those with which the checkpoint was trained.
    """
    old = config_at(folder, step)
    return config_changes.as_read(old, config) if old is not None else json.loads(json.dumps(config))


def resume_changes(folder: Path, config: dict[str, Any], step: int) -> dict[str, list[Any]]:
    """Field -> [old, new] for each field of `config` that differs from the checkpoint of `step`; empty at step 0.

    Optional fields that the config of the checkpoint lacks are left out: their old values are unknown.
    """
    old = config_at(folder, step) if step else None
    if old is None:
        return {}
    absent = config_changes.absent_fields(old, config)
    return {field: pair for field, pair in config_changes.changes(old, config).items() if field not in absent}


def version_changes(folder: Path, versions: dict[str, str], step: int) -> dict[str, list[Any]]:
    """Library -> [old, new] for each version that differs from the start that took the step before `step`."""
    for entry in reversed(read_history(folder)):
        if entry["step"] < step:
            old = entry.get("versions", {})
            return {name: [old[name], new] for name, new in versions.items() if name in old and old[name] != new}
    return {}


def record_start(folder: Path, config: dict[str, Any], step: int, **about: Any) -> None:
    """Records that a training started at `step` with `config`.

    Args:
      config: resolved, JSON-compatible.
      step: from which it resumed, 0 for a new run.
      **about: other fields of the line (date, versions, devices, ...), JSON-compatible.

    Raises:
      FileAccessError: a file cannot be written.
    """
    config = json.loads(json.dumps(config))  # as read from the file: tuples become lists
    file, lines = folder / HISTORY, read_history(folder)
    # config.json first: if the process dies here, the next start with --workdir alone uses this config, and the history
    # is still correct for the checkpoints.
    if not (folder / "config.json").exists() or workdir.read_config(folder) != config:
        write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    lines.append({"step": step, **about, "config": config})
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
