"""Drawing images from a checkpoint, with every option that config.sampling has."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.programs import sample, train
from ddpm_jax.runtime.errors import PersonError


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

    def run(changes=None):
        assert sample.run(tiny_config(fields | (changes or {})), str(folder), output=str(tmp_path / "out")) == 0
        with np.load(tmp_path / "out" / "images.npz") as arrays:
            return dict(arrays)

    return run


def test_exactly_n_images_with_their_labels_and_a_picture(draw, tmp_path):
    drawn = draw({"sampling.num_images": 12, "sampling.batch_size": 8})
    assert drawn["images"].shape == (12, 8, 8, 1)
    assert drawn["images"].dtype == np.uint8
    assert drawn["labels"].tolist() == [*range(10), 0, 1]
    assert set(drawn) == {"images", "labels"}
    picture = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
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
        "sampling.weights": "raw",
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
    assert sample.sampling_notes(tiny_config(ancestral | {"sampling.num_steps": 10}))
    for sound in ({}, {"sampling.num_steps": 11} | ancestral, {"diffusion.variance": "fixed_small"} | ancestral):
        assert sample.sampling_notes(tiny_config(sound | {"sampling.spacing": "trailing"})) == []


def test_a_spacing_that_starts_far_below_the_noise_is_warned_of(tiny_config):
    """By what it does to brightness; the cases are those of docs/colors.md."""
    cosine = {"diffusion.schedule": "cosine", "diffusion.num_timesteps": 1000, "data.image_size": 64, "data.channels": 3}
    (note,) = sample.sampling_notes(tiny_config(cosine | {"sampling.num_steps": 50}))
    assert note.startswith("spacing leading starts from pure noise at t=980")
    assert "pulled up to 63% of the way to mid-gray, with sampling.spacing=trailing 0%" in note
    linear = cosine | {"diffusion.schedule": "linear", "data.image_size": 32}
    for sound in (cosine | {"sampling.spacing": "trailing"}, cosine | {"sampling.spacing": "logsnr"}, linear):
        assert sample.sampling_notes(tiny_config({"sampling.num_steps": 50} | sound)) == []


def test_a_class_can_be_asked_for(draw):
    assert draw({"sampling.label": 7})["labels"].tolist() == [7] * 5


def test_stages_are_kept_on_request(draw, tmp_path):
    drawn = draw({"sampling.keep": 3})
    assert drawn["x_t"].shape == drawn["pred_xstart"].shape == (5, 4, 8, 8, 1)
    assert np.array_equal(drawn["x_t"][:, -1], drawn["images"])
    assert np.array_equal(drawn["images"], draw()["images"])  # to look does not change what one sees
    for name in ("x_t", "pred_xstart"):
        assert (tmp_path / "out" / f"{name}.png").exists()


def test_the_default_folder_is_named_after_what_was_drawn(draw, trained, tiny_config, capsys):
    draw()
    folder, fields = trained
    changes = {"sampling.eta": 0.5, "sampling.weights": "raw", "sampling.label": 3, "sampling.seed": 2}
    assert sample.run(tiny_config(fields | changes), str(folder)) == 0
    target = folder / "samples" / "step_6-ddim-4-seed_2-eta_0.5-raw-label_3"
    assert sorted(file.name for file in target.iterdir()) == ["grid.png", "images.npz"]
    assert str(target) in capsys.readouterr().out


def test_what_cannot_be_drawn_is_said_in_one_line(draw, trained, tiny_config, tmp_path):
    draw()
    folder, fields = trained

    def refused(match, where=folder, changes=None, output=""):
        with pytest.raises(PersonError, match=match) as caught:
            sample.run(tiny_config(fields | (changes or {})), str(where), output=output)
        assert "\n" not in str(caught.value)

    refused(r"there are 2, 4, 6", changes={"sampling.checkpoint_step": 5})
    refused(r"model\.ch was 8, now 16", changes={"model.ch": 16})
    refused("holds no run", where=tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    refused("cannot write to", output=str(tmp_path / "file" / "below"))
