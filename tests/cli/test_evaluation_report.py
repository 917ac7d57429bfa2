"""Reports, tables and curves of all results in a folder, and classes in the proportions of the reference."""

import dataclasses
import json

import numpy as np
import pytest

from ddpm_jax import data_config
from ddpm_jax.cli import evaluate, evaluation_report, generated, sample_metrics
from ddpm_jax.metrics.frechet import fit_gaussian, frechet_distance
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime.results import Result
from ddpm_jax.user_messages import UserError

TRAINED = {
    "model.class_conditional": True,
    "evaluation.num_images": 12,
    "evaluation.batch_size": 16,
    "evaluation.num_heldout_images": 8,
    "evaluation.vlb_num_timesteps": 4,
}


def drawn(evaluations=4, weights="ema", frechet=3.0, count=12, features="pixels"):
    row = {"images": "drawn", "step": 6, "weights": weights, "sampler": f"ddim {evaluations} leading"}
    row |= {"evaluations": evaluations, "count": count, "frechet": frechet}
    key = {"step": 6, "weights": weights, "count": count, "sampling": {"num_steps": evaluations, "seed": 0}}
    key |= {"reference": {"set": "digits", "split": "train"}, "features": {"features": features}}
    return Result("drawn", "frechet", key, row, {"notes": ["a"]})


def test_a_picture_for_each_axis_that_the_points_spread_over(monkeypatch):
    shown, draw = [], evaluation_report.charts.draw
    monkeypatch.setattr(evaluation_report.charts, "draw", lambda charts: shown.append(charts) or draw(charts))
    few, many, short, long = drawn(), drawn(9), drawn(4, "power_0.05", 2.5), drawn(4, "power_0.1", 2.0)
    other = drawn(9, features="inception")  # of another scale: no curve with the first
    for points, files in (
        ([few], set()),
        ([few, other], set()),
        ([few, short], set()),
        ([few, many], {"evaluations.png"}),
        ([few, short, long], {"lengths.png"}),
        ([few, many, short, long, other], {"evaluations.png", "lengths.png"}),
    ):
        pictures = evaluation_report.sweep_charts(points)
        assert set(pictures) == files
        assert all(picture.dtype == np.uint8 and picture.std() > 0 for picture in pictures.values())
    [evaluations], [lengths] = shown[-2:]
    assert evaluations.x_label == "network evaluations per image"
    assert lengths.x_label.startswith("length of the average")
    for chart, points in ((evaluations, [(4, 2.0), (4, 2.5), (4, 3.0), (9, 3.0)]), (lengths, [(0.05, 2.5), (0.1, 2.0)])):
        assert chart.y_label == "Fréchet distance"
        assert (chart.log_x, chart.log_y) == (True, True)
        assert all(line.label for line in chart.lines)
        assert sorted((x, y) for line in chart.lines for x, y in zip(line.x, line.y, strict=True)) == points


def test_a_table_shows_in_what_its_rows_differ():
    one, other = drawn(), drawn(count=24)
    lines = evaluation_report.table([one, other]).splitlines()
    assert lines[0] == "| images | step | weights | sampler | evaluations | count | frechet |"
    assert lines[-1] == "a"
    inception = dataclasses.replace(drawn(features="inception"), details={"notes": ["b"]})
    seed = dataclasses.replace(one, key=one.key | {"sampling": {"num_steps": 4, "seed": 7}})
    text = evaluation_report.table([one, inception, seed])
    assert text.splitlines()[0].endswith("| frechet | features | seed | notes |")
    assert "| inception | 0 | 1 |" in text
    assert "| pixels | 7 | 2 |" in text
    assert text.endswith("\n1. b\n\n2. a\n")


