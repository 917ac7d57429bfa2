"""Provenance of the program: versions of the libraries that its numbers depend on, and the commit of its source."""

import datetime
import hashlib
import importlib.metadata
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ddpm_jax
from ddpm_jax.runtime import registry

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


def own_modules(names: Mapping[Any, Any]) -> dict[str, str]:
    """File name -> SHA-256 (12 digits) of the loaded modules of all values module:function in nested dictionaries and lists."""
    found: dict[str, str] = {}
    for value in names.values():
        if isinstance(value, Mapping):
            found |= own_modules(value)
        elif isinstance(value, list | tuple):
            found |= own_modules(dict(enumerate(value)))
        elif isinstance(value, str) and registry.is_own(value):
            file = getattr(sys.modules.get(value.partition(":")[0]), "__file__", None)
            if file and Path(file).is_file() and "site-packages" not in file:
                found[Path(file).name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
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


def start_facts(names: Mapping[str, Any]) -> dict[str, Any]:
    """When and where which program was started, for the record of a run; names as for `own_modules`."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": program_versions() | own_modules(names),
        "commit": program_commit(),
        "host": socket.gethostname(),
        "command": sys.argv,
    }
