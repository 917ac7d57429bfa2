"""Reports, tables and charts of the results in a folder."""

import dataclasses

import numpy as np

from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.results import Result
from ddpm_jax.evaluation.tables import markdown_table


def generated(evaluations=4, weights="ema", frechet=3.0, count=12, features="pixels"):
    row = {"images": "generated", "step": 6, "weights": weights, "sampler": f"ddim {evaluations} leading"}
    row |= {"evaluations": evaluations, "count": count, "frechet": frechet}
    key = {"step": 6, "weights": weights, "count": count, "sampling": {"num_steps": evaluations, "seed": 0}}
    key |= {"reference": {"set": "digits", "split": "train"}, "features": {"features": features}}
    return Result("generated", "frechet", key, row, {"notes": ["a"]})


def test_a_chart_for_each_axis_that_varies(monkeypatch):
    shown, draw = [], report.charts.draw
    monkeypatch.setattr(report.charts, "draw", lambda charts: shown.append(charts) or draw(charts))
    few, many, short, long = generated(), generated(9), generated(4, "power_0.05", 2.5), generated(4, "power_0.1", 2.0)
    other = generated(9, features="inception")  # another scale: not in the same chart
    for points, files in (
        ([few], set()),
        ([few, other], set()),
        ([few, short], set()),
        ([few, many], {"evaluations.png"}),
        ([few, short, long], {"lengths.png"}),
        ([few, many, short, long, other], {"evaluations.png", "lengths.png"}),
    ):
        pictures = report.sweep_charts(points)
        assert set(pictures) == files
        assert all(picture.dtype == np.uint8 and picture.std() > 0 for picture in pictures.values())
    [evaluations], [lengths] = shown[-2:]
    assert evaluations.x_label == "network evaluations per image"
    assert lengths.x_label == "EMA length σ_rel"
    for chart, points in ((evaluations, [(4, 2.0), (4, 2.5), (4, 3.0), (9, 3.0)]), (lengths, [(0.05, 2.5), (0.1, 2.0)])):
        assert chart.y_label == "Fréchet distance"
        assert (chart.log_x, chart.log_y) == (True, True)
        assert all(line.label for line in chart.lines)
        assert sorted((x, y) for line in chart.lines for x, y in zip(line.x, line.y, strict=True)) == points


def test_a_table_shows_how_its_rows_differ():
    one, other = generated(), generated(count=24)
    lines = report.table([one, other]).splitlines()
    assert lines[0] == "| images | step | weights | sampler | evaluations | count | frechet |"
    assert lines[-1] == "a"
    inception = dataclasses.replace(generated(features="inception"), details={"notes": ["b"]})
    seed = dataclasses.replace(one, key=one.key | {"sampling": {"num_steps": 4, "seed": 7}})
    text = report.table([one, inception, seed])
    assert text.splitlines()[0].endswith("| frechet | features | seed | notes |")
    assert "| inception | 0 | 1 |" in text
    assert "| pixels | 7 | 2 |" in text
    assert text.endswith("\n1. b\n\n2. a\n")


def test_results_of_another_version_are_skipped(tmp_path, caplog):
    old = dataclasses.replace(generated(9), kind="drawn")
    report.write(tmp_path, [old, generated()])
    text = (tmp_path / "table.md").read_text()
    assert "ddim 4 leading" in text
    assert "ddim 9 leading" not in text
    assert f"skipping 1 results in {tmp_path}" in caplog.text


def test_a_table_has_every_column_once_and_empty_cells():
    rows = [{"images": "real", "count": 1500}, {"images": "generated", "frechet": 3.14159}, {"frechet": 12345.6}]
    assert markdown_table(rows) == (
        "| images | count | frechet |\n| --- | --- | --- |\n| real | 1,500 |  |\n| generated |  | 3.142 |\n|  |  | 12,346 |\n"
    )
