"""Results in a folder: a repeated measurement replaces its result only, and damaged files are skipped."""

import dataclasses
import json
import multiprocessing

import pytest

from ddpm_jax.evaluation.results import Result, Results, digest, join, write_json
from ddpm_jax.runtime.errors import FileAccessError

ONE = Result("generated", "frechet", {"step": 5, "sampling": {"seed": 0}}, {"step": 5, "frechet": 1.5}, {"notes": ["a"]})


def test_a_repeated_measurement_replaces_only_its_own_result(tmp_path):
    results = Results(tmp_path / "results")
    assert results.read() == []
    others = [
        dataclasses.replace(ONE, metric="kid", row={"step": 5, "kid": 0.25}),
        dataclasses.replace(ONE, key={"step": 5, "sampling": {"seed": 1}}),
        dataclasses.replace(ONE, kind="real"),
    ]
    for result in (ONE, *others):
        results.add(result, "step_5")
    again = dataclasses.replace(ONE, row={"step": 5, "frechet": 1.25}, details={"notes": ["b"]})
    file = results.add(again, "step_5")
    assert file.name == f"step_5-frechet-{ONE.group}.json"
    found = results.read()
    assert len(found) == 4
    assert again in found
    assert ONE not in found
    assert all(other in found for other in others)


def test_metrics_of_one_row_are_joined():
    kid = dataclasses.replace(
        ONE, metric="kid", row={"step": 5, "kid": 0.25}, details={"notes": ["a", "b"], "provenance": {"kid": 2}}
    )
    other = dataclasses.replace(ONE, key={"step": 6})
    rows = join([ONE, other, kid])
    assert [row.row for row in rows] == [{"step": 5, "frechet": 1.5, "kid": 0.25}, {"step": 5, "frechet": 1.5}]
    assert rows[0].details == {"notes": ["a", "b"], "provenance": {"kid": 2}}
    assert rows[1] == other


def test_damaged_files_are_skipped_and_logged(tmp_path, log_lines):
    results = Results(tmp_path)
    file = results.add(ONE, "step_5")
    (tmp_path / "half.json").write_text(file.read_text()[:40])
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / ".partial.json.tmp").write_text("{")
    assert results.read() == [ONE]
    assert len(log_lines) == 2
    assert all("measure it again" in line for line in log_lines)


def test_a_folder_that_cannot_be_created_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match="cannot create the folder"):
        Results(tmp_path / "file" / "results").add(ONE, "step_5")


def _write(folder, first):
    for number in range(first, first + 40):
        Results(folder).add(dataclasses.replace(ONE, key={"step": number}), f"step_{number}")
        Results(folder).read()


def test_concurrent_writers_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(tmp_path, first)) for first in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(result.key["step"] for result in Results(tmp_path).read()) == list(range(60))


def test_names_and_digests():
    assert digest({"a": 1, "b": 2}) == digest(json.loads('{"b": 2, "a": 1}')) != digest({"a": 1, "b": 3})


def test_nan_and_infinity_become_null_in_json(tmp_path):
    write_json(tmp_path / "r.json", {"a": 1.5, "b": [float("nan"), {"c": float("inf")}], "d": "x", "e": (1, True)})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1.5, "b": [None, {"c": None}], "d": "x", "e": [1, True]}
    with pytest.raises(FileAccessError, match="cannot write"):
        write_json(tmp_path / "nowhere" / "r.json", {})
