"""Comparison of runs, from workdirs written by hand."""

import json

import pytest

from ddpm_jax.evaluation import comparison
from ddpm_jax.evaluation.results import Result, Results
from ddpm_jax.runtime.errors import FileAccessError, InvalidArgumentError
from ddpm_jax.runtime.trackers.jsonl import JsonLines


def make_run(folder, rate, scores, count=12, features="pixels", **options):
    folder.mkdir(parents=True)
    config = {"seed": 1, "optimizer": {"learning_rate": rate}, "model": {"options": options}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "parameters.txt").write_text("+---+\nTotal: 1,012 -- 8,096 bytes\n")
    rows = JsonLines(folder, 0)
    for step, score in enumerate(scores, 1):
        rows.log_scalars(step, {"train/loss": 1 / step, "perf/images_per_second": 100.0 * step})
        rows.log_scalars(step, {"eval/frechet": score, "eval/count": 12})
    rows.close()
    key = {"step": 2, "weights": "ema", "reference": {"set": "digits", "split": "train"}, "features": {"features": features}}
    row = {"images": "generated", "step": 2, "weights": "ema", "sampler": "ddim 4", "count": count, "frechet": scores[-1]}
    Results(folder / "eval" / "results").add(Result("generated", "frechet", key | {"count": count}, row, {}), "step_2")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "a", 0.1, [3.0, 2.0]), make_run(tmp_path / "b", 0.2, [4.0, float("nan"), 1.0], width=8)]


def test_only_fields_that_differ_are_listed(runs):
    found = comparison.read_runs(runs)
    a, b = (run.name for run in found)
    assert comparison.differing_fields(found) == [
        {"field": "model.options", a: "{}", b: "not set"},
        {"field": "model.options.width", a: "not set", b: "8"},
        {"field": "optimizer.learning_rate", a: "0.1", b: "0.2"},
    ]


def test_the_code_of_ones_own_parts_is_compared(runs, tmp_path):
    for name, sha in (("a", "0123"), ("b", "4567")):
        entry = {"step": 0, "config": {}, "versions": {"jax": name, "my_parts.py": sha}}
        (tmp_path / name / "history.jsonl").write_text(json.dumps(entry) + "\n")
    found = comparison.read_runs(runs)
    a, b = (run.name for run in found)
    assert {"field": "my_parts.py", a: "0123", b: "4567"} in comparison.differing_fields(found)
    assert "jax" not in {row["field"] for row in comparison.differing_fields(found)}


def test_damaged_files_are_skipped(runs, tmp_path, log_lines):
    """A killed training leaves an incomplete last line; the others are damage, of the disk or of an editor."""
    expected = comparison.report(comparison.read_runs(runs))
    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "train/lo')
    assert comparison.report(comparison.read_runs(runs)) == expected
    assert log_lines == []
    lines = [b"[1]", b'{"step": "x"}', b'{"step": Infinity}', b'{"step": 9, "train/loss": "low"}', b"\xff\xfe", b'{"step": 9']
    with (tmp_path / "b" / "metrics.jsonl").open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
    (tmp_path / "b" / "eval" / "results" / "step_9-kid-0.json").write_text(
        json.dumps({"kind": "generated", "metric": "kid", "key": [], "row": "", "details": {}})
    )
    assert comparison.report(comparison.read_runs(runs)) == expected
    assert comparison.draw_curves(comparison.read_runs(runs)) is not None
    assert f"6 damaged line(s) of {tmp_path / 'b' / 'metrics.jsonl'} are skipped" in log_lines
    for text in (b"Total: ,,\n", b"\xff\xfe", b""):
        (tmp_path / "b" / "parameters.txt").write_bytes(text)
        assert [run.parameters for run in comparison.read_runs(runs)] == [1012, None]
    (tmp_path / "b" / "parameters.txt").unlink()
    (tmp_path / "b" / "parameters.txt").mkdir()
    with pytest.raises(FileAccessError, match=r"cannot read .*parameters\.txt: is a directory"):
        comparison.read_runs(runs)


def test_the_last_values_and_the_median_speed(runs):
    found = comparison.read_runs(runs)
    first, second = comparison.training_summary(found)
    expected = {"run": found[0].name, "steps": 2, "parameters": 1012, "train/loss": 0.5, "eval/frechet": 2.0}
    assert first == expected | {"perf/images_per_second": 150.0}
    assert (second["steps"], second["eval/frechet"], second["perf/images_per_second"]) == (3, 1.0, 200.0)


def test_what_cannot_be_compared_is_noted(runs, tmp_path):
    rows, notes = comparison.evaluation_rows(comparison.read_runs(runs))
    assert [row["frechet"] for row in rows] == [2.0, 1.0]
    assert {row["compared with"] for row in rows} == {"digits train, pixels"}
    assert notes == []
    other = make_run(tmp_path / "c", 0.1, [1.0], count=24, features="inception")
    rows, notes = comparison.evaluation_rows(comparison.read_runs([runs[0], other]))
    assert [note.split(" ")[0] for note in notes] == ["These", "Fréchet"]
    report = comparison.report(comparison.read_runs([runs[0], other]))
    assert "digits train, inception" in report
    assert notes[0] in report


def test_curves_of_all_runs(runs, monkeypatch):
    picture = comparison.draw_curves(comparison.read_runs(runs))
    assert picture.shape[2] == 3
    assert picture.shape[1] > 1.9 * picture.shape[0]  # two charts


def test_runs_that_cannot_be_compared(runs, tmp_path):
    for given in ([], runs[:1], [runs[0], runs[0]]):
        with pytest.raises(
            InvalidArgumentError,
            match="compare needs the workdirs of two or more different runs, such as compare runs/a runs/b",
        ):
            comparison.read_runs(given)
    with pytest.raises(FileAccessError, match=r"nothing contains no run: there is no config\.json in it; check its name$"):
        comparison.read_runs([runs[0], str(tmp_path / "nothing")])


def test_runs_of_the_same_name_have_their_paths(tmp_path):
    same = [make_run(tmp_path / part / "runs" / "a", 0.1, [1.0, 2.0]) for part in ("x", "y")]
    assert [run.name for run in comparison.read_runs(same)] == same
