"""--mode=evaluate: its numbers are those of its parts, its report says where they come from, its errors teach."""

import json
import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import evaluation_config
from ddpm_jax.cli import common, compute_stats, evaluate, sample, train
from ddpm_jax.data import digits
from ddpm_jax.metrics.frechet import fit_gaussian, frechet_distance
from ddpm_jax.metrics.precision_recall import precision_recall
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import metric_logger, run_record
from ddpm_jax.runtime.errors import ConflictError, ExpectedError, FileAccessError
from ddpm_jax.training import load_params
from ddpm_jax.user_messages import UsageError

FIELDS = {
    "model.class_conditional": True,
    "evaluation.class_proportions": "uniform",  # as --mode=sample does it
    "evaluation.num_images": 12,
    "evaluation.batch_size": 16,
    "evaluation.num_heldout_images": 20,
    "evaluation.checkpoint_steps": (4, -1),
    "evaluation.samplers": ("ddim", "ancestral"),
    "evaluation.num_steps": (4,),
}
TRAINED = FIELDS  # with checkpoints of steps 2, 4 and 6


def vectors(images):
    return images.reshape(len(images), -1) / 255


def undated(rows):
    """What is the same when the same is measured again."""
    return [{name: value for name, value in row.items() if name not in ("provenance", "config")} for row in rows]


def test_checkpoints_and_samplers_in_one_table_with_their_provenance(trained, tiny_config, tmp_path, capsys):
    assert evaluate.run(tiny_config(FIELDS), str(trained), output=str(tmp_path / "out")) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"step_4.json", "step_6.json", "table.md", "images", "results"}
    table = (tmp_path / "out" / "table.md").read_text()
    out = capsys.readouterr().out
    assert table.splitlines()[0] in out
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 + 1 + 2 * (2 + 1)
    assert "only with others of 12 images" in table
    assert table.count("ancestral sampling in 4 of 100 steps under fixed_large leaves noise") == 1
    (bound_picture,) = (tmp_path / "out" / "results").glob("step_6-bits_per_dim-*.png")
    with Image.open(bound_picture) as picture:
        assert np.asarray(picture).std() > 0

    report = json.loads((tmp_path / "out" / "step_6.json").read_text())
    assert report["step"] == 6
    assert report["weights"] == "ema"
    known = {"set": "digits", "split": "train", "images": 1500, "resolution": 8, "channels": 1, "random_flip": False}
    for row in report["drawn"]:
        assert known.items() <= row["reference"].items()
        assert len(row["reference"]["images_sha256"]) == 64
        assert row["features"]["features"] == "pixels"
    assert [(row["sampler"].split()[0], row["evaluations"]) for row in report["drawn"]] == [("ancestral", 4), ("ddim", 4)]
    ancestral = report["drawn"][0]
    assert ancestral["sampling"]["sampler"] == ancestral["config"]["sampling"]["sampler"] == "ancestral"
    assert ancestral["config"]["train"] == json.loads((trained / "config.json").read_text())["train"]
    assert ancestral["notes"]
    assert all(note in table for note in ancestral["notes"])
    assert set(ancestral["provenance"]) == {"frechet", "precision_recall"}
    assert set(ancestral["provenance"]["frechet"]) == {"ddpm_jax", "commit", "jax", "platform", "date"}

    # The scores are those of the images that --mode=sample draws, and of the images held out.
    real = digits.load_digits("train")
    real = vectors(real.batch(np.arange(len(real)))["image"])
    config = tiny_config(FIELDS | {"sampling.num_images": 12, "sampling.sampler": "ancestral"})
    assert sample.run(config, str(trained), output=str(tmp_path / "drawn")) == 0
    held_out = digits.load_digits("test")
    with np.load(tmp_path / "drawn" / "images.npz") as arrays:
        drawn = vectors(arrays["images"])
    (real_row,) = report["real"]
    for row, ours in ((ancestral, drawn), (real_row, vectors(held_out.batch(np.arange(297))["image"]))):
        assert row["frechet"] == pytest.approx(frechet_distance(fit_gaussian(ours), fit_gaussian(real)), rel=1e-4)
        assert (row["precision"], row["recall"]) == pytest.approx(precision_recall(real, ours), abs=2e-3)

    (bound,) = report["bits_per_dim"]
    assert bound["split"] == "test"
    assert bound["images"] == 20
    assert bound["exact"]
    assert bound["bits_per_dim"] == pytest.approx(bound["rate"] + bound["distortion_bits"], rel=1e-6)
    assert bound["rate"] == pytest.approx(bound["prior"] + sum(bound["terms"][1:]), rel=1e-6)
    assert len(bound["rate_curve"]) == len(bound["distortion_curve_rmse"]) == len(bound["terms"]) == 100
    assert bound["rate_curve"] == sorted(bound["rate_curve"])
    assert bound["rate_curve"][0] == pytest.approx(bound["prior"])


