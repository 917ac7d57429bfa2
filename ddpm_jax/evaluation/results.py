"""Evaluation results in a folder, one small file each.

The file name contains a hash of everything the result depends on, so repeating a measurement replaces its own result only.
Files are written atomically and independently of each other, so several programs can write at once and be killed at any
time. Reports and tables are generated from all files.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ddpm_jax.runtime import storage
from ddpm_jax.runtime.atomic import write_atomically
from ddpm_jax.runtime.errors import os_errors

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """One measurement; all fields are JSON-serializable.

    Attributes:
      kind: what was measured, such as "generated" for scores of generated images.
      metric: name of the metric; results that differ only in it share a row of the table.
      key: everything else that the result depends on.
      row: column of the table -> value.
      details: further content of the report.
    """

    kind: str
    metric: str
    key: dict[str, Any]
    row: dict[str, Any]
    details: dict[str, Any]

    @property
    def group(self) -> str:
        """12 hexadecimal digits, equal for all metrics of one row."""
        return digest({"kind": self.kind, "key": self.key})


class Results:
    """The results in a folder. `add` creates the folder."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = storage.path(folder)

    def add(self, result: Result, prefix: str) -> pathlib.Path:
        """Write a result to a file whose name starts with `prefix`, and return its path.

        Raises:
          FileAccessError: the file cannot be written.
        """
        with os_errors(f"cannot create the folder {self.folder}"):
            storage.make_folder(self.folder)
        file = self.folder / f"{prefix}-{result.metric}-{result.group}.json"
        write_json(file, dataclasses.asdict(result))
        return file

    def read(self) -> list[Result]:
        """Read all results in order of their file names. Damaged files are logged and skipped."""
        found = []
        for file in sorted(self.folder.glob("*.json")):
            try:
                held = json.loads(file.read_text(encoding="utf-8"))
                result = Result(**{field.name: held[field.name] for field in dataclasses.fields(Result)})
                if not all(isinstance(part, dict) for part in (result.key, result.row, result.details)):
                    raise TypeError
                found.append(result)
            except FileNotFoundError:
                continue  # removed by another program
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning(f"{file} cannot be read ({type(error).__name__}) and is skipped: measure it again")
        return found


def join(results: Iterable[Result]) -> list[Result]:
    """Join the metrics of each row into one result; where details differ, the later result takes precedence."""
    joined: dict[str, Result] = {}
    for result in results:
        before = joined.get(result.group)
        if before:
            row, details = before.row | result.row, before.details | result.details
            details["notes"] = list(dict.fromkeys([*before.details.get("notes", ()), *result.details.get("notes", ())]))
            details["provenance"] = before.details.get("provenance", {}) | result.details.get("provenance", {})
            result = dataclasses.replace(before, metric=f"{before.metric} {result.metric}", row=row, details=details)
        joined[result.group] = result
    return list(joined.values())


def digest(value: Any) -> str:
    """Hash of a JSON-serializable value: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def write_json(file: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Write JSON; NaN and infinity become null.

    Raises:
      FileAccessError: the file cannot be written.
    """
    write_atomically(file, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    return value
