"""Keeps what a compilation found, by everything that it depends on.

That is the config, the machine, versions and source of the program and of the user's own parts, and flags of the compiler.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from typing import Any

import ddpm_jax
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import error_line
from ddpm_jax.runtime.registry import is_installed

logger = logging.getLogger(__name__)

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
# Source on which no compilation depends.
NOT_COMPILED = ("api", "cli", "evaluation", "interop", "metrics", "plotting")
REPORTS = ("report.py", "console.py")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_")  # prefixes of variables that change what is compiled
NOT_FLAGS = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")


def digest(what: Mapping[str, Any]) -> str:
    """SHA-256 of `what`, JSON-serializable, with the versions of the libraries and the source of this package."""
    source = hashlib.sha256()
    root = pathlib.Path(ddpm_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] in NOT_COMPILED or file.name in REPORTS:
            continue
        source.update(str(file.relative_to(root)).encode() + file.read_bytes())
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = ""
    text = json.dumps({"what": what, "versions": versions, "source": source.hexdigest()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def compiler_flags(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that change what JAX and XLA compile. JAX_PLATFORMS is always "cpu" in a plan."""
    return {name: value for name, value in environment.items() if name.startswith(FLAGS) and not name.startswith(NOT_FLAGS)}


def own_sources(parts: Iterable[str]) -> dict[str, str]:
    """File -> SHA-256 of the loaded modules of which the user's own parts may consist: which they import is not known.

    Args:
      parts: names of the form module:function, which have been imported. {} without any.

    Returns:
      The modules of their packages, and all that are neither installed nor of this package.
    """
    packages = {part.partition(":")[0].partition(".")[0] for part in parts}
    if not packages:
        return {}
    others = (os.path.dirname(ddpm_jax.__file__) + os.sep, sysconfig.get_path("stdlib") + os.sep)
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or file.startswith(others) or not os.path.isfile(file):
            continue
        if name.partition(".")[0] in packages or not is_installed(file):
            found[file] = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()
    return found


class PlanCache:
    """JSON files by digest.

    Attributes:
      folder: of the files; None: nothing is kept.
    """

    def __init__(self, folder: pathlib.Path | None):
        self.folder = folder

    def get(self, key: str) -> Any:
        """What was kept; None if there is nothing, or the file is damaged."""
        if self.folder is None:
            return None
        try:
            return json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON-serializable value. If the folder cannot be written, this is only logged: the value was expensive."""
        if self.folder is None:
            return
        try:
            storage.make_folder(self.folder)
            write_atomically(self.folder / f"{key}.json", json.dumps(value) + "\n")
        except OSError as error:
            logger.warning(f"cannot keep the plan in {self.folder}: {error_line(error)}; choose another --compilation_cache")
