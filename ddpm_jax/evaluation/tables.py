"""Tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table. Columns are in order of first appearance; missing values are empty cells.

    Integers have thousands separators, floats four significant digits, or none after the point.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, ["---"] * len(columns), *([_format_value(row.get(name)) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _format_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
    return str(value)
