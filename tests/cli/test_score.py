"""--mode=score: each kind of input gives the same scores for the same images, and what cannot be compared is refused."""

import json
import pathlib
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import compute_stats, modes, sample, score, train
from ddpm_jax.configs import defaults
from ddpm_jax.metrics import frechet, reference_stats
from ddpm_jax.metrics.reference_stats import Reference
from ddpm_jax.runtime.errors import ExpectedError
from tests import preloaded

NETWORK = "tests.small_network:Small"

COUNT, SIZE = 24, 6
FEATURES = f"{__name__}:vectors"


def vectors(images):
    """Features and logits of a classifier, for the tests."""
    flat = images.reshape(len(images), -1).astype("float32") / 255
    return flat[:, :5], flat[:, 5:9]


def random_images(seed, count=COUNT, size=SIZE, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def write_pngs(folder, images, first=0):
    """Two thirds of the images in a subfolder; the order of names is that of the images."""
    for index, image in enumerate(images, first):
        file = folder / ("a/b" if 3 * index < 2 * len(images) else "c") / f"{index:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(file)
    return folder


@pytest.fixture
def real(tmp_path):
    np.savez(tmp_path / "real.npz", random_images(1))
    return str(tmp_path / "real.npz")


@pytest.fixture
def run_score(capsys):
    """(images, reference, resize=..., output=..., fields) -> printed text."""

    def run(images, real="", *, resize="", output="", **fields):
        config = defaults.get_config()
        config.update_from_flattened_dict({"evaluation.batch_size": 16, "evaluation.features": "pixels"} | fields)
        given = {f"config.{name}" for name in fields} | {"config.evaluation.features"}
        capsys.readouterr()
        assert score.run(config, str(images), str(real), resize=resize, output=str(output), given=given) == 0
        return capsys.readouterr().out

    return run


def scores_of(text):
    """The numbers of a printed table."""
    names, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [{name: cell for name, cell in zip(names, row, strict=True) if name != "images"} for row in rows]


def inputs(folder):
    """The same images as each kind of input: name -> path."""
    images = random_images(0)
    pngs = write_pngs(folder / "pngs", images)
    np.savez(folder / "arr_0.npz", images)
    np.savez_compressed(folder / "images.npz", images=images, labels=np.zeros(COUNT, np.int32))
    np.savez(folder / "one.npz", any_name=images)
    np.save(folder / "array.npy", images)
    with zipfile.ZipFile(folder / "pngs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(pngs.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/pngs/._000.png", b"metadata of a Mac")
    names = ("arr_0.npz", "images.npz", "one.npz", "array.npy", "pngs.zip")
    return {"folder": pngs} | {name: folder / name for name in names}


def test_all_kinds_of_images_give_the_same_scores(tmp_path, real, run_score):
    found = {name: scores_of(run_score(path, real)) for name, path in inputs(tmp_path).items()}
    assert len(found) == 6
    assert len({str(rows) for rows in found.values()}) == 1, found
    assert set(found["folder"][0]) >= {"reference", "features", "count", "frechet", "kid", "precision", "recall"}
    images = [random_images(seed).reshape(COUNT, -1) / 255 for seed in (0, 1)]
    expected = frechet.frechet_distance(*(frechet.fit_gaussian(x) for x in images))
    assert float(found["folder"][0]["frechet"]) == pytest.approx(expected, rel=1e-3)
    assert scores_of(run_score(real, real))[0]["frechet"].startswith(("0", "1e", "2e", "3e"))


def test_a_reference_can_be_each_kind_as_well(tmp_path, real, run_score):
    found = {name: scores_of(run_score(real, path)) for name, path in inputs(tmp_path).items()}
    for rows in found.values():
        rows[0].pop("reference")
    assert len({str(rows) for rows in found.values()}) == 1, found


def test_results_have_the_schema_of_an_evaluation_and_add_up(tmp_path, real, run_score):
    np.savez(tmp_path / "a.npz", random_images(0))
    np.savez(tmp_path / "b.npz", random_images(5))
    for name in ("a", "b", "a"):
        text = run_score(tmp_path / f"{name}.npz", real, output=tmp_path / "out")
    assert "wrote scores.json, table.md and results/" in text
    assert len(list((tmp_path / "out" / "results").iterdir())) == 2 * 3  # repeating a measurement replaces its own result
    held = json.loads((tmp_path / "out" / "scores.json").read_text())["images"]
    assert [row["images"] for row in held if row["images"].endswith("a.npz")] == [str(tmp_path / "a.npz")]
    row = held[0]
    assert row["count"] == COUNT
    assert row["reference"] == real or row["reference"]["images"] == COUNT
    assert row["features"] == {"features": "pixels", "scale": "0..1"}
    assert set(row["provenance"]) == {"frechet", "kid", "precision_recall"}
    assert row["provenance"]["frechet"]["ddpm_jax"]
    assert len(row["set"]["images_sha256"]) == 64
    assert any("not an FID" in note for note in row["notes"])
    assert (tmp_path / "out" / "table.md").read_text().count("a.npz") == 1


def test_nothing_is_written_without_an_output(tmp_path, real, run_score, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert "nothing was written" in run_score(real, real)
    assert set(tmp_path.rglob("*")) == before


def statistics(path, seed=1, **arrays):
    gaussian = frechet.fit_gaussian(random_images(seed).reshape(COUNT, -1) / 255)
    np.savez(path, mu=gaussian.mean, sigma=gaussian.covariance, **arrays)
    return path


def test_statistics_of_another_tool_are_a_reference_or_are_scored(tmp_path, real, run_score):
    """As pytorch-fid saves them: no provenance and no features, so only the Fréchet distance."""
    np.savez(tmp_path / "a.npz", random_images(0))
    images, held, other = tmp_path / "a.npz", statistics(tmp_path / "real_stats.npz"), statistics(tmp_path / "a_stats.npz", 0)
    (expected,) = scores_of(run_score(images, real))
    text = run_score(images, held)
    assert scores_of(text)[0]["frechet"] == expected["frechet"]
    assert "kid" not in scores_of(text)[0]
    assert "note: without kid, which needs features of the reference" in text
    for reference in (real, held):
        text = run_score(other, reference)
        assert scores_of(text)[0]["frechet"] == expected["frechet"]
        assert "only Fréchet distances can be computed" in text
    with pytest.raises(ExpectedError, match="holds statistics: name what to compare them with as --reference"):
        run_score(other)
    with pytest.raises(ExpectedError, match="`metrics` contains kid, which needs images"):
        run_score(other, real, **{"evaluation.metrics": ("kid",)})
    with pytest.raises(ExpectedError, match="`metrics` contains kid, which needs features of the reference"):
        run_score(images, held, **{"evaluation.metrics": ("kid",)})
    np.savez(tmp_path / "small.npz", mu=np.zeros(75), sigma=np.eye(75))
    with pytest.raises(ExpectedError, match="features of 75 and of 108 dimensions"):
        run_score(tmp_path / "small.npz", real)


def test_the_features_of_a_reference_are_used_and_must_agree(tmp_path, capsys, run_score):
    np.savez(tmp_path / "a.npz", random_images(0))
    gaussian = frechet.fit_gaussian(random_images(1).reshape(COUNT, -1) / 255)
    provenance = {"set": "x", "images": COUNT, "resolution": SIZE, "channels": 3}
    provenance["extractor"] = {"features": "pixels", "scale": "0..1"}
    reference_stats.save(tmp_path / "stats.npz", Reference(gaussian, None, provenance))
    config = defaults.get_config()
    assert config.evaluation.features == "inception"
    assert score.run(config, str(tmp_path / "a.npz"), str(tmp_path / "stats.npz")) == 0
    assert scores_of(capsys.readouterr().out)[0]["features"] == "pixels"
    with pytest.raises(ExpectedError, match=r"holds other statistics: extractor is .*pixels.*, wanted .*pixels_3"):
        run_score(tmp_path / "a.npz", tmp_path / "stats.npz", **{"evaluation.features": "pixels_3"})
    np.savez(tmp_path / "small.npz", random_images(0, size=5))
    with pytest.raises(ExpectedError, match=r"not 6x6: 5x5"):
        run_score(tmp_path / "small.npz", tmp_path / "stats.npz")


def test_without_a_reference_there_is_the_inception_score_or_an_error(tmp_path, run_score):
    np.savez(tmp_path / "a.npz", random_images(0))
    text = run_score(tmp_path / "a.npz", **{"evaluation.features": FEATURES})
    assert set(scores_of(text)[0]) == {"features", "count", "inception score", "is_std"}
    assert "note: without a reference there is only the inception score" in text
    with pytest.raises(ExpectedError, match=r"no score can be computed: frechet needs a reference.*use features=inception"):
        run_score(tmp_path / "a.npz")
    with pytest.raises(ExpectedError, match="`metrics` contains frechet, which needs a reference"):
        run_score(tmp_path / "a.npz", **{"evaluation.metrics": ("frechet",)})


def test_images_of_another_size_are_refused_or_resized_by_a_named_filter(tmp_path, real, run_score):
    np.savez(tmp_path / "large.npz", random_images(0, size=12))
    pngs = write_pngs(tmp_path / "pngs", random_images(0, size=12))
    for images in (tmp_path / "large.npz", pngs):
        with pytest.raises(ExpectedError, match=r"not 6x6: .*12x12.*`resize=bicubic`"):
            run_score(images, real)
    texts = {name: run_score(pngs, real, resize=name, output=tmp_path / "out") for name in ("bicubic", "box")}
    assert scores_of(texts["bicubic"])[0]["frechet"] != scores_of(texts["box"])[0]["frechet"]
    assert "note: images were resized: Pillow box, antialiased" in texts["box"]
    assert scores_of(run_score(tmp_path / "large.npz", real, resize="box")) == scores_of(texts["box"])
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())["images"]
    assert len({row["set"]["resize"] for row in rows}) == 2
    both = run_score(tmp_path / "large.npz", real, resize="box:3")
    small = np.stack([np.asarray(Image.fromarray(x).resize((3, 3), Image.Resampling.BOX)) for x in random_images(0, size=12)])
    np.savez(tmp_path / "small.npz", small)
    assert scores_of(both) == scores_of(run_score(tmp_path / "small.npz", real, resize="box:3"))
    for wrong in ("nearest", "box:", "box:0", "3"):
        with pytest.raises(ExpectedError, match="`resize` is"):
            run_score(pngs, real, resize=wrong)


def test_images_of_mixed_sizes_are_refused_or_resized(tmp_path, run_score):
    folder = write_pngs(write_pngs(tmp_path / "pngs", random_images(0)), random_images(2, size=9, count=2), first=90)
    with pytest.raises(ExpectedError, match=r"2 of 26 images in .* are not 6x6: c/090\.png \(9x9\), c/091\.png \(9x9\)"):
        run_score(folder, folder)
    assert scores_of(run_score(folder, folder, resize="lanczos:6"))[0]["count"] == "26"


def test_gray_and_color_images_are_compared_in_three_channels(tmp_path, run_score):
    gray = random_images(0, channels=1)
    pngs, color = write_pngs(tmp_path / "gray", gray), gray.repeat(3, axis=3)
    np.savez(tmp_path / "color.npz", color)
    for pair in ((pngs, tmp_path / "color.npz"), (tmp_path / "color.npz", pngs)):
        assert float(scores_of(run_score(*pair))[0]["frechet"]) < 1e-9
    np.savez(tmp_path / "no_axis.npz", gray[..., 0])
    assert float(scores_of(run_score(pngs, tmp_path / "no_axis.npz"))[0]["frechet"]) < 1e-9


def test_broken_files_are_listed_in_one_line_or_left_out(tmp_path, real, run_score):
    folder = write_pngs(tmp_path / "pngs", random_images(0))
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "c" / "notes.txt").write_text("ignored")
    cut = (folder / "a/b/000.png").read_bytes()[:60]
    (folder / "cut.png").write_bytes(cut)
    with pytest.raises(ExpectedError) as raised:
        run_score(folder, real)
    assert "3 of 27 images" in str(raised.value)
    assert "empty.png (empty file)" in str(raised.value)
    assert "\n" not in str(raised.value)
    text = run_score(folder, real, **{"data.on_decode_error": "skip"})
    assert "note: 3 files cannot be read and are left out" in text
    sound = write_pngs(tmp_path / "sound", random_images(0))
    assert scores_of(text) == scores_of(run_score(sound, real))


