"""The folder of one run: its config, and where its checkpoints, samples and evaluations lie."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import paths
from ddpm_jax.runtime.errors import PersonError

FIXED = ("model", "diffusion", "data", "ema.decays", "ema.power_stds")
FREE = ("data.data_dir", "data.in_memory", "data.num_threads", "data.prefetch")

_ABSENT = object()


def prepare(
    workdir: str | os.PathLike,
    config: dict[str, Any],
    *,
    fixed: Iterable[str] = FIXED,
    free: Iterable[str] = FREE,
    defaults: dict[str, Any] | None = None,
    is_writer: bool = True,
) -> Path:
    """Makes the folder, or checks that it holds a run of the same experiment, and writes config.json.

    A run is there once its folder for checkpoints is: a start that failed before, on a misspelt data set for one, leaves
    the workdir to the corrected command.

    Args:
      workdir: absolute or relative to the current folder.
      config: the resolved config, of what JSON can hold.
      fixed: sections or dotted fields that a resume must not change.
      free: dotted fields inside those that it may: they say where data lies and how fast it is read, not what it is.
      defaults: what fields are that the folder's config does not have: those younger than its run.
      is_writer: False in all processes but one; those only check.

    Returns:
      The folder's absolute path.

    Raises:
      PersonError: the folder belongs to another experiment (names each differing field), or cannot be written.
    """
    folder = _absolute(workdir)
    if is_writer:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PersonError(f"cannot make the workdir {folder}: {_reason(error)}; choose another --workdir") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PersonError(f"cannot write into the workdir {folder}: permission denied; choose another --workdir")
    config = json.loads(json.dumps(config))  # as the file will give it back: tuples become lists
    file = folder / "config.json"
    old = read_config(folder) if file.exists() else None
    if old is not None and checkpoint_folder(folder).exists():
        known = _flatten(json.loads(json.dumps(defaults or {}))) | _flatten(old)
        _check_same_experiment(folder, known, _flatten(config), tuple(fixed), frozenset(free))
    if is_writer and old != config:
        write_atomically(file, json.dumps(config, indent=2) + "\n")
    return folder


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in `workdir`.

    Raises:
      PersonError: there is none, or it is not a JSON object.
    """
    file = _absolute(workdir) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PersonError(f"{file.parent} holds no run: there is no config.json in it; check --workdir") from error
    except OSError as error:
        raise PersonError(f"cannot read {file}: {_reason(error)}") from error
    except ValueError as error:  # neither UTF-8 nor JSON
        raise PersonError(f"{file} is damaged ({error}); put the run's config back, or choose another --workdir") from error
    if not isinstance(config, dict):
        raise PersonError(f"{file} is damaged (no JSON object); put the run's config back, or choose another --workdir")
    return config


def checkpoint_folder(workdir: str | os.PathLike) -> Path:
    """Where the run's checkpoints lie. Not created here."""
    return _absolute(workdir) / "checkpoints"


def sample_folder(workdir: str | os.PathLike) -> Path:
    """Where pictures drawn from the run go. Not created here."""
    return _absolute(workdir) / "samples"


def evaluation_folder(workdir: str | os.PathLike) -> Path:
    """Where the run's measurements go. Not created here."""
    return _absolute(workdir) / "eval"


def write_atomically(file: Path, text: str) -> None:
    """Writes `text` so that whoever reads `file`, even after a crash, finds the old or the new, never a part.

    Raises:
      PersonError: the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PersonError(f"cannot write {file}: {_reason(error)}") from error


def _absolute(workdir: str | os.PathLike) -> Path:
    text = os.fspath(workdir)
    if not text:
        raise PersonError("no workdir given: say --workdir=DIR")
    if "://" in text:
        raise PersonError(f"the workdir {text} is not a folder of this machine; mount the bucket and name the mounted folder")
    return paths.expand(text)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _check_same_experiment(
    folder: Path, old_fields: dict[str, Any], new_fields: dict[str, Any], fixed: tuple[str, ...], free: frozenset[str]
) -> None:
    differing = [
        f"{field} was {_show(old_fields.get(field, _ABSENT))}, now {_show(new_fields.get(field, _ABSENT))}"
        for field in sorted(old_fields.keys() | new_fields.keys())
        if field not in free
        and any(field == name or field.startswith(name + ".") for name in fixed)
        and old_fields.get(field, _ABSENT) != new_fields.get(field, _ABSENT)
    ]
    if differing:
        raise PersonError(
            f"{folder} holds a run of another experiment: {'; '.join(differing)}. "
            "Choose another --workdir, or put the old values back"
        )


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            fields |= _flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def _show(value: Any) -> str:
    return "not there" if value is _ABSENT else json.dumps(value)
