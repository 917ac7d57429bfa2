"""Results of measurements in a folder, one small file each: none is ever lost to another.

A result is named by a hash of everything it depends on, so measuring the same again replaces it and nothing else does.
Files appear whole or not at all, and no file is read to write another, so programs may write at once and be killed at any time.
Reports and tables are made from all of them, as often as wanted.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from ddpm_jax.runtime import report as reports
from ddpm_jax.runtime.errors import os_errors

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """One measurement; all of what JSON can hold.

    Attributes:
      kind: of what, such as "drawn" for scores of generated images.
      metric: which number or numbers: results that differ in this alone are one row of a table.
      key: everything else that they depend on.
      row: what a table shows: column -> value.
      details: what else a report says.
    """

    kind: str
    metric: str
    key: dict[str, Any]
    row: dict[str, Any]
    details: dict[str, Any]

    @property
    def group(self) -> str:
        """12 hexadecimal digits, the same for all metrics of one row."""
        return digest({"kind": self.kind, "key": self.key})


class Results:
    """The results in a folder, which is made by the first `add`."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder).absolute()

    def add(self, result: Result, words: str) -> pathlib.Path:
        """Write a result; its file, named by `words` and what it depends on, without ".json" a stem for pictures of it.

        Raises:
          FileAccessError: it cannot be written.
        """
        with os_errors(f"cannot make the folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{words}-{result.metric}-{result.group}.json"
        reports.write_json(file, dataclasses.asdict(result))
        return file

    def read(self) -> list[Result]:
        """All of them, in order of their file names; what is damaged is reported and left out."""
        found = []
        for file in sorted(self.folder.glob("*.json")):
            try:
                held = json.loads(file.read_text(encoding="utf-8"))
                found.append(Result(**{field.name: held[field.name] for field in dataclasses.fields(Result)}))
            except FileNotFoundError:
                continue  # removed meanwhile
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning(f"{file} cannot be read ({type(error).__name__}) and is left out: measure it again")
        return found


def join(results: Iterable[Result]) -> list[Result]:
    """One for each row: the columns of all its metrics, and the details of each, later ones first where they disagree."""
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
    """12 hexadecimal digits that tell values of what JSON can hold apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    fields: dict[str, Any] = {}
    for name, part in value.items():
        fields |= flatten(part, f"{prefix}{name}.") if isinstance(part, dict) else {prefix + name: part}
    return fields
