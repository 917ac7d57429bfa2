"""--mode=evaluate: numbers agree with the library, reports include provenance, errors are one line."""

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
from ddpm_jax.metrics.precision_recall import Manifold
from ddpm_jax.runtime import mesh as meshes
from ddpm_jax.runtime import run_record, trackers
from ddpm_jax.runtime.errors import CheckpointError, ConflictError, ExpectedError, FileAccessError
from ddpm_jax.training import load_params
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"

FIELDS = {
    "model.class_conditional": True,
    "evaluation.class_proportions": "uniform",  # as in --mode=sample
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
    """Rows without the fields that change between equal measurements."""
    return [{name: value for name, value in row.items() if name not in ("provenance", "config")} for row in rows]


def test_a_table_of_checkpoints_and_samplers_with_provenance(trained, tiny_config, tmp_path, capsys):
    assert evaluate.run(tiny_config(FIELDS), str(trained), output=str(tmp_path / "out")) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"step_4.json", "step_6.json", "table.md", "steps.png", "images", "results"}
    table = (tmp_path / "out" / "table.md").read_text()
    out = capsys.readouterr().out
    assert table.splitlines()[0] in out
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 + 1 + 2 * (2 + 1)
    assert "only with those of 12 images" in table
    assert table.count("ancestral sampling in 4 of 100 steps with fixed_large leaves noise") == 1
    (bound_picture,) = (tmp_path / "out" / "results").glob("step_6-bits_per_dim-*.png")
    with Image.open(bound_picture) as picture:
        assert np.asarray(picture).std() > 0

    report = json.loads((tmp_path / "out" / "step_6.json").read_text())
    assert report["step"] == 6
    assert report["weights"] == "ema"
    known = {"set": "digits", "split": "train", "images": 1500, "resolution": 8, "channels": 1, "random_flip": False}
    for row in report["generated"]:
        assert known.items() <= row["reference"].items()
        assert len(row["reference"]["images_sha256"]) == 64
        assert row["features"]["features"] == "pixels"
    assert [(row["sampler"].split()[0], row["evaluations"]) for row in report["generated"]] == [("ancestral", 4), ("ddim", 4)]
    ancestral = report["generated"][0]
    assert ancestral["sampling"]["sampler"] == ancestral["config"]["sampling"]["sampler"] == "ancestral"
    assert ancestral["config"]["train"] == json.loads((trained / "config.json").read_text())["train"]
    assert ancestral["notes"]
    assert all(note in table for note in ancestral["notes"])
    assert set(ancestral["provenance"]) == {"frechet", "precision_recall"}
    assert set(ancestral["provenance"]["frechet"]) == {"ddpm_jax", "commit", "jax", "platform", "date"}

    # The scores are those of the images of --mode=sample, and of the held-out images.
    real = digits.load_digits("train")
    real = vectors(real.batch(np.arange(len(real)))["image"])
    config = tiny_config(FIELDS | {"sampling.num_images": 12, "sampling.sampler": "ancestral"})
    assert sample.run(config, str(trained), output=str(tmp_path / "sampled")) == 0
    held_out = digits.load_digits("test")
    with np.load(tmp_path / "sampled" / "images.npz") as arrays:
        generated = vectors(arrays["arr_0"])
    (real_row,) = report["real"]
    for row, ours in ((ancestral, generated), (real_row, vectors(held_out.batch(np.arange(297))["image"]))):
        assert row["frechet"] == pytest.approx(frechet_distance(fit_gaussian(ours), fit_gaussian(real)), rel=1e-4)
        assert (row["precision"], row["recall"]) == pytest.approx(Manifold(real).compare(ours), abs=2e-3)

    (bound,) = report["bits_per_dim"]
    assert bound["split"] == "test"
    assert bound["images"] == 20
    assert bound["exact"]
    assert bound["bits_per_dim"] == pytest.approx(bound["rate"] + bound["distortion_bits"], rel=1e-6)
    assert bound["rate"] == pytest.approx(bound["prior"] + sum(bound["terms"][1:]), rel=1e-6)
    assert len(bound["rate_curve"]) == len(bound["distortion_curve_rmse"]) == len(bound["terms"]) == 100
    assert bound["rate_curve"] == sorted(bound["rate_curve"])
    assert bound["rate_curve"][0] == pytest.approx(bound["prior"])


