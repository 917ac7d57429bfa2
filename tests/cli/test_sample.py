"""--mode=sample with all options of config.sampling."""

import itertools
import os
import signal
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
from tests import preloaded


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workdir of a class-conditional run with checkpoints of steps 2, 4 and 6, and its fields."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, FIELDS


FIELDS = {
    "model.name": "tests.small_network:Small",
    "model.class_conditional": True,
    "optimizer.learning_rate": 0.05,
    "optimizer.warmup_steps": 0,
}


@pytest.fixture
def generate(trained, tiny_config, tmp_path):
    """(fields) -> arrays of images.npz, sampled from the trained run."""
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


def test_the_number_of_images_their_labels_and_the_grid(generate, tmp_path):
    arrays = generate({"sampling.num_images": 12, "sampling.batch_size": 8})
    assert arrays["arr_0"].shape == (12, 8, 8, 1)
    assert arrays["arr_0"].dtype == np.uint8
    assert arrays["labels"].tolist() == [*range(10), 0, 1]
    assert set(arrays) == {"arr_0", "labels", "label_names"}
    assert arrays["label_names"].tolist() == list("0123456789")
    picture = np.asarray(Image.open(tmp_path / "out0" / "grid.png"))
    assert min(picture.shape) >= 3 * 64


def test_each_option_changes_the_images(generate):
    base = generate()["arr_0"]
    assert np.array_equal(base, generate()["arr_0"])
    assert np.array_equal(base, generate({"sampling.batch_size": 1})["arr_0"])
    assert np.array_equal(base[:2], generate({"sampling.num_images": 2})["arr_0"])
    changes = {
        "sampling.seed": 1,
        "sampling.sampler": "ancestral",
        "sampling.num_steps": 5,
        "sampling.ddim.eta": 1.0,
        "sampling.spacing": "trailing",
        "sampling.params": "raw",
        "sampling.label": 3,
        "sampling.checkpoint_step": 4,
    }
    pictures = {field: generate({field: value})["arr_0"] for field, value in changes.items()} | {"": base}
    for a in pictures:
        for b in pictures:
            assert a == b or not np.array_equal(pictures[a], pictures[b]), f"{a} and {b} give the same images"


def test_few_ancestral_steps_with_fixed_large_give_a_warning(generate, tiny_config, capsys):
    """At most a tenth of T, as in evaluations."""
    ancestral = {"sampling.sampler": "ancestral"}
    generate(ancestral)
    assert "note: ancestral sampling in 4 of 100 steps with fixed_large" in capsys.readouterr().out
    assert sampling_config.sampling_warnings(tiny_config(ancestral | {"sampling.num_steps": 10}))
    for sound in ({}, {"sampling.num_steps": 11} | ancestral, {"diffusion.variance": "fixed_small"} | ancestral):
        assert sampling_config.sampling_warnings(tiny_config(sound | {"sampling.spacing": "trailing"})) == []


def test_a_spacing_that_starts_below_pure_noise_gives_a_warning(tiny_config):
    """The warning includes the effect on brightness; the cases are those of docs/colors.md."""
    cosine = {"diffusion.schedule": "cosine", "diffusion.num_timesteps": 1000, "data.image_size": 64, "data.channels": 3}
    (note,) = sampling_config.sampling_warnings(tiny_config(cosine | {"sampling.num_steps": 50}))
    assert note.startswith("spacing leading starts from pure noise at t=980")
    assert "pulled up to 63% of the way to mid-gray, with sampling.spacing=trailing 0%" in note
    linear = cosine | {"diffusion.schedule": "linear", "data.image_size": 32}
    for sound in (cosine | {"sampling.spacing": "trailing"}, cosine | {"sampling.spacing": "logsnr"}, linear):
        assert sampling_config.sampling_warnings(tiny_config({"sampling.num_steps": 50} | sound)) == []


def test_a_class_can_be_selected(generate):
    assert generate({"sampling.label": 7})["labels"].tolist() == [7] * 5


def test_intermediate_steps_are_saved_on_request(generate, tmp_path):
    arrays = generate({"sampling.num_intermediates": 3})
    assert arrays["x_t"].shape == arrays["pred_xstart"].shape == (5, 4, 8, 8, 1)
    assert np.array_equal(arrays["x_t"][:, -1], arrays["arr_0"])
    assert np.array_equal(arrays["arr_0"], generate()["arr_0"])  # saving does not change the images
    for name in ("x_t", "pred_xstart"):
        assert (tmp_path / "out0" / f"{name}.png").exists()


def test_the_default_folder_is_named_after_the_options(generate, trained, tiny_config, capsys):
    generate()
    folder, fields = trained
    changes = {"sampling.ddim.eta": 0.5, "sampling.params": "raw", "sampling.label": 3, "sampling.seed": 2}
    assert sample.run(tiny_config(fields | changes), str(folder)) == 0
    target = folder / "samples" / "step_6-ddim-4-seed_2-eta_0.5-raw-label_3-5_images"
    assert sorted(file.name for file in target.iterdir()) == ["grid.png", "images.npz", "manifest.json"]
    assert str(target) in capsys.readouterr().out


NAMES = ("zero", "one/uno", "two", *"3456789")


@pytest.fixture
def named(monkeypatch):
    """The data set of the run has class names."""
    monkeypatch.setattr(workdir, "read_data_identity", lambda folder: {"class_names": NAMES})


