"""Reports of measurements: a complete JSON file and a readable Markdown table."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_jax.runtime.atomic import write_atomically


def write_json(file: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON; NaN and infinity, which JSON lacks, become null.

    Raises:
      FileAccessError: the file cannot be written.
    """
    write_atomically(file, json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def write_text(file: pathlib.Path, text: str) -> None:
    """Writes a text atomically.

    Raises:
      FileAccessError: the file cannot be written.
    """
    write_atomically(file, text)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, columns in order of first occurrence; missing values are empty.

    Integers get commas, floats four digits.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, ["---"] * len(columns), *([_format_cell(row.get(name)) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    return value
