"""Training on an image folder, from the config to the image grid, and errors."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import user_messages
from ddpm_jax.cli import train
from ddpm_jax.configs import defaults, image_folder
from ddpm_jax.runtime.errors import ConflictError, FileAccessError, InvalidArgumentError, InvalidDataError
from ddpm_jax.user_messages import UsageError

NETWORK = "tests.small_network:Small"


@pytest.fixture
def own_config(tiny_config):
    """(folder, fields by section) -> a tiny configs/image_folder.py for `folder`."""

    def make(folder, **data):
        config, tiny = image_folder.get_config(), tiny_config()
        for section in ("model", "diffusion", "train", "sampling"):
            config[section].update(tiny[section].to_dict())
        config.data.image_size = 8
        config.data.data_dir = str(folder)
        config.data.update(data)
        return config

    return make


@pytest.fixture
def folder(tmp_path):
    """Ten images of various formats in two classes."""
    rng = np.random.default_rng(0)
    for index in range(10):
        kind, shape = ("png", "jpg", "webp")[index % 3], (8 + 3 * index, 30 - 2 * index, 3)
        where = tmp_path / "mine" / ("cats", "dogs")[index % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(where / f"{index}.{kind}")
    return tmp_path / "mine"


def test_training_and_the_image_grid(tmp_path, folder, own_config, metrics, capfd):
    losses = []
    for in_memory, num_workers in (("always", 0), ("never", 1)):
        run = tmp_path / in_memory
        config = own_config(folder, in_memory=in_memory, num_workers=num_workers)
        config.train.sample_every = 6
        assert train.run(config, str(run)) == 0
        losses.append([row["train/loss"] for row in metrics(run)])
        with Image.open(run / "samples" / "step_00000006.png") as picture:
            assert picture.mode == "RGB"
            assert min(picture.size) >= 2 * 64
        printed = capfd.readouterr().err
        assert f"{folder}: 10 images in 2 classes: 0 cats (5), 1 dogs (5)" in printed
        assert f"10 images of {folder}" in printed
    assert losses[0] == losses[1]  # neither memory nor processes change the images
    assert len(losses[0]) == 3
    # The untrained network predicts zero for noise of variance 1; the mean over 2 x 8 images of 192 pixels is within 0.3.
    assert losses[0][0] == pytest.approx(1, abs=0.3)


def test_class_conditional_training(tmp_path, folder, own_config):
    config = own_config(folder, num_classes=2)
    config.model.class_conditional = True
    config.train.num_steps = 2
    assert train.run(config, str(tmp_path / "run")) == 0
    config = own_config(folder, num_classes=3)
    config.model.class_conditional = True
    with pytest.raises(
        UsageError, match=r"config\.data\.num_classes is 3, but .* has 2 classes: set --config\.data\.num_classes=2$"
    ):
        train.run(config, str(tmp_path / "other"))


def test_a_broken_image_is_an_error_or_is_skipped(tmp_path, folder, own_config, capfd):
    (folder / "cats" / "0.png").write_bytes((folder / "cats" / "0.png").read_bytes()[:-200])
    with pytest.raises(InvalidDataError, match=r"1 of 10 images in .*: cats/0\.png \(image file is truncated"):
        train.run(own_config(folder), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()  # an error before anything is computed
    config = own_config(folder, on_decode_error="skip")
    config.train.num_steps = 2
    assert train.run(config, str(tmp_path / "other")) == 0
    printed = capfd.readouterr().err
    assert f"{folder}: skipped 1 broken of 10 images: cats/0.png (image file is truncated" in printed
    assert "9 images in 2 classes" in printed


def test_on_resume_the_images_are_fixed_but_not_how_they_are_read(tmp_path, folder, own_config, capfd):
    assert train.run(own_config(folder), str(tmp_path / "run")) == 0
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(ConflictError, match=r'data\.background was "white", now "black"'):
        train.run(own_config(moved, background="black"), str(tmp_path / "run"))
    (moved / "cats" / "0.png").write_bytes(b"")
    with pytest.raises(InvalidDataError, match=r"train without them: `on_decode_error='skip'`$"):
        train.run(own_config(moved, in_memory="never"), str(tmp_path / "run"))
    capfd.readouterr()
    config = own_config(moved, in_memory="never", on_decode_error="skip")  # follow the advice
    assert train.run(config, str(tmp_path / "run")) == 0
    assert (
        "10 images before, 9 now, so their order in training changes too; training continues with these"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("where", "data", "kind", "printed"),
    [
        ("mine/none", {}, FileAccessError, "there is no folder"),
        ("", {}, InvalidArgumentError, "name the folder of your images with --config.data.data_dir=PATH"),
        ("empty", {}, InvalidDataError, "no images in"),
        ("mine", {"split": "test"}, InvalidArgumentError, "no split 'test'"),
        ("mine", {"background": "wite"}, InvalidArgumentError, "config.data.background is 'wite'"),
        (
            "mine",
            {"on_decode_error": "ignore"},
            UsageError,
            "config.data.on_decode_error is 'ignore': choose one of error, skip",
        ),
    ],
)
def test_errors_of_folders_are_one_line(tmp_path, folder, own_config, where, data, kind, printed):
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind) as caught:
        train.run(own_config(tmp_path / where if where else "", **data), str(tmp_path / "run"))
    assert printed in user_messages.name_fields(str(caught.value), defaults.get_config().to_dict())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_misspelled_folder_on_the_command_line(tmp_path, main):
    wrong = tmp_path / "mein"
    result = main(tmp_path / "run", f"--config.data.data_dir={wrong}", config="configs/image_folder.py")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"error: there is no folder {wrong}: check config.data.data_dir"
    assert "Traceback" not in result.stderr