def test_a_tfds_set_is_compared_at_its_own_size(tmp_path, run_score, real_data):
    if real_data is None:
        pytest.skip("needs DDPM_JAX_TEST_DATA")
    folder = {"data.data_dir": str(real_data / "tfds"), "evaluation.features": "pixels_2"}
    np.savez(tmp_path / "a.npz", random_images(0, size=32))
    text = run_score(tmp_path / "a.npz", "tfds:cifar10@test[:40]", **folder)
    assert scores_of(text)[0]["reference"] == "tfds:cifar10@test[:40]"
    assert float(scores_of(run_score("tfds:cifar10@test[:40]", "tfds:cifar10@test[:40]", **folder))[0]["frechet"]) < 1e-9
    with pytest.raises(ExpectedError, match="no split 'nowhere'"):
        run_score(tmp_path / "a.npz", "tfds:cifar10@nowhere", **folder)


def test_a_run_is_a_reference_or_has_images(tmp_path, tiny_config, capsys):
    """A workdir is its data set as a reference, and its last generated images as images."""
    workdir = tmp_path / "run"
    fields = {"evaluation.features": "pixels", "train.num_steps": 2}
    assert train.run(tiny_config(fields), str(workdir)) == 0
    with pytest.raises(ExpectedError, match="is a run without generated images: generate some with --mode=sample"):
        score.run(defaults.get_config(), str(workdir), str(workdir))
    assert sample.run(tiny_config(fields | {"sampling.num_images": 12}), str(workdir)) == 0
    capsys.readouterr()
    assert score.run(defaults.get_config(), str(workdir), str(workdir)) == 0
    (by_run,) = scores_of(capsys.readouterr().out)
    assert by_run["count"] == "12"
    assert by_run["features"] == "pixels"
    (folder,) = (workdir / "samples").glob("*/")
    assert score.run(defaults.get_config(), str(folder), str(workdir)) == 0  # not its grid.png
    assert scores_of(capsys.readouterr().out) == [by_run]
    file = tmp_path / "stats.npz"
    assert compute_stats.run(tiny_config(fields), str(workdir), output=str(file)) == 0
    capsys.readouterr()
    assert score.run(defaults.get_config(), str(folder), str(file)) == 0
    (by_file,) = scores_of(capsys.readouterr().out)
    assert {**by_file, "reference": ""} == {**by_run, "reference": ""}