def test_two_evaluations_of_one_checkpoint_keep_both(trained, tiny_config, tmp_path):
    """Other metrics, counts, decoders and seeds add to what is there; the same again replaces only itself."""

    def measure(**fields):
        config = tiny_config(TRAINED | {f"evaluation.{name}": value for name, value in fields.items()})
        assert evaluate.run(config, str(trained), output=str(tmp_path)) == 0
        return json.loads((tmp_path / "step_6.json").read_text())

    (tmp_path / "step_6.json").write_text('{"step": 6, "drawn": "by a version before"}')
    first = measure(metrics=("frechet", "bits_per_dim"))
    assert "by a version before" in (tmp_path / "step_6-before.json").read_text()
    files = {file.name: file.read_bytes() for file in (tmp_path / "results").glob("step_*")}
    second = measure(metrics=("kid", "bits_per_dim"), vlb_decoder="tanh")
    third = measure(metrics=("frechet",), num_images=20)
    assert all((tmp_path / "results" / name).read_bytes() == content for name, content in files.items())
    (row,) = second["drawn"]
    assert row["frechet"] == first["drawn"][0]["frechet"]
    assert "kid" in row
    assert sorted(row["count"] for row in third["drawn"]) == [12, 20]
    exact, tanh = sorted(third["bits_per_dim"], key=lambda row: row["decoder"])
    assert exact["bits_per_dim"] == first["bits_per_dim"][0]["bits_per_dim"]
    assert (exact["decoder"], tanh["decoder"]) == ("exact", "tanh")
    assert exact["rate"] == tanh["rate"]
    assert exact["distortion_bits"] != tanh["distortion_bits"]
    table = (tmp_path / "table.md").read_text()
    assert table.count("| drawn |") == 2
    assert "| decoder |" in table.splitlines()[0]
    again = measure(metrics=("frechet",), num_images=20)
    assert len(again["drawn"]) == 2
    classes = again["drawn"][0]["classes"]
    assert classes["proportions"] == "reference"
    assert sum(classes["reference"]) == 1500


def test_a_checkpoint_that_is_not_there_is_found_before_the_images_are_read(trained, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "find_held_out", None)
    with pytest.raises(UserError, match=r"checkpoint_steps names 5, but there is no such checkpoint in .*there are 2, 4, 6"):
        evaluate.run(tiny_config(TRAINED | {"evaluation.checkpoint_steps": (6, 5)}), str(trained), output=str(tmp_path))


def comparison_of(config, class_counts):
    """Without features: only what it knows of classes."""
    found = object.__new__(sample_metrics.SampleScorer)
    provenance = None if class_counts is None else {"class_counts": class_counts, "images": sum(class_counts)}
    found._config, found.reference = config, Reference(None, None, provenance)
    return found


def test_classes_come_as_the_reference_has_them(tiny_config):
    """Exact draws of two classes, 95 : 5, score .4 against such images, and 11 where both come equally often."""
    config = tiny_config(TRAINED | {"data.num_classes": 2, "sampling.num_images": 2000})

    def draws(labels, seed):
        rng = np.random.RandomState(seed)
        colors = np.array([(200, 60, 60), (60, 60, 200)])[labels][:, None, None]
        return np.clip(rng.randn(len(labels), 8, 8, 3) * 20 + colors, 0, 255).astype(np.uint8).reshape(len(labels), -1) / 255

    real = fit_gaussian(draws(np.repeat([0, 1], [190, 10]), 1))
    distances = {}
    for proportions in ("reference", "uniform"):
        config.evaluation.class_proportions = proportions
        counts = comparison_of(config, [190, 10]).class_counts
        labels = data_config.sampling_labels(config, counts)
        distances[proportions] = frechet_distance(real, fit_gaussian(draws(labels, 5)))
    assert distances["reference"] < 0.5
    assert distances["uniform"] > 10


@pytest.mark.parametrize(("counts", "note"), [(None, "holds no class counts"), ([5, 5, 5], "counts 3 classes, the model has")])
def test_statistics_without_counts_are_noted(tiny_config, counts, note):
    config = tiny_config(TRAINED | {"data.num_classes": 2})
    found = comparison_of(config, counts)
    assert found.class_counts is None
    assert note in found._class_notes()[0]


def test_statistics_of_other_levels_are_refused(tiny_config):
    """The same files and another range of gray levels: the fingerprint is the same, and the images are not."""
    config = tiny_config({"data.value_range": (0.0, 1023.0)})
    for theirs in ({"value_range": [0.0, 1023.0]}, {"value_range": []}, {}, None):
        sample_metrics.check_value_range("a.npz", theirs, config)
    match = r"^a\.npz holds .* levels 0 and 65535 are black and white, this run has 0 and 1023 \(config\.data\.value_range\)"
    with pytest.raises(UserError, match=match):
        sample_metrics.check_value_range("a.npz", {"value_range": [0, 65535]}, config)


def test_a_cache_of_images_is_named_by_its_classes(tiny_config):
    config, trained = tiny_config(TRAINED), tiny_config(TRAINED).to_dict()
    even = generated.identity(config, trained, 6, "ab", None)
    assert generated.identity(config, trained, 6, "ab", np.full(10, 3)) == even
    uneven = generated.identity(config, trained, 6, "ab", np.arange(10))
    assert uneven["class_counts"] == list(range(10))
    assert generated.folder_name(config, uneven) != generated.folder_name(config, even)
    config.diffusion.clip_denoised = False  # may differ from the run's, and changes its images
    changed = generated.identity(config, trained, 6, "ab", None)
    assert changed == even | {"diffusion.clip_denoised": False}
    assert generated.folder_name(config, changed) != generated.folder_name(config, even)
