"""Drawing images from a checkpoint, with every option that config.sampling has."""

import itertools
import os
import pathlib
import signal
import subprocess
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import sampling_config
from ddpm_jax.cli import sample, train
from ddpm_jax.evaluation import sample_files
from ddpm_jax.runtime import workdir
from ddpm_jax.runtime.errors import ExpectedError, InvalidDataError, NumericalError
from ddpm_jax.samplers.batched import BatchedSampler, NonFiniteSamples

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workdir of a run of a class-conditional model, with checkpoints of steps 2, 4 and 6; and its config."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, FIELDS


FIELDS = {"model.class_conditional": True, "optimizer.learning_rate": 0.05, "optimizer.warmup_steps": 0}


@pytest.fixture
def draw(trained, tiny_config, tmp_path):
    """(fields) -> arrays drawn from the trained run."""
    folder, fields = trained
    if not (folder / "config.json").exists():
        train.run(tiny_config(fields), str(folder))

    calls = itertools.count()

    def run(changes=None):
        out = tmp_path / f"out{next(calls)}"
        assert sample.run(tiny_config(fields | (changes or {})), str(folder), output=str(out)) == 0
        with np.load(out / "images.npz") as arrays:
            return dict(arrays)

    return run


def test_exactly_n_images_with_their_labels_and_a_picture(draw, tmp_path):
    drawn = draw({"sampling.num_images": 12, "sampling.batch_size": 8})
    assert drawn["images"].shape == (12, 8, 8, 1)
    assert drawn["images"].dtype == np.uint8
    assert drawn["labels"].tolist() == [*range(10), 0, 1]
    assert set(drawn) == {"images", "labels", "label_names"}
    assert drawn["label_names"].tolist() == list("0123456789")
    picture = np.asarray(Image.open(tmp_path / "out0" / "grid.png"))
    assert min(picture.shape) >= 3 * 64


def test_each_option_changes_the_picture_and_no_other_run_does(draw):
    base = draw()["images"]
    assert np.array_equal(base, draw()["images"])
    assert np.array_equal(base, draw({"sampling.batch_size": 1})["images"])
    assert np.array_equal(base[:2], draw({"sampling.num_images": 2})["images"])
    changes = {
        "sampling.seed": 1,
        "sampling.sampler": "ancestral",
        "sampling.num_steps": 5,
        "sampling.eta": 1.0,
        "sampling.spacing": "trailing",
        "sampling.params": "raw",
        "sampling.label": 3,
        "sampling.checkpoint_step": 4,
    }
    pictures = {field: draw({field: value})["images"] for field, value in changes.items()} | {"": base}
    for a in pictures:
        for b in pictures:
            assert a == b or not np.array_equal(pictures[a], pictures[b]), f"{a} draws what {b} draws"


def test_few_ancestral_steps_under_fixed_large_are_warned_of(draw, tiny_config, capsys):
    """At most a tenth of the chain; by the rule that evaluations use."""
    ancestral = {"sampling.sampler": "ancestral"}
    draw(ancestral)
    assert "note: ancestral sampling in 4 of 100 steps under fixed_large" in capsys.readouterr().out
    assert sampling_config.sampling_warnings(tiny_config(ancestral | {"sampling.num_steps": 10}))
    for sound in ({}, {"sampling.num_steps": 11} | ancestral, {"diffusion.variance": "fixed_small"} | ancestral):
        assert sampling_config.sampling_warnings(tiny_config(sound | {"sampling.spacing": "trailing"})) == []


def test_a_spacing_that_starts_far_below_the_noise_is_warned_of(tiny_config):
    """By what it does to brightness; the cases are those of docs/colors.md."""
    cosine = {"diffusion.schedule": "cosine", "diffusion.num_timesteps": 1000, "data.image_size": 64, "data.channels": 3}
    (note,) = sampling_config.sampling_warnings(tiny_config(cosine | {"sampling.num_steps": 50}))
    assert note.startswith("spacing leading starts from pure noise at t=980")
    assert "pulled up to 63% of the way to mid-gray, with sampling.spacing=trailing 0%" in note
    linear = cosine | {"diffusion.schedule": "linear", "data.image_size": 32}
    for sound in (cosine | {"sampling.spacing": "trailing"}, cosine | {"sampling.spacing": "logsnr"}, linear):
        assert sampling_config.sampling_warnings(tiny_config({"sampling.num_steps": 50} | sound)) == []


def test_a_class_can_be_asked_for(draw):
    assert draw({"sampling.label": 7})["labels"].tolist() == [7] * 5


def test_stages_are_kept_on_request(draw, tmp_path):
    drawn = draw({"sampling.num_intermediates": 3})
    assert drawn["x_t"].shape == drawn["pred_xstart"].shape == (5, 4, 8, 8, 1)
    assert np.array_equal(drawn["x_t"][:, -1], drawn["images"])
    assert np.array_equal(drawn["images"], draw()["images"])  # to look does not change what one sees
    for name in ("x_t", "pred_xstart"):
        assert (tmp_path / "out0" / f"{name}.png").exists()