def flags(*words):
    """The command line after rewriting."""
    return modes.expand_short_form(["main.py", *words])[1:]


def test_the_sub_command_and_the_mode_are_the_same():
    expected = ["--config.evaluation.features=pixels", "--images=a", "--mode=score", "--reference=b"]
    assert sorted(flags("score", "a", "--reference=b", "--features=pixels")) == expected
    assert sorted(flags("score", "--reference=b", "a", "--features=pixels")) == expected
    assert sorted(flags("--mode=score", "--images=a", "--reference=b", "--features=pixels")) == expected
    assert "--config.evaluation.metrics=('frechet', 'kid')" in flags("score", "a", "--metrics=frechet,kid")
    assert "--config.evaluation.metrics=('frechet',)" in flags("score", "a", "--metrics=frechet")
    assert flags("--mode=train", "--features=pixels") == ["--mode=train", "--features=pixels"]
    assert flags("score", "a", "--reference") == ["--images=a", "--mode=score", "--reference"]  # which then lacks its value
    assert flags("score", "a", "--metrics=")[-1] == "--config.evaluation.metrics=()"
    assert flags("train", "a") == ["train", "a"]  # an unexpected argument


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["score", "{a}", "{a}"], "error: unexpected argument"),
        (["score", "{a}", "--images={a}"], "error: unexpected argument"),
        (["--config=digits", "sample"], "error: unexpected argument 'sample': write --mode=sample"),
        (["score"], "error: --images is missing"),
        (["score", "{a}", "--workdir={here}/run"], "error: --mode=score has no --workdir"),
        (["--mode=sample", "--workdir={here}", "--images={a}"], "error: --images is for --mode=score only"),
        (["score", "{here}/nowhere", "--metrics=bits_per_dim", "--features=pixels"], "contains 'bits_per_dim'"),  # read nothing
        (["score", "{here}/nowhere", "--features=nothing"], "error: config.evaluation.features is 'nothing'"),
        (["score", "{a}", "--resize=nearest", "--reference={a}"], "error: --resize is 'nearest'"),
        (["score", "{here}/nowhere", "--reference={a}"], "does not exist: give a folder"),
        (["score", "{a}", "--reference={here}/nowhere"], "does not exist: give a folder"),
    ],
)
def test_wrong_commands_end_in_one_line(tmp_path, words, line):
    np.savez(tmp_path / "a.npz", random_images(0))
    words = [word.format(a=tmp_path / "a.npz", here=tmp_path) for word in words]
    done = preloaded.run([sys.executable, "main.py", *words], tmp_path)
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_the_command_prints_a_table(tmp_path):
    np.savez(tmp_path / "a.npz", random_images(0))
    line = [sys.executable, "main.py", "score", str(tmp_path / "a.npz"), f"--reference={tmp_path / 'a.npz'}"]
    done = preloaded.run([*line, "--features=pixels", f"--output={tmp_path / 'out'}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert scores_of(done.stdout)[0]["count"] == str(COUNT)
    passes = [line.partition(": ")[0] for line in done.stderr.splitlines() if " images (100%)" in line]
    assert passes == [f"features of {tmp_path / 'a.npz'}"] * 2
    assert f"scores of {COUNT} images of {tmp_path / 'a.npz'}" in done.stderr
    assert pathlib.Path(tmp_path / "out" / "table.md").exists()
