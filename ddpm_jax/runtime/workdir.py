"""The folder of one run: its config and the locations of checkpoints, samples and evaluations."""

import json
import os
from pathlib import Path
from typing import Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError, error_line, os_errors


def make_folder(workdir: str | os.PathLike) -> Path:
    """Creates the folder if it is missing, and returns its absolute path.

    Raises:
      FileAccessError: it cannot be created or written.
    """
    folder = absolute(workdir)
    with os_errors(f"cannot make the workdir {folder}", "; choose another `workdir`"):
        storage.make_folder(folder)
        if storage.is_remote(folder):
            storage.check_writable(folder)
            return folder
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileAccessError(f"cannot write into the workdir {folder}: permission denied; choose another `workdir`")
    return folder


def read_config(workdir: str | os.PathLike, *, advice: str = "check `workdir`") -> dict[str, Any]:
    """The config of the run in `workdir`. `advice` is what to do if there is none.

    Raises:
      FileAccessError: there is none, or it cannot be read.
      InvalidDataError: it is not a JSON object.
    """
    file = absolute(workdir) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileAccessError(f"{file.parent} contains no run: there is no config.json in it; {advice}") from error
    except OSError as error:
        raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error
    except ValueError as error:  # neither UTF-8 nor JSON
        raise InvalidDataError(f"{file} is damaged ({error}); restore the run's config, or choose another `workdir`") from error
    if not isinstance(config, dict):
        raise InvalidDataError(f"{file} is damaged (no JSON object); restore the run's config, or choose another `workdir`")
    return config


def read_data_identity(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The data set of the run in `workdir` (`data/identity.py`); None before the first step or without data.json.

    Raises:
      InvalidDataError: data.json is damaged.
    """
    file = absolute(workdir) / "data.json"
    try:
        identity = json.loads(file.read_text(encoding="utf-8"))
        return {"class_names": list(identity["class_names"]), "fingerprint": str(identity["fingerprint"])} | identity
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileAccessError(f"cannot read {file}: {error_line(error)}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidDataError(f"{file} is damaged: remove it (a resumed training writes it again), or restore it") from error


def write_data_identity(workdir: str | os.PathLike, identity: dict[str, Any]) -> None:
    """Writes data.json.

    Raises:
      FileAccessError: it cannot be written.
    """
    write_atomically(absolute(workdir) / "data.json", json.dumps(identity, indent=2) + "\n")


def checkpoint_folder(workdir: str | os.PathLike) -> Path:
    """The folder of the run's checkpoints. Not created here."""
    return absolute(workdir) / "checkpoints"


def sample_folder(workdir: str | os.PathLike) -> Path:
    """The folder of generated images. Not created here."""
    return absolute(workdir) / "samples"


def evaluation_folder(workdir: str | os.PathLike) -> Path:
    """The folder of evaluation results. Not created here."""
    return absolute(workdir) / "eval"


def absolute(workdir: str | os.PathLike) -> Path:
    """The absolute path of a workdir, as `storage.path`.

    Raises:
      FileAccessError: the name is empty, or of a store that is not supported.
    """
    if not os.fspath(workdir):
        raise FileAccessError("no workdir given: set `workdir=DIR`")
    if storage.is_remote(workdir) and not storage.is_supported(workdir):
        raise FileAccessError(
            f"the workdir {workdir} is not a folder on this machine, and gs:// is the only store that is supported; mount the "
            "bucket and use the mounted folder"
        )
    return storage.path(workdir)