def test_the_default_folder_is_named_after_what_was_drawn(draw, trained, tiny_config, capsys):
    draw()
    folder, fields = trained
    changes = {"sampling.eta": 0.5, "sampling.params": "raw", "sampling.label": 3, "sampling.seed": 2}
    assert sample.run(tiny_config(fields | changes), str(folder)) == 0
    target = folder / "samples" / "step_6-ddim-4-seed_2-eta_0.5-raw-label_3-5_images"
    assert sorted(file.name for file in target.iterdir()) == ["grid.png", "images.npz", "manifest.json"]
    assert str(target) in capsys.readouterr().out


NAMES = ("zero", "one/uno", "two", *"3456789")


@pytest.fixture
def named(monkeypatch):
    """The run's data set has names of classes."""
    monkeypatch.setattr(workdir, "read_data_identity", lambda folder: {"class_names": NAMES})


def test_each_format_holds_the_same_images(draw, trained, tiny_config, tmp_path, named, monkeypatch):
    """npz, PNG files and guided-diffusion's archive, each also made of a finished folder of another, without a network."""
    images = draw({"sampling.num_images": 12})["images"]
    folder, fields = trained
    fields = fields | {"sampling.num_images": 12}
    target = tmp_path / "made"

    def run(form, where=target):
        assert sample.run(tiny_config(fields | {"sampling.format": form}), str(folder), output=str(where)) == 0

    run("png")
    names = sorted(file.name for file in (target / "png").iterdir())
    assert names[:4] == ["00000000-zero.png", "00000001-one_uno.png", "00000002-two.png", "00000003-3.png"]
    assert len(names) == 12
    read = np.stack([np.asarray(Image.open(target / "png" / name)) for name in names])
    np.testing.assert_array_equal(read[..., None], images)
    assert sorted(file.name for file in target.iterdir()) == ["grid.png", "manifest.json", "png"]

    monkeypatch.setattr(BatchedSampler, "generate", None)  # what is there serves as the source of the rest
    run("both")
    run("guided_diffusion")
    with np.load(target / "images.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], images)
        assert arrays["label_names"][arrays["labels"]].tolist() == [*NAMES, *NAMES[:2]]
    with np.load(target / "samples_12x8x8x1.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == [*range(10), 0, 1]
    whole = (target / "png" / names[3]).read_bytes()
    for left in (b"", whole[:60]):  # as a crash of the machine leaves a file
        (target / "png" / names[3]).write_bytes(left)
        run("png")
        assert (target / "png" / names[3]).read_bytes() == whole

    for file in target.glob("*.npz"):  # without them, the PNG files are the source
        file.unlink()
    (target / "png" / names[3]).write_bytes(whole[:45] + b"damaged" + whole[52:])
    with pytest.raises(InvalidDataError, match=rf"{names[3]} is damaged \(.*\): remove it, and start the same command again"):
        run("npz")


def test_what_was_generated_before_an_end_is_not_generated_again(draw, trained, tiny_config, tmp_path, monkeypatch, capfd):
    """A full disk, a kill or a NaN in the third batch: two batches are there, and the rest makes the same files."""
    draw()
    folder, fields = trained
    fields = fields | {
        "sampling.num_images": 20,
        "sampling.batch_size": 8,
        "sampling.format": "both",
        "sampling.num_intermediates": 2,
    }
    original, calls = BatchedSampler.generate, []

    def ending(self, *args, first_image=0, **kwargs):
        for number, batch in enumerate(original(self, *args, first_image=first_image, **kwargs)):
            calls.append(first_image + 8 * number)
            if len(calls) == 3:
                raise NonFiniteSamples("1 of the 4 images 16..19 are NaN or infinite")
            yield batch

    monkeypatch.setattr(BatchedSampler, "generate", ending)

    def run(name):
        return sample.run(tiny_config(fields), str(folder), output=str(tmp_path / name))

    with pytest.raises(NumericalError, match="NaN"):
        run("killed")
    assert len(list((tmp_path / "killed" / "png").iterdir())) == 16
    assert not (tmp_path / "killed" / "images.npz").exists()
    assert run("killed") == 0
    assert "16 of 20 images are there already" in capfd.readouterr().err
    assert run("killed") == 0
    assert "20 of 20 images are there already" in capfd.readouterr().err
    assert calls == [0, 8, 16, 16]
    assert run("whole") == 0
    whole = {file.relative_to(tmp_path / "whole"): file for file in (tmp_path / "whole").rglob("*.*")}
    assert len(whole) == 20 + len(["images.npz", "grid.png", "x_t.png", "pred_xstart.png", "manifest.json"])
    for name, file in whole.items():
        assert (tmp_path / "killed" / name).read_bytes() == file.read_bytes(), name


def test_only_one_batch_is_in_memory(draw, trained, tiny_config, tmp_path, monkeypatch):
    """10 batches: no more than two of their arrays are alive when the next one comes, and the files are read in parts."""
    draw()
    folder, fields = trained
    original, alive, most = BatchedSampler.generate, [], []

    def watching(self, *args, **kwargs):
        for batch in original(self, *args, **kwargs):
            images = batch.images.copy()
            alive.append(weakref.ref(images))
            most.append(sum(ref() is not None for ref in alive))
            batch = batch._replace(images=images)
            del images
            yield batch

    monkeypatch.setattr(BatchedSampler, "generate", watching)
    fields = fields | {"sampling.num_images": 80, "sampling.batch_size": 8}
    assert sample.run(tiny_config(fields), str(folder), output=str(tmp_path / "many")) == 0
    assert len(most) == 10
    assert max(most) <= 2


def test_stages_of_many_images_are_kept_of_the_first_alone(draw, trained, tiny_config, tmp_path, capsys, monkeypatch):
    draw()
    monkeypatch.setattr(sample, "KEPT_IMAGES", 6)
    monkeypatch.setattr(sample_files, "KEPT_IMAGES", 6)
    folder, fields = trained
    few = fields | {"sampling.num_images": 11, "sampling.batch_size": 8, "sampling.num_intermediates": 2}
    assert sample.run(tiny_config(few), str(folder), output=str(tmp_path / "few")) == 0
    assert (
        "note: stages along the way (config.sampling.num_intermediates) are kept of the first 6 images"
        in capsys.readouterr().out
    )
    with np.load(tmp_path / "few" / "images.npz") as arrays:
        assert arrays["images"].shape == (11, 8, 8, 1)
        assert arrays["x_t"].shape == arrays["pred_xstart"].shape == (6, 3, 8, 8, 1)
        np.testing.assert_array_equal(arrays["x_t"][:, -1], arrays["images"][:6])


def test_no_call_replaces_what_another_made(draw, trained, tiny_config, tmp_path):
    """Other counts, stages, labels and weights: a folder each; none of the files made before changes."""
    draw()
    folder, fields = trained
    seen = {}
    for changes in (
        {"sampling.seed": 9},
        {"sampling.seed": 9, "sampling.num_images": 3},
        {"sampling.seed": 9, "sampling.num_intermediates": 2},
        {"sampling.seed": 9, "sampling.label": 4},
        {"sampling.seed": 9, "sampling.checkpoint_step": 4},
        {"sampling.seed": 9, "sampling.batch_size": 1},  # the same images: the same folder
    ):
        assert sample.run(tiny_config(fields | changes), str(folder)) == 0
        files = {file: file.read_bytes() for file in (folder / "samples").rglob("*seed_9*/*")}
        assert seen.items() <= files.items(), changes
        assert (len(files) == len(seen)) == ("sampling.batch_size" in changes)
        seen = files
    assert len({file.parent for file in seen}) == 5


@pytest.mark.timeout(300)
def test_a_kill_at_any_instant_and_the_same_command_end_like_one_never_killed(trained, draw, command, tmp_path):
    """A real process, SIGKILL once some pieces are there."""
    draw()
    folder, fields = trained
    fields = fields | {"sampling.num_images": 400, "sampling.batch_size": 8, "sampling.format": "both"}
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    def start(name):
        line = command(folder, "--mode=sample", f"--output={tmp_path / name}", fields=fields)
        return subprocess.Popen(
            line, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    killed = start("killed")
    while len(list((tmp_path / "killed").glob("images_*.npz"))) < 7:
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    for name in ("killed", "whole"):
        process = start(name)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        assert ("of 400 images are there already" in said) == (name == "killed")
    whole = {file.relative_to(tmp_path / "whole"): file.read_bytes() for file in (tmp_path / "whole").rglob("*.*")}
    again = {file.relative_to(tmp_path / "killed"): file.read_bytes() for file in (tmp_path / "killed").rglob("*.*")}
    assert len(whole) == 400 + 3
    assert again == whole


def test_what_cannot_be_drawn_is_said_in_one_line(draw, trained, tiny_config, tmp_path, monkeypatch):
    draw()
    folder, fields = trained

    def refused(match, where=folder, changes=None, output=""):
        with pytest.raises(ExpectedError, match=match) as caught:
            sample.run(tiny_config(fields | (changes or {})), str(where), output=output)
        assert "\n" not in str(caught.value)

    refused(r"there are 2, 4, 6", changes={"sampling.checkpoint_step": 5})
    refused(r"model\.ch was 8, now 16", changes={"model.ch": 16})
    refused("contains no run", where=tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(BatchedSampler, "generate", None)  # found before any image is generated
    refused("cannot write to", output=str(tmp_path / "file" / "below"))
    refused("it is a file; choose another --output", output=str(tmp_path / "file"))
    refused("--output=gs://bucket/x is not a path on this machine", output="gs://bucket/x")
    refused("config.sampling.format is 'jpg': choose one of npz, png", changes={"sampling.format": "jpg"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grid.png").write_text("")
    refused("already has another grid.png", output=str(tmp_path / "mine"))
