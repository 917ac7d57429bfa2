"""The manifest.json of a folder of results: the settings they were made with, so that different results never mix."""

import itertools
import json
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

from ddpm_jax.runtime import paths
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.config_changes import changes, flatten
from ddpm_jax.runtime.errors import ConflictError, InvalidDataError, as_text

MANIFEST = "manifest.json"
ADVICE = "; choose another `output`"  # if a result cannot be written


def claim(identity: dict[str, Any], *, names: Collection[str], default: pathlib.Path, output: str = "") -> pathlib.Path:
    """Create or reuse a writable folder for these results: an empty one, or the one with the same settings.

    Args:
      identity: settings that determine the results; JSON-serializable.
      names: names of the files to write.
      default: folder if `output` is "". If it holds other results, the first free one of default-2, default-3, ...
      output: folder given by the user, or "".

    Raises:
      ConflictError: `output` holds files with these names but no manifest, or results with different settings (the message
        lists each difference).
      InvalidDataError: the manifest cannot be read.
      FileAccessError: the folder cannot be created or written.
    """
    if output:
        folder = paths.output_path(output, default)
        paths.make_output_folder(folder)
        if (folder / MANIFEST).exists():
            require_same(folder, identity)
        elif found := [name for name in names if (folder / name).exists()]:
            raise ConflictError(f"{folder} already holds {' and '.join(found)}: choose another `output`, or move these files")
    else:
        folder = next(each for each in _numbered(default) if _is_free(each, identity))
        paths.make_output_folder(folder)
    if not (folder / MANIFEST).exists():
        write(folder, identity, advice=ADVICE)
    return folder


def check_output(identity: dict[str, Any], output: str) -> None:
    """Check that `claim` will accept a folder given by the user, without writing a manifest. The folder is created.

    Raises:
      ConflictError, InvalidDataError, FileAccessError: as `claim`.
    """
    folder = paths.output_path(output, "")
    paths.make_output_folder(folder)
    if (folder / MANIFEST).exists():
        require_same(folder, identity)


def write(folder: pathlib.Path, identity: dict[str, Any], *, advice: str = "") -> None:
    """Write the manifest of a folder. `advice` ends the message of an error."""
    write_atomically(folder / MANIFEST, json.dumps(identity, indent=2) + "\n", advice=advice)


def require_same(folder: pathlib.Path, identity: dict[str, Any]) -> None:
    """Check that the manifest of the folder matches `identity`, the settings of the new results.

    Raises:
      ConflictError: they differ; the message lists each difference.
      InvalidDataError: the manifest cannot be read.
    """
    old, new = read(folder), json.loads(json.dumps(identity))
    differing = [f"{name} was {as_text(a)}, now {as_text(b)}" for name, (a, b) in changes(old, new).items()]
    if differing:
        version = "" if flatten(old).keys() == flatten(new).keys() else ", or by another version of this program"
        raise ConflictError(
            f"{folder} was written with different settings{version}: {'; '.join(differing)}. "
            "Remove it, or choose another `output`"
        )


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
      InvalidDataError: the manifest cannot be read, or is not a JSON object.
    """
    file = folder / MANIFEST
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidDataError(
            f"{file} cannot be read ({type(error).__name__}): remove the folder and generate the images again"
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