def test_a_checkpoint_is_measured_as_it_was_trained_whatever_a_resume_changed(trained, tiny_config, tmp_path):
    """A resume with another clipping changes config.json, and not what step 4 was trained with."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("eval", "samples"))
    fields = {"evaluation.checkpoint_steps": (4,), "evaluation.metrics": ("frechet",), "evaluation.heldout_split": ""}
    config = tiny_config(FIELDS | fields | {"evaluation.samplers": (), "evaluation.num_images": 4})
    assert evaluate.run(config.copy_and_resolve_references(), str(run)) == 0

    later = json.loads((run / "config.json").read_text())
    later["diffusion"]["clip_denoised"] = config.diffusion.clip_denoised = False
    run_record.record_start(run, later, 4)
    assert evaluate.run(config, str(run)) == 0
    assert len(list((run / "eval" / "images").iterdir())) == 2
    rows = json.loads((run / "eval" / "step_4.json").read_text())["drawn"]
    assert {row.get("changed") for row in rows} == {None, "diffusion.clip_denoised=False"}
    assert "| diffusion.clip_denoised=False |" in (run / "eval" / "table.md").read_text()


def test_images_that_are_there_are_not_drawn_again(trained, tiny_config, tmp_path, capsys):
    """A piece lost, as in a kill, and more asked for: only those are drawn, and the scores are those of a run at once."""
    only = {"evaluation.metrics": ("frechet",), "evaluation.samplers": (), "evaluation.checkpoint_steps": (-1,)}

    def score(folder, number):
        config = tiny_config(FIELDS | only | {"evaluation.num_images": number, "sampling.batch_size": 8})
        assert evaluate.run(config, str(trained), output=str(tmp_path / folder)) == 0
        rows = json.loads((tmp_path / folder / "step_6.json").read_text())["drawn"]
        return next(row["frechet"] for row in rows if row["count"] == number)

    score("piecewise", 20)
    pieces = tmp_path / "piecewise" / "images" / "step_6-ddim-4-seed_0"
    assert sorted(file.name for file in pieces.glob("*.npz")) == [f"images_{n:08d}.npz" for n in (0, 8, 16)]
    times = {file.name: file.stat().st_mtime_ns for file in pieces.glob("*.npz")}
    (pieces / "images_00000008.npz").write_bytes(b"torn")
    capsys.readouterr()
    assert score("piecewise", 30) == pytest.approx(score("at_once", 30), rel=1e-12)
    said = capsys.readouterr().err
    assert "images_00000008.npz is damaged" in said
    assert "12 of 30 images are there already" in said
    for name in ("images_00000000.npz", "images_00000016.npz"):
        assert (pieces / name).stat().st_mtime_ns == times[name]
    against = {"evaluation.num_images": 30, "evaluation.split": "test"}
    assert evaluate.run(tiny_config(FIELDS | only | against), str(trained), output=str(tmp_path / "piecewise")) == 0
    report = json.loads((tmp_path / "piecewise" / "step_6.json").read_text())
    references = [(row["count"], row["reference"]["split"], row["reference"]["images"]) for row in report["drawn"]]
    assert sorted(references) == [(20, "train", 1500), (30, "test", 297), (30, "train", 1500)]
    assert [row["reference"]["split"] for row in report["real"]] == ["train"]  # not of the images that it would be itself
    other = {"evaluation.num_images": 20, "sampling.params": "raw"}
    assert evaluate.run(tiny_config(FIELDS | only | other), str(trained), output=str(tmp_path / "piecewise")) == 0
    assert len(list((tmp_path / "piecewise" / "images").iterdir())) == 2  # another kind, another folder

    manifest = pieces / "manifest.json"
    manifest.write_text(re.sub(r'"weights_sha256": "\w+"', '"weights_sha256": "0"', manifest.read_text()))
    with pytest.raises(ConflictError, match=r'written with different settings: weights_sha256 was "0"'):
        score("piecewise", 30)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def test_killed_in_the_middle_of_a_piece_no_image_is_lost_or_drawn_twice(trained, tiny_config, tmp_path, monkeypatch):
    """What is on the disk then: one whole piece, and one half written. The same command draws the other two of three."""
    fields = FIELDS | {"evaluation.metrics": ("frechet",), "evaluation.samplers": (), "evaluation.checkpoint_steps": (-1,)}
    config = tiny_config(fields | {"evaluation.num_images": 22, "sampling.batch_size": 8})
    pieces, drawn = tmp_path / "killed" / "images" / "step_6-ddim-4-seed_0", []
    save = np.savez

    def dying(file, **arrays):
        if "images" in arrays:
            drawn.append(len(arrays["images"]))
        if len(drawn) == 2:
            file.write(b"PK\x03\x04 half of a piece")
            raise Killed
        save(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", dying)
        with pytest.raises(Killed):
            evaluate.run(config, str(trained), output=str(tmp_path / "killed"))
    assert {file.name for file in pieces.iterdir()} == {
        "manifest.json",
        "images_00000000.npz",
        ".images_00000008.npz.partial",
    }
    drawn.append(0)  # alive from here on
    monkeypatch.setattr(np, "savez", dying)
    assert evaluate.run(config, str(trained), output=str(tmp_path / "killed")) == 0
    assert drawn == [8, 8, 0, 8, 6]
    assert evaluate.run(config, str(trained), output=str(tmp_path / "whole")) == 0
    reports = [json.loads((tmp_path / name / "step_6.json").read_text()) for name in ("killed", "whole")]
    assert undated(reports[0]["drawn"]) == undated(reports[1]["drawn"])
    for file in pieces.glob("*.npz"):
        with np.load(file) as ours, np.load(tmp_path / "whole" / file.relative_to(tmp_path / "killed")) as theirs:
            np.testing.assert_array_equal(ours["images"], theirs["images"])


def test_tensorboard_gets_the_numbers_of_the_report(trained, tiny_config, tmp_path, monkeypatch):
    """Each sampler a curve of its own beside those of training, at the checkpoint's step; metrics.jsonl stays as it is."""
    written = []

    class Writer:
        def __init__(self, folder):
            self.curve = str(pathlib.Path(folder).relative_to(trained / "tensorboard"))

        def write_scalars(self, step, values):
            written.append((self.curve, step, values))

        def flush(self):
            pass

        close = flush

    monkeypatch.setattr(metric_logger, "_load_writers", lambda: Writer)
    before = (trained / "metrics.jsonl").read_bytes()
    fields = FIELDS | {"train.tensorboard": True, "evaluation.metrics": ("frechet", "bits_per_dim")}
    fields |= {"evaluation.vlb_num_timesteps": 4, "evaluation.num_heldout_images": 8, "evaluation.checkpoint_steps": (4,)}
    assert evaluate.run(tiny_config(fields), str(trained), output=str(tmp_path)) == 0
    assert (trained / "metrics.jsonl").read_bytes() == before
    curves = ("ema-ddim-4-leading-12-pixels", "ema-ancestral-4-leading-12-pixels", "ema-bits_per_dim-test-8")
    assert [(curve[:-7], step) for curve, step, _ in written] == [(f"evaluate/{curve}", 4) for curve in curves]
    report = json.loads((tmp_path / "step_4.json").read_text())
    for (_, _, values), row in zip(written[:2], report["drawn"][::-1], strict=True):
        assert values == {"evaluation/count": 12, "evaluation/frechet": row["frechet"]}
    assert written[2][2]["evaluation/bits_per_dim"] == report["bits_per_dim"][0]["bits_per_dim"]
    assert "evaluation/exact" not in written[2][2]  # yes or no is no curve
    assert all(isinstance(value, float) for _, _, values in written for value in values.values())