def test_a_checkpoint_is_evaluated_with_its_own_training_config(trained, tiny_config, tmp_path):
    """Resuming with different clipping changes config.json, but not the training config of step 4."""
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
    rows = json.loads((run / "eval" / "step_4.json").read_text())["generated"]
    assert {row.get("changed") for row in rows} == {None, "diffusion.clip_denoised=False"}
    assert "| diffusion.clip_denoised=False |" in (run / "eval" / "table.md").read_text()


def test_existing_images_are_not_generated_again(trained, tiny_config, tmp_path, capsys):
    """With a damaged chunk and more images requested, only the missing ones are generated; scores equal those of one run."""
    only = {"evaluation.metrics": ("frechet",), "evaluation.samplers": (), "evaluation.checkpoint_steps": (-1,)}

    def score(folder, number):
        config = tiny_config(FIELDS | only | {"evaluation.num_images": number, "sampling.batch_size": 8})
        assert evaluate.run(config, str(trained), output=str(tmp_path / folder)) == 0
        rows = json.loads((tmp_path / folder / "step_6.json").read_text())["generated"]
        return next(row["frechet"] for row in rows if row["count"] == number)

    score("chunked", 20)
    chunks = tmp_path / "chunked" / "images" / "step_6-ddim-4-seed_0"
    assert sorted(file.name for file in chunks.glob("*.npz")) == [f"images_{n:08d}.npz" for n in (0, 8, 16)]
    times = {file.name: file.stat().st_mtime_ns for file in chunks.glob("*.npz")}
    (chunks / "images_00000008.npz").write_bytes(b"torn")
    capsys.readouterr()
    assert score("chunked", 30) == pytest.approx(score("at_once", 30), rel=1e-12)
    log = capsys.readouterr().err
    assert "images_00000008.npz is damaged" in log
    assert "12 of 30 images are there already" in log
    for name in ("images_00000000.npz", "images_00000016.npz"):
        assert (chunks / name).stat().st_mtime_ns == times[name]
    against = {"evaluation.num_images": 30, "evaluation.split": "test"}
    assert evaluate.run(tiny_config(FIELDS | only | against), str(trained), output=str(tmp_path / "chunked")) == 0
    report = json.loads((tmp_path / "chunked" / "step_6.json").read_text())
    references = [(row["count"], row["reference"]["split"], row["reference"]["images"]) for row in report["generated"]]
    assert sorted(references) == [(20, "train", 1500), (30, "test", 297), (30, "train", 1500)]
    assert [row["reference"]["split"] for row in report["real"]] == ["train"]  # a split is not scored against itself
    other = {"evaluation.num_images": 20, "sampling.params": "raw"}
    assert evaluate.run(tiny_config(FIELDS | only | other), str(trained), output=str(tmp_path / "chunked")) == 0
    assert len(list((tmp_path / "chunked" / "images").iterdir())) == 2  # other settings, another folder

    manifest = chunks / "manifest.json"
    manifest.write_text(re.sub(r'"weights_sha256": "\w+"', '"weights_sha256": "0"', manifest.read_text()))
    with pytest.raises(ConflictError, match=r'was written with different settings: weights_sha256 was "0"'):
        score("chunked", 30)


class Killed(BaseException):
    """Not caught anywhere, like SIGKILL."""


