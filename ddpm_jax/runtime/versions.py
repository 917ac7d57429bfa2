"""Provenance of the program: versions of the libraries that its numbers depend on, and the commit of its source."""

import datetime
import importlib.metadata
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import ddpm_jax

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def program_versions() -> dict[str, str]:
    """Name -> version of this program, Python and the installed libraries."""
    found = {"ddpm_jax": ddpm_jax.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def program_commit() -> str | None:
    """The git commit of the source, with "-dirty" if files have changed; None outside a checkout or without git."""
    source = Path(ddpm_jax.__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # an installed copy may be inside another project's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def start_facts() -> dict[str, Any]:
    """When and where which program was started, for the record of a run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": program_versions(),
        "commit": program_commit(),
        "host": socket.gethostname(),
        "command": sys.argv,
    }
