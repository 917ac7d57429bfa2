"""The identity of the training set: saved in the workdir, compared on resume, and used for class names."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import config_validation, data_config
from ddpm_jax.cli import sample, train
from ddpm_jax.configs import defaults, image_folder
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import workdir
from ddpm_jax.user_messages import UsageError, UserError

NETWORK = "tests.small_network:Small"

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    """Two classes of four gray images of 12 bits."""
    for name in ("daisy", "rose"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(4):
            levels = RNG.integers(0, 4096, (8, 8), dtype=np.uint16)
            levels[0, 0] = 4095
            Image.fromarray(levels).save(tmp_path / "set" / name / f"{index}.png")
    return tmp_path / "set"


@pytest.fixture
def config_of(tiny_config):
    """folder -> class-conditional config of two steps."""

    def make(folder, **data):
        config, tiny = image_folder.get_config(), tiny_config()
        for section in ("model", "diffusion", "train", "sampling"):
            config[section].update(tiny[section].to_dict())
        config.data.update(image_size=8, channels=1, num_classes=2, data_dir=str(folder), **data)
        config.model.class_conditional = True
        config.train.update(num_steps=2, batch_size=8, checkpoint_every=1, sample_every=0)
        config.sampling.num_images = 2
        return config

    return make


def test_the_workdir_records_the_data_set_and_a_resume_compares_it(tmp_path, folder, config_of, capfd):
    run = tmp_path / "run"
    assert train.run(config_of(folder), str(run)) == 0
    kept = workdir.read_data_identity(run)
    assert (kept["count"], kept["class_names"], kept["value_range"]) == (8, ["daisy", "rose"], [0.0, 4095.0])
    assert json.loads((run / "config.json").read_text())["data"]["value_range"] == [0.0, 4095.0]

    def resume(steps):
        config = config_of(folder)
        config.train.num_steps = steps
        data_config.complete(config, workdir.read_data_identity(run))  # as in main.py
        assert train.run(config, str(run)) == 0

    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(
        folder / "rose" / "4.png"
    )  # would change the range if it were determined again
    capfd.readouterr()
    resume(3)
    printed = capfd.readouterr().err
    assert f"warning: {folder} has changed since the run was trained on it: 8 images before, 9 now" in printed
    assert "4095 white; 1 of them have levels outside the range, which are clipped" in printed
    assert workdir.read_data_identity(run)["count"] == 9

    before = (run / "data.json").read_bytes()
    (folder / "rose").rename(folder / "tulip")
    with pytest.raises(UserError, match=r"other classes than .* has: no longer there: rose; new: tulip"):
        resume(4)
    assert (run / "data.json").read_bytes() == before


def test_a_class_is_generated_by_its_name(tmp_path, folder, config_of, monkeypatch):
    """The image grids of training and sampling have class names as row labels."""
    shown, draw_plan = [], image_grid.draw_plan
    monkeypatch.setattr(image_grid, "draw_plan", lambda *arguments: shown.append(arguments[3]) or draw_plan(*arguments))
    run = tmp_path / "run"
    config = config_of(folder)
    config.train.sample_every = 2
    assert train.run(config, str(run)) == 0
    assert shown == [("daisy", "rose")]
    identity = workdir.read_data_identity(run)
    images = {}
    for label in ("rose", 1):
        config = config_of(folder)
        config.sampling.label = label
        data_config.complete(config, identity)
        assert sample.run(config, str(run), output=str(tmp_path / f"{label}")) == 0
        images[label] = np.load(next((tmp_path / f"{label}").rglob("images.npz")))
    assert images["rose"]["labels"].tolist() == [1, 1]
    assert shown == 3 * [("daisy", "rose")]
    np.testing.assert_array_equal(images["rose"]["arr_0"], images[1]["arr_0"])


def test_an_unknown_class_is_an_error_that_lists_the_classes(config_of, tmp_path):
    config = config_of(tmp_path)
    config.sampling.label = True  # would count as 1
    with pytest.raises(UsageError, match=r"^config\.sampling\.label is True: give the number or the name of a class"):
        config_validation.check_config(config)
    config.sampling.label = "dasy"
    config_validation.check_config(config)
    with pytest.raises(UsageError, match=r"'dasy': did you mean 'daisy'\? The classes are daisy, rose"):
        data_config.complete(config, {"class_names": ["daisy", "rose"]})
    with pytest.raises(UsageError, match=r"has no class names: use a number, 0\.\.1"):
        data_config.complete(config, None)
    config.sampling.label = "1"  # a number in quotes
    data_config.complete(config, None)
    assert config.sampling.label == 1
    config.sampling.label = "1"  # digits mean the label, even if a folder has that name
    data_config.complete(config, {"class_names": ["1", "2"]})
    assert config.sampling.label == 1


def test_a_missing_number_of_classes_is_an_error_with_the_number_found(tmp_path, folder, config_of):
    config = config_of(folder)
    config.data.num_classes = 0
    with pytest.raises(UsageError, match=r"has 2 classes: set --config\.data\.num_classes=2$"):
        train.run(config, str(tmp_path / "run"))


def test_a_folder_without_classes_is_an_error_with_advice(tmp_path, config_of):
    for name in ("cat_1", "cat_2", "dog_1", "dog_2"):
        Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(UsageError, match=r"has none: put the images of each class into a separate folder.*\(cat/ for"):
        train.run(config_of(tmp_path), str(tmp_path / "run"))


@pytest.mark.parametrize("wrong", [(5.0,), (5.0, 5.0), (9.0, 1.0), (0.0, 1.0, 2.0)])
def test_invalid_value_ranges(wrong):
    config = defaults.get_config()
    config.data.value_range = wrong
    with pytest.raises(UsageError, match=r"^config\.data\.value_range is .*: give the black and white levels"):
        config_validation.check_config(config)


def test_a_class_name_on_the_command_line(tmp_path, folder, main):
    """A new run reads the names from the data set, later calls from the workdir; without a checkpoint the set may change."""
    (tmp_path / "run").mkdir()
    workdir.write_data_identity(tmp_path / "run", {"class_names": ["cat"], "fingerprint": "", "value_range": [0.0, 9.0]})
    fields = {
        "data.data_dir": folder,
        "data.image_size": 8,
        "data.channels": 1,
        "data.num_classes": 2,
        "model.class_conditional": True,
        "model.unet.num_res_blocks": 1,
        "train.num_steps": 1,
        "sampling.label": "rose",
    }
    trained = main(tmp_path / "run", fields=fields, config="configs/image_folder.py")
    assert trained.returncode == 0, trained.stderr
    assert workdir.read_data_identity(tmp_path / "run")["value_range"] == [0.0, 4095.0]
    saved = {"config": None, "tiny": False}
    sampled = main(tmp_path / "run", "--mode=sample", "--config.sampling.label=daisy", f"--output={tmp_path / 'out'}", **saved)
    assert sampled.returncode == 0, sampled.stderr
    assert np.load(tmp_path / "out" / "images.npz")["labels"].tolist() == [0] * 5
    wrong = main(tmp_path / "run", "--mode=sample", "--config.sampling.label=dasy", **saved)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: config.sampling.label is 'dasy': did you mean 'daisy'?")
