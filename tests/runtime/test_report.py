"""Reports: JSON files and Markdown tables."""

import json

import pytest

from ddpm_jax.runtime import report
from ddpm_jax.runtime.errors import FileAccessError


def test_json_replaces_nan_and_infinity_by_null(tmp_path):
    report.write_json(tmp_path / "r.json", {"a": 1.5, "b": [float("nan"), {"c": float("inf")}], "d": "x", "e": (1, True)})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1.5, "b": [None, {"c": None}], "d": "x", "e": [1, True]}
    with pytest.raises(FileAccessError, match="cannot write"):
        report.write_json(tmp_path / "nowhere" / "r.json", {})


def test_a_table_has_every_column_once_and_empty_cells():
    rows = [{"images": "real", "count": 1500}, {"images": "generated", "frechet": 3.14159}]
    assert report.markdown_table(rows) == (
        "| images | count | frechet |\n| --- | --- | --- |\n| real | 1,500 |  |\n| generated |  | 3.142 |\n"
    )
