"""The manifest.json of a results folder, which prevents mixing or overwriting results of different settings."""

import itertools
import json
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

from ddpm_jax.runtime import paths
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.config_changes import flatten
from ddpm_jax.runtime.errors import ConflictError, InvalidDataError

MANIFEST = "manifest.json"


def claim(identity: dict[str, Any], *, names: Collection[str], default: pathlib.Path, output: str = "") -> pathlib.Path:
    """Creates or reuses a writable folder for results: an unused one, or the one with the same results.

    Args:
      identity: identifies the results, JSON-compatible.
      names: of the files that will be written.
      default: the folder if `output` is empty. If it has other results, the next free of default-2, default-3, ...
      output: the folder chosen by the user, or "".

    Raises:
      ConflictError: `output` has files of these names without a manifest, or results of other settings (each difference
        is named).
      FileAccessError: the folder cannot be created or written.
    """
    if output:
        folder = paths.output_path(output, default)
        paths.make_output_folder(folder)
        if (folder / MANIFEST).exists():
            require_same(folder, identity)
        elif found := [name for name in names if (folder / name).exists()]:
            raise ConflictError(
                f"{folder} already has another {' and '.join(found)}: choose a new folder with --output, or move it away"
            )
    else:
        folder = next(each for each in _numbered(default) if _is_free(each, identity))
        paths.make_output_folder(folder)
    if not (folder / MANIFEST).exists():
        write(folder, identity)
    return folder


def write(folder: pathlib.Path, identity: dict[str, Any]) -> None:
    """Writes the folder's manifest."""
    write_atomically(folder / MANIFEST, json.dumps(identity, indent=2) + "\n")


def require_same(folder: pathlib.Path, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Raises a ConflictError that names each difference between `identity` and the folder's manifest.

    Args:
      folder: with a manifest.
      identity: of the new results.
      defaults: values of fields that an older manifest lacks; used only for fields of `identity`.
    """
    new = flatten(json.loads(json.dumps(identity)))
    younger = {name: value for name, value in flatten(json.loads(json.dumps(defaults or {}))).items() if name in new}
    old = younger | flatten(read(folder))
    differing = [
        f"{name} was {json.dumps(old.get(name))}, now {json.dumps(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise ConflictError(
            f"{folder} was written with different settings: {'; '.join(differing)}. Remove it, or choose another --output"
        )


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The folder's manifest.

    Raises:
      InvalidDataError: the manifest cannot be read, or is not a JSON object.
    """
    file = folder / MANIFEST
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidDataError(
            f"{file} cannot be read ({type(error).__name__}): remove its folder and generate the images again"
        ) from error


def _is_free(folder: pathlib.Path, identity: dict[str, Any]) -> bool:
    if not folder.is_dir():
        return not folder.exists()
    if not (folder / MANIFEST).exists():
        return not any(not file.name.startswith(".") for file in folder.iterdir())
    try:
        return read(folder) == json.loads(json.dumps(identity))
    except InvalidDataError:
        return False


def _numbered(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")