def test_each_format_has_the_same_images(generate, trained, tiny_config, tmp_path, named, monkeypatch):
    """npz and PNG files, also converted from a finished folder without a network."""
    images = generate({"sampling.num_images": 12})["arr_0"]
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

    monkeypatch.setattr(BatchedSampler, "generate", None)  # formats are converted from existing files
    run("both")
    with np.load(target / "images.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert arrays["label_names"][arrays["labels"]].tolist() == [*NAMES, *NAMES[:2]]
    with np.load(target / "images.npz") as arrays:
        np.savez(target / "images.npz", **{"images" if name == "arr_0" else name: arrays[name] for name in arrays})
    run("npz")  # of an earlier version, which called the array otherwise
    with np.load(target / "images.npz") as arrays:
        assert set(arrays) == {"arr_0", "labels", "label_names"}
        np.testing.assert_array_equal(arrays["arr_0"], images)
    whole = (target / "png" / names[3]).read_bytes()
    for left in (b"", whole[:60]):  # as after a crash of the machine
        (target / "png" / names[3]).write_bytes(left)
        run("png")
        assert (target / "png" / names[3]).read_bytes() == whole

    for file in target.glob("*.npz"):  # without them, the PNG files are the source
        file.unlink()
    (target / "png" / names[3]).write_bytes(whole[:45] + b"damaged" + whole[52:])
    with pytest.raises(InvalidDataError, match=rf"{names[3]} is damaged \(.*\): remove it and run the same command again"):
        run("npz")


def test_images_from_before_an_interruption_are_not_generated_again(
    generate, trained, tiny_config, tmp_path, monkeypatch, capfd
):
    """After an error in the third batch, two batches are reused and the output files are the same."""
    generate()
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


def test_only_one_batch_is_in_memory(generate, trained, tiny_config, tmp_path, monkeypatch):
    """10 batches: at most two of their arrays are alive at a time."""
    generate()
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


def test_intermediate_steps_are_saved_for_the_first_images_only(generate, trained, tiny_config, tmp_path, capsys, monkeypatch):
    generate()
    monkeypatch.setattr(sample, "KEPT_IMAGES", 6)
    monkeypatch.setattr(sample_files, "KEPT_IMAGES", 6)
    folder, fields = trained
    few = fields | {"sampling.num_images": 11, "sampling.batch_size": 8, "sampling.num_intermediates": 2}
    assert sample.run(tiny_config(few), str(folder), output=str(tmp_path / "few")) == 0
    assert (
        "note: intermediate steps (config.sampling.num_intermediates) are saved for the first 6 images only"
        in capsys.readouterr().out
    )
    with np.load(tmp_path / "few" / "images.npz") as arrays:
        assert arrays["arr_0"].shape == (11, 8, 8, 1)
        assert arrays["x_t"].shape == arrays["pred_xstart"].shape == (6, 3, 8, 8, 1)
        np.testing.assert_array_equal(arrays["x_t"][:, -1], arrays["arr_0"][:6])


def test_no_call_overwrites_the_files_of_another(generate, trained, tiny_config, tmp_path):
    """Other counts, intermediate steps, labels and parameters get their own folders; earlier files do not change."""
    generate()
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_a_kill_the_same_command_gives_the_files_of_an_uninterrupted_one(trained, generate, command, tmp_path):
    """SIGKILL to a real process after some chunks."""
    generate()
    folder, _ = trained
    fields = {"sampling.num_images": 400, "sampling.batch_size": 8, "sampling.format": "both"}
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    log = tmp_path / "log"

    def start(name):
        line = command(folder, "--mode=sample", f"--output={tmp_path / name}", fields=fields, config="", tiny=False)
        return preloaded.Process(line, stdout=log, stderr=log, env=environment)

    killed = start("killed")
    while len(list((tmp_path / "killed").glob("images_*.npz"))) < 7:
        assert killed.poll() is None, log.read_text()
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    for name in ("killed", "whole"):
        log.unlink()
        assert start(name).wait() == 0, log.read_text()
        assert ("of 400 images are there already" in log.read_text()) == (name == "killed")
    whole = {file.relative_to(tmp_path / "whole"): file.read_bytes() for file in (tmp_path / "whole").rglob("*.*")}
    again = {file.relative_to(tmp_path / "killed"): file.read_bytes() for file in (tmp_path / "killed").rglob("*.*")}
    assert len(whole) == 400 + 3
    assert again == whole


def test_errors_are_one_line(generate, trained, tiny_config, tmp_path, monkeypatch):
    generate()
    folder, fields = trained

    def refused(match, where=folder, changes=None, output=""):
        with pytest.raises(ExpectedError, match=match) as caught:
            sample.run(tiny_config(fields | (changes or {})), str(where), output=output)
        assert "\n" not in str(caught.value)

    refused(r"there are 2, 4, 6", changes={"sampling.checkpoint_step": 5})
    refused(r"model\.unet\.ch was 8, now 16", changes={"model.unet.ch": 16})
    refused("contains no run", where=tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(BatchedSampler, "generate", None)  # found before any image is generated
    refused("cannot write to", output=str(tmp_path / "file" / "below"))
    refused("it is a file; choose another `output`", output=str(tmp_path / "file"))
    refused("`output=s3://bucket/x` is not a path on this machine", output="s3://bucket/x")
    refused("config.sampling.format is 'jpg': choose one of npz, png", changes={"sampling.format": "jpg"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grid.png").write_text("")
    refused("already holds grid.png", output=str(tmp_path / "mine"))
