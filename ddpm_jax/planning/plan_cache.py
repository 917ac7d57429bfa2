"""Keeps what a compilation found, by everything that it depends on: config, machine, versions and source of the program."""

import hashlib
import importlib.metadata
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import ddpm_jax
from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import error_line

logger = logging.getLogger(__name__)

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "libtpu", "jax-cuda12-pjrt")
# Source on which no compilation depends.
NOT_COMPILED = ("api", "cli", "evaluation", "interop", "metrics", "plotting")
REPORTS = ("report.py", "console.py")


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