def classifier(images):
    """Features and logits of one's own: rows and columns of the image."""
    x = images.astype(jnp.float32) / 255
    return x.mean(axis=(1, 3)), x.mean(axis=(2, 3))


def test_statistics_of_a_file_give_the_same_scores(trained, tiny_config, tmp_path, monkeypatch, capsys):
    """All metrics of drawn images, by features and logits of one's own, against a file of --mode=compute_stats."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    fields = FIELDS | {
        "evaluation.features": "test_evaluate:classifier",
        "evaluation.metrics": ("frechet", "kid", "inception_score", "precision_recall"),
        "evaluation.checkpoint_steps": (-1,),
        "evaluation.samplers": (),
    }
    file = tmp_path / "statistics" / "digits.npz"
    assert compute_stats.run(tiny_config(fields), str(trained), output=str(file)) == 0
    with pytest.raises(FileAccessError, match="it is a file; choose another --output"):
        compute_stats.run(tiny_config(fields), str(trained), output=str(file / "below.npz"))
    assert "1,500 images of digits train" in capsys.readouterr().out
    reports = []
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, path in (("without", ""), ("with", "~/statistics/digits.npz")):
        config = tiny_config(fields | {"evaluation.reference": path})
        assert evaluate.run(config, str(trained), output=str(tmp_path / name)) == 0
        reports.append(json.loads((tmp_path / name / "step_6.json").read_text()))
    assert undated(reports[0]["drawn"]) == undated(reports[1]["drawn"])
    assert undated(reports[0]["real"]) == undated(reports[1]["real"])
    scores, real = reports[0]["drawn"][0], reports[0]["real"][0]
    assert "features_kept" not in scores["reference"]
    assert {"frechet", "kid", "kid error", "inception score", "precision", "recall"} <= set(scores)
    assert 1 <= scores["inception score"] <= 8
    assert scores["kid"] > 3 * real["kid"]

    def refused(match, changes):
        with pytest.raises(ExpectedError, match=match) as caught:
            evaluate.run(tiny_config(fields | {"evaluation.reference": str(file)} | changes), str(trained))
        assert "\n" not in str(caught.value)

    # Of 1,500 features 40 are kept: in a file made so, in an older one that holds them all, and without a file.
    few = fields | {"evaluation.max_features": 40, "evaluation.metrics": ("frechet", "kid", "precision_recall")}
    assert compute_stats.run(tiny_config(few), str(trained), output=str(tmp_path / "few.npz")) == 0
    with np.load(tmp_path / "few.npz") as kept:
        assert kept["features"].shape == (40, 8)
        assert json.loads(str(kept["provenance"])).items() >= {"images": 1500, "features_kept": 40, "features_seed": 0}.items()
    scored = []
    for path in ("", str(tmp_path / "few.npz"), str(file)):
        config = tiny_config(few | {"evaluation.reference": path})
        assert evaluate.run(config, str(trained), output=str(tmp_path / "few")) == 0
        scored.append(json.loads((tmp_path / "few" / "step_6.json").read_text()))
    columns = ("count", "frechet", "kid", "kid error", "precision", "recall")
    for kind in ("drawn", "real"):
        (first,), (second,), (third,) = (report[kind] for report in scored)
        assert [first[name] for name in columns] == [second[name] for name in columns] == [third[name] for name in columns]
    (fewer,) = scored[0]["real"]
    assert fewer["frechet"] == real["frechet"]  # that one is still of all
    assert (fewer["count"], fewer["compared"]) == (297, 40)
    assert fewer["recall"] != real["recall"]
    assert "use 12 of the generated and 40 of the real images" in (tmp_path / "few" / "table.md").read_text()

    refused(r"extractor is .*test_evaluate:classifier.*, wanted .*pixels", {"evaluation.features": "pixels"})
    refused(
        "features come without logits: leave inception_score out", {"evaluation.features": "pixels", "evaluation.reference": ""}
    )
    np.savez(tmp_path / "other.npz", mu=np.zeros(8), sigma=np.eye(8))
    refused("holds no features, which kid", {"evaluation.reference": str(tmp_path / "other.npz")})
    np.savez(tmp_path / "other.npz", mu=np.zeros(9), sigma=np.eye(9))
    only = {"evaluation.metrics": ("frechet",)}
    refused(
        r"holds statistics of 9 features, but config\.evaluation\.features=test_evaluate:classifier gives 8",
        {"evaluation.reference": str(tmp_path / "other.npz")} | only,
    )


def test_the_fast_bound_says_that_it_is_an_estimate(trained, tiny_config, tmp_path):
    """Of the same 20 images, 10 of 100 terms: within 5 of its standard errors of the exact one."""
    fields = FIELDS | {"evaluation.metrics": ("bits_per_dim",), "evaluation.checkpoint_steps": (-1,)}
    found = {}
    for terms in (0, 10):
        config = tiny_config(fields | {"evaluation.vlb_num_timesteps": terms})
        assert evaluate.run(config, str(trained), output=str(tmp_path / str(terms))) == 0
        found[terms] = json.loads((tmp_path / str(terms) / "step_6.json").read_text())["bits_per_dim"][0]
    assert found[0]["exact"]
    assert not found[10]["exact"]
    assert found[10]["terms_per_image"] == 10
    assert "rate_curve" in found[0]
    assert "rate_curve" not in found[10]
    assert found[10]["rate"] + found[10]["distortion_bits"] == pytest.approx(found[10]["bits_per_dim"])
    assert 0 < found[10]["estimate_error"] < found[10]["standard_error"]
    difference = abs(found[10]["bits_per_dim"] - found[0]["bits_per_dim"])
    assert 0 < difference < 5 * found[10]["standard_error"]


def test_the_flow_has_a_likelihood_of_its_own(trained, tiny_config, tmp_path):
    """Of 4 images: a number per dequantised level, said to be no bound; another probe, another estimate of the same trace."""
    fields = FIELDS | {"evaluation.metrics": ("ode_bits_per_dim",), "evaluation.checkpoint_steps": (-1,)}
    fields |= {"evaluation.num_heldout_images": 4, "evaluation.batch_size": 8, "evaluation.ode_tolerance": 1e-2}
    assert evaluate.run(tiny_config(fields), str(trained), output=str(tmp_path)) == 0
    found = json.loads((tmp_path / "step_6.json").read_text())["ode_bits_per_dim"][0]
    assert found["images"] == 4
    assert 0 < found["bits_per_dim"] < 20  # a network that knows little: the image takes 8
    assert found["trace"] == "Hutchinson, probes: 1"
    assert "not comparable" in found["kind"]
    assert found["evaluations"] > 6
    with pytest.raises(UsageError, match="hutchinson_samples is -1"):
        evaluate.run(tiny_config(fields | {"evaluation.hutchinson_samples": -1}), str(trained), output=str(tmp_path))


def test_a_run_that_is_measured_along_the_way_is_the_same_run(trained, tiny_config, tmp_path):
    """Its rows stand among those of training; losses and weights are those of a run without, also where it was killed."""
    fields = FIELDS | {"train.eval_every": 4, "train.eval_num_samples": 12}

    def left(folder):
        """Rows of metrics.jsonl, without time and speed, and a fingerprint of the weights."""
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        params, step = common.restore_params(tiny_config(fields), folder, meshes.make_mesh())
        assert step == 6
        clock = ("time", "steps_per_second", "images_per_second")
        rows = [{name: value for name, value in row.items() if name not in clock} for row in rows]
        return rows, load_params.params_sha256(params)

    train.run(tiny_config(fields), str(tmp_path))
    rows, digest = left(tmp_path)
    without, expected = left(trained)
    assert digest == expected
    shutil.rmtree(tmp_path / "checkpoints" / "6")  # as a kill after the last step leaves it: lines, and no checkpoint
    train.run(tiny_config(fields), str(tmp_path))
    assert left(tmp_path) == (rows, digest)
    assert [row["loss"] for row in rows if "loss" in row] == [row["loss"] for row in without]
    scores = [row for row in rows if "evaluation/frechet" in row]
    assert [row["step"] for row in scores] == [4, 6]
    config = tiny_config(fields | {"evaluation.metrics": ("frechet",), "evaluation.samplers": ("ddim",)})
    assert evaluate.run(config, str(trained), output=str(tmp_path / "out")) == 0
    for row in scores:
        report = json.loads((tmp_path / "out" / f"step_{row['step']}.json").read_text())
        assert row["evaluation/frechet"] == pytest.approx(report["drawn"][0]["frechet"], rel=1e-9)
        assert row["evaluation/count"] == 12
    with pytest.raises(UsageError, match="eval_every needs frechet or kid or"):
        train.run(tiny_config(fields | {"evaluation.metrics": ("bits_per_dim",)}), str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"evaluation.metrics": ("fid",)}, r"evaluation\.metrics is 'fid': choose one of frechet"),
        ({"evaluation.metrics": ()}, r"evaluation\.metrics is empty"),
        ({"evaluation.num_images": 1}, r"num_images is 1: it must be 4 or more"),
        ({"evaluation.batch_size": 0}, r"evaluation\.batch_size is 0: it must be above 0"),
        ({"evaluation.max_features": -1}, r"evaluation\.max_features is -1: it must be 0 or more"),
        ({"evaluation.checkpoint_steps": ()}, "checkpoint_steps is empty"),
        ({"evaluation.checkpoint_steps": (5,)}, "there are 2, 4, 6"),
        ({"evaluation.samplers": ("magic",)}, r"config\.evaluation\.samplers is 'magic': choose one of"),
        ({"evaluation.num_steps": (101,)}, r"config\.evaluation\.num_steps holds 101: it must be from 1 to .*, which is 100$"),
        ({"evaluation.vlb_num_timesteps": 7}, "take an even number"),
        ({"evaluation.heldout_split": "validation"}, r"config\.evaluation\.heldout_split is 'validation': digits has no split"),
        ({"evaluation.split": "validation"}, r"config\.evaluation\.split is 'validation': digits has no split"),
        ({"evaluation.heldout_split": ""}, "heldout_split is empty"),
        ({"evaluation.class_proportions": "even"}, r"class_proportions is 'even': choose one of reference, uniform"),
        ({"evaluation.vlb_decoder": "erf"}, r"vlb_decoder is 'erf': choose one of exact, tanh"),
        ({"evaluation.features": "magic"}, "choose inception, pixels, pixels_16"),
        ({"evaluation.features": "nowhere:f"}, "cannot be imported"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(f"{v}" for v in value.values()),
)
def test_what_cannot_be_measured_is_said_in_one_line(trained, tiny_config, tmp_path, fields, match):
    fields = FIELDS | {"evaluation.metrics": ("bits_per_dim", "frechet")} | fields
    if "heldout_split" in next(iter(fields)) or fields.get("evaluation.heldout_split") == "":
        fields |= {"evaluation.metrics": ("bits_per_dim",)}
    with pytest.raises(ExpectedError, match=match) as caught:
        evaluate.run(tiny_config(fields), str(trained), output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_a_workdir_that_cannot_be_written_is_found_before_the_images_are_read(trained, tiny_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("eval", "samples"))
    (run / "eval").write_text("in the way")
    monkeypatch.setattr(evaluation_config, "build_scorer", None)
    with pytest.raises(FileAccessError, match=r"cannot write to .*eval: it is a file; choose another --output"):
        evaluate.run(tiny_config(FIELDS), str(run))