def test_after_a_kill_during_a_write_no_image_is_lost_or_generated_twice(trained, tiny_config, tmp_path, monkeypatch):
    """One complete and one partial chunk are on disk. The same command generates the other two of three."""
    fields = FIELDS | {"evaluation.metrics": ("frechet",), "evaluation.samplers": (), "evaluation.checkpoint_steps": (-1,)}
    config = tiny_config(fields | {"evaluation.num_images": 22, "sampling.batch_size": 8})
    chunks, written = tmp_path / "killed" / "images" / "step_6-ddim-4-seed_0", []
    save = np.savez

    def dying(file, **arrays):
        if "images" in arrays:
            written.append(len(arrays["images"]))
        if len(written) == 2:
            file.write(b"PK\x03\x04 half of a chunk")
            raise Killed
        save(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", dying)
        with pytest.raises(Killed):
            evaluate.run(config, str(trained), output=str(tmp_path / "killed"))
    assert {file.name for file in chunks.iterdir()} == {"manifest.json", "images_00000000.npz"}
    (chunks / ".images_00000008.npz.tmp").write_bytes(b"PK\x03\x04 half of a chunk")  # left by a real kill
    written.append(0)  # the second run
    monkeypatch.setattr(np, "savez", dying)
    assert evaluate.run(config, str(trained), output=str(tmp_path / "killed")) == 0
    assert written == [8, 8, 0, 8, 6]
    assert evaluate.run(config, str(trained), output=str(tmp_path / "whole")) == 0
    reports = [json.loads((tmp_path / name / "step_6.json").read_text()) for name in ("killed", "whole")]
    assert undated(reports[0]["generated"]) == undated(reports[1]["generated"])
    for file in chunks.glob("*.npz"):
        with np.load(file) as ours, np.load(tmp_path / "whole" / file.relative_to(tmp_path / "killed")) as theirs:
            np.testing.assert_array_equal(ours["images"], theirs["images"])


def test_tensorboard_gets_the_numbers_of_the_report(trained, tiny_config, tmp_path, monkeypatch):
    """Each sampler has its own curve at the step of the checkpoint; metrics.jsonl is unchanged."""
    written = []

    class Writer:
        def __init__(self, folder):
            self.curve = str(pathlib.Path(folder).relative_to(trained / "tensorboard"))

        def write_scalars(self, step, values):
            written.append((self.curve, step, values))

        def close(self):
            pass

    monkeypatch.setattr(trackers.tensorboard, "_EventFile", Writer)
    before = (trained / "metrics.jsonl").read_bytes()
    fields = FIELDS | {"train.trackers": ("tensorboard",), "evaluation.metrics": ("frechet", "bits_per_dim")}
    fields |= {"evaluation.vlb_num_timesteps": 4, "evaluation.num_heldout_images": 8, "evaluation.checkpoint_steps": (4,)}
    assert evaluate.run(tiny_config(fields), str(trained), output=str(tmp_path)) == 0
    assert (trained / "metrics.jsonl").read_bytes() == before
    curves = ("ema-ddim-4-leading-12-pixels", "ema-ancestral-4-leading-12-pixels", "ema-bits_per_dim-test-8")
    assert [(curve[:-7], step) for curve, step, _ in written] == [(f"evaluate/{curve}", 4) for curve in curves]
    report = json.loads((tmp_path / "step_4.json").read_text())
    for (_, _, values), row in zip(written[:2], report["generated"][::-1], strict=True):
        assert values == {"eval/count": 12, "eval/frechet": row["frechet"]}
    assert written[2][2]["eval/bits_per_dim"] == report["bits_per_dim"][0]["bits_per_dim"]
    assert "eval/exact" not in written[2][2]  # booleans are not logged
    assert all(isinstance(value, float) for _, _, values in written for value in values.values())


def classifier(images):
    """User-defined features and logits: rows and columns of the image."""
    x = images.astype(jnp.float32) / 255
    return x.mean(axis=(1, 3)), x.mean(axis=(2, 3))


def test_statistics_of_a_file_give_the_same_scores(trained, tiny_config, tmp_path, monkeypatch, capsys):
    """All metrics of generated images with user-defined features and logits, against a file of --mode=compute_stats."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    fields = FIELDS | {
        "evaluation.features": "test_evaluate:classifier",
        "evaluation.metrics": ("frechet", "kid", "inception_score", "precision_recall"),
        "evaluation.checkpoint_steps": (-1,),
        "evaluation.samplers": (),
    }
    file = tmp_path / "statistics" / "digits.npz"
    assert compute_stats.run(tiny_config(fields), str(trained), output=str(file)) == 0
    with pytest.raises(FileAccessError, match="it is a file; choose another `output`"):
        compute_stats.run(tiny_config(fields), str(trained), output=str(file / "below.npz"))
    assert "1,500 images of digits train" in capsys.readouterr().out
    reports = []
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, path in (("without", ""), ("with", "~/statistics/digits.npz")):
        config = tiny_config(fields | {"evaluation.reference": path})
        assert evaluate.run(config, str(trained), output=str(tmp_path / name)) == 0
        reports.append(json.loads((tmp_path / name / "step_6.json").read_text()))
    assert undated(reports[0]["generated"]) == undated(reports[1]["generated"])
    assert undated(reports[0]["real"]) == undated(reports[1]["real"])
    scores, real = reports[0]["generated"][0], reports[0]["real"][0]
    assert "features_kept" not in scores["reference"]
    assert {"frechet", "kid", "kid_stderr", "inception score", "precision", "recall"} <= set(scores)
    assert 1 <= scores["inception score"] <= 8
    assert scores["kid"] > 3 * real["kid"]

    def refused(match, changes):
        with pytest.raises(ExpectedError, match=match) as caught:
            evaluate.run(tiny_config(fields | {"evaluation.reference": str(file)} | changes), str(trained))
        assert "\n" not in str(caught.value)

    # 40 of 1,500 features are used: from a file with 40, from a file with all, and without a file.
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
    columns = ("count", "frechet", "kid", "kid_stderr", "precision", "recall")
    for kind in ("generated", "real"):
        (first,), (second,), (third,) = (report[kind] for report in scored)
        assert [first[name] for name in columns] == [second[name] for name in columns] == [third[name] for name in columns]
    (fewer,) = scored[0]["real"]
    assert fewer["frechet"] == real["frechet"]  # still uses all images
    assert (fewer["count"], fewer["num_compared"]) == (297, 40)
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


def test_the_bound_from_sampled_timesteps_is_marked_as_an_estimate(trained, tiny_config, tmp_path):
    """20 images with 10 of 100 terms: within 5 standard errors of the exact bound."""
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


def test_ode_likelihood(trained, tiny_config, tmp_path):
    """4 images: bits/dim of dequantized images, marked as not comparable with the bound."""
    fields = FIELDS | {"evaluation.metrics": ("ode_bits_per_dim",), "evaluation.checkpoint_steps": (-1,)}
    fields |= {"evaluation.num_heldout_images": 4, "evaluation.batch_size": 8, "evaluation.ode_tolerance": 1e-2}
    assert evaluate.run(tiny_config(fields), str(trained), output=str(tmp_path)) == 0
    found = json.loads((tmp_path / "step_6.json").read_text())["ode_bits_per_dim"][0]
    assert found["images"] == 4
    assert 0 < found["bits_per_dim"] < 20  # barely trained; 8 is the uniform density
    assert found["trace"] == "Hutchinson, probes: 1"
    assert "not comparable" in found["kind"]
    assert found["evaluations"] > 6
    with pytest.raises(UsageError, match="hutchinson_samples is -1"):
        evaluate.run(tiny_config(fields | {"evaluation.hutchinson_samples": -1}), str(trained), output=str(tmp_path))


def test_evaluations_during_training_do_not_affect_the_run(trained, tiny_config, tmp_path):
    """Losses and parameters equal those of a run without evaluations, also after a kill; scores are in metrics.jsonl."""
    fields = FIELDS | {"train.eval_every": 4, "train.eval_num_samples": 12}

    def left(folder):
        """Rows of metrics.jsonl, without time and speed, and a hash of the parameters."""
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        params, step = common.restore_params(tiny_config(fields), folder, meshes.make_mesh())
        assert step == 6
        clock = ("time", "perf/steps_per_second", "perf/images_per_second", "perf/seconds_left")
        rows = [{name: value for name, value in row.items() if name not in clock} for row in rows]
        return rows, load_params.params_sha256(params)

    train.run(tiny_config(fields), str(tmp_path))
    rows, digest = left(tmp_path)
    without, expected = left(trained)
    assert digest == expected
    shutil.rmtree(tmp_path / "checkpoints" / "6")  # as after a kill: log lines without a checkpoint
    train.run(tiny_config(fields), str(tmp_path))
    assert left(tmp_path) == (rows, digest)
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [row["train/loss"] for row in without]
    scores = [row for row in rows if "eval/frechet" in row]
    assert [row["step"] for row in scores] == [4, 6]
    config = tiny_config(fields | {"evaluation.metrics": ("frechet",), "evaluation.samplers": ("ddim",)})
    assert evaluate.run(config, str(trained), output=str(tmp_path / "out")) == 0
    for row in scores:
        report = json.loads((tmp_path / "out" / f"step_{row['step']}.json").read_text())
        assert row["eval/frechet"] == pytest.approx(report["generated"][0]["frechet"], rel=1e-9)
        assert row["eval/count"] == 12
        assert 0 < row["eval/loss_ema"] != row["eval/loss_raw"] > 0
    with pytest.raises(UsageError, match=r"eval_every needs frechet or .*kid or"):
        train.run(tiny_config(fields | {"evaluation.metrics": ("bits_per_dim",)}), str(tmp_path / "no"))


def test_the_loss_of_held_out_images_alone(tiny_config, tmp_path, capsys):
    """Without generated images; and without held-out images there is nothing to compute."""
    fields = FIELDS | {"train.eval_every": 3, "train.eval_num_samples": 0, "train.eval_num_heldout": 16}
    config = tiny_config(fields)
    train.run(config, str(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["eval/loss_raw"], row["eval/loss_ema"]) for row in rows if "eval/loss_raw" in row]
    assert [step for step, *_ in losses] == [3, 6]
    params, _ = common.restore_params(tiny_config(fields | {"sampling.params": "raw"}), tmp_path / "run", meshes.make_mesh())
    loss = evaluation_config.build_heldout_loss(config, meshes.make_mesh(), None)
    assert loss(params) == pytest.approx(losses[-1][1], rel=1e-6)
    with pytest.raises(UsageError, match="no images are generated or held out: set it to 0"):
        train.run(tiny_config(fields | {"evaluation.heldout_split": ""}), str(tmp_path / "none"))
    assert capsys.readouterr().err.count("no loss of held-out images: config.evaluation.heldout_split is empty") == 1


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"train.eval_every": 0, "train.keep_best": "eval/frechet"}, "eval_every is 0, so nothing is measured: .* auto$"),
        ({"train.keep_best": "eval/kid"}, "measure eval/frechet, eval/loss_ema, eval/loss_raw: change them"),
        (
            {"train.keep_best": "eval/kid", "evaluation.metrics": ("inception_score", "precision_recall")},
            "measure eval/inception_score, eval/precision, eval/recall, eval/loss_ema, eval/loss_raw",
        ),
        ({"train.keep_best": "eval/frechet", "train.eval_num_samples": 0}, "measure eval/loss_ema, eval/loss_raw: change"),
        ({"train.keep_best": "eval/loss_raw", "train.eval_num_heldout": 0}, "measure eval/frechet: change them"),
        ({"train.keep_best": "eval/loss_raw", "evaluation.heldout_split": ""}, "but there are no held-out images: set it to"),
    ],
)
def test_a_score_that_is_never_measured_is_refused_at_the_start(fields, match, tiny_config, tmp_path):
    measured = FIELDS | {"evaluation.metrics": ("frechet",), "train.eval_every": 3, "train.eval_num_samples": 12}
    with pytest.raises(UsageError, match=match):
        train.run(tiny_config(measured | fields), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_best_checkpoint_survives_a_kill_and_has_a_name(tiny_config, tmp_path, monkeypatch):
    """Scores of an evaluation at steps without a checkpoint of their own; `best` and `all` name checkpoints."""
    scores = {1: 5.0, 2: 3.0, 3: 2.0, 4: 4.0, 5: 9.0, 6: 8.0}
    monkeypatch.setattr(
        train.training_config, "build_evaluation", lambda *_: lambda state: {"eval/frechet": scores[int(state.step)]}
    )
    fields = FIELDS | {"train.eval_every": 1, "train.checkpoint_every": 2, "train.max_to_keep": 1}
    fields |= {"evaluation.metrics": ("frechet",), "evaluation.samplers": ()}
    checkpoints, run = tmp_path / "run" / "checkpoints", str(tmp_path / "run")

    def saved():
        return sorted(int(folder.name) for folder in checkpoints.iterdir() if folder.name.isdigit())

    train.run(tiny_config(fields | {"train.num_steps": 4}), run)
    assert saved() == [3, 4]
    assert (tmp_path / "run" / "eval" / "training.png").exists()
    train.run(tiny_config(fields), run)  # as after a kill
    assert saved() == [3, 6]
    (step,) = common.checkpoint_steps(tiny_config(fields), tmp_path / "run", ["best"])
    assert step == 3
    assert (
        common.restore_params(tiny_config(fields | {"sampling.checkpoint_step": "best"}), tmp_path / "run", meshes.make_mesh())[
            1
        ]
        == 3
    )
    assert evaluate.run(tiny_config(fields | {"evaluation.checkpoint_steps": ("all", "best")}), run) == 0
    names = {file.name for file in (tmp_path / "run" / "eval").iterdir()}
    assert {"step_3.json", "step_6.json", "steps.png", "training.png"} <= names
    with pytest.raises(CheckpointError, match=r"no best checkpoint: config\.train\.keep_best is empty"):
        common.checkpoint_steps(tiny_config({"train.keep_best": ""}), tmp_path / "run", ["best"])
    with pytest.raises(CheckpointError, match=r"no best checkpoint: metrics\.jsonl has no eval/kid of a checkpoint"):
        common.checkpoint_steps(tiny_config({"train.keep_best": "eval/kid"}), tmp_path / "run", ["best"])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"evaluation.checkpoint_steps": ("last",)},
            r"checkpoint_steps is 'last': give a step, -1 for the latest, or 'best' or 'all'",
        ),
        ({"sampling.checkpoint_step": "all"}, r"checkpoint_step is 'all': give a step, -1 for the latest, or 'best'"),
        ({"train.keep_best": "eval/fid"}, r"keep_best is 'eval/fid': choose one of"),
        ({"evaluation.metrics": ("fid",)}, r"evaluation\.metrics is 'fid': choose one of frechet"),
        ({"evaluation.metrics": ()}, r"evaluation\.metrics is empty"),
        ({"evaluation.num_images": 1}, r"num_images is 1: it must be 4 or more"),
        ({"evaluation.batch_size": -1}, r"evaluation\.batch_size is -1: it must be 0 or more"),
        ({"evaluation.max_features": -1}, r"evaluation\.max_features is -1: it must be 0 or more"),
        ({"evaluation.checkpoint_steps": ()}, "checkpoint_steps is empty"),
        ({"evaluation.checkpoint_steps": (5,)}, "there are 2, 4, 6"),
        ({"evaluation.samplers": ("magic",)}, r"config\.evaluation\.samplers is 'magic': choose one of"),
        (
            {"evaluation.num_steps": (101,)},
            r"config\.evaluation\.num_steps contains 101: it must be from 1 to .*, which is 100$",
        ),
        ({"evaluation.vlb_num_timesteps": 7}, "an even number from 4"),
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
def test_errors_are_one_line(trained, tiny_config, tmp_path, fields, match):
    fields = FIELDS | {"evaluation.metrics": ("bits_per_dim", "frechet")} | fields
    if "heldout_split" in next(iter(fields)) or fields.get("evaluation.heldout_split") == "":
        fields |= {"evaluation.metrics": ("bits_per_dim",)}
    with pytest.raises(ExpectedError, match=match) as caught:
        evaluate.run(tiny_config(fields), str(trained), output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_a_read_only_workdir_is_an_error_before_images_are_read(trained, tiny_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("eval", "samples"))
    (run / "eval").write_text("in the way")
    monkeypatch.setattr(evaluation_config, "build_scorer", None)
    with pytest.raises(FileAccessError, match=r"cannot write to .*eval: it is a file; choose another `output`"):
        evaluate.run(tiny_config(FIELDS), str(run))
