import json
import os

import pytest

from ddpm_jax.runtime import workdir
from ddpm_jax.runtime.errors import PersonError

CONFIG = {
    "seed": 0,
    "model": {"ch": 128, "ch_mult": (1, 2, 2, 2), "dropout": 0.1},
    "diffusion": {"schedule": "linear", "num_timesteps": 1000},
    "data": {"name": "cifar10", "data_dir": "/data", "image_size": 32},
    "train": {"num_steps": 100},
}


def changed(**sections):
    return {name: {**value, **sections[name]} if name in sections else value for name, value in CONFIG.items()}


def begin(folder, config):
    """A workdir in which training has begun."""
    workdir.checkpoint_folder(workdir.prepare(folder, config)).mkdir()


def test_a_new_folder_gets_the_config_that_can_be_read_again(tmp_path):
    folder = workdir.prepare(tmp_path / "a" / "b", CONFIG)
    assert folder == tmp_path / "a" / "b"
    assert workdir.read_config(folder) == json.loads(json.dumps(CONFIG))
    assert os.listdir(folder) == ["config.json"]


def test_relative_folders_and_home_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir.prepare("runs/../one", CONFIG) == tmp_path / "one"
    assert workdir.prepare("~/one", CONFIG) == tmp_path / "one"
    assert workdir.checkpoint_folder("one") == tmp_path / "one" / "checkpoints"
    assert workdir.sample_folder("one") == tmp_path / "one" / "samples"
    assert workdir.evaluation_folder("one") == tmp_path / "one" / "eval"


def test_the_same_config_is_not_written_again(tmp_path):
    workdir.prepare(tmp_path, CONFIG)
    before = (tmp_path / "config.json").stat().st_mtime_ns
    workdir.prepare(tmp_path, CONFIG)
    assert (tmp_path / "config.json").stat().st_mtime_ns == before


def test_each_differing_field_is_named_with_both_values(tmp_path):
    begin(tmp_path, CONFIG)
    other = changed(model={"ch": 64, "ch_mult": (1, 2)}, diffusion={"schedule": "cosine"}, data={"flip": True})
    with pytest.raises(PersonError) as error:
        workdir.prepare(tmp_path, other)
    line = str(error.value)
    for words in (
        str(tmp_path),
        "model.ch was 128, now 64",
        "model.ch_mult was [1, 2, 2, 2], now [1, 2]",
        'diffusion.schedule was "linear", now "cosine"',
        "data.flip was not there, now true",
        "--workdir",
    ):
        assert words in line
    assert "dropout" not in line
    assert "\n" not in line
    assert workdir.read_config(tmp_path)["model"]["ch"] == 128


def test_until_training_begins_any_field_may_change(tmp_path):
    workdir.prepare(tmp_path, CONFIG)
    other = changed(model={"ch": 64})
    workdir.prepare(tmp_path, other)
    assert workdir.read_config(tmp_path)["model"]["ch"] == 64
    begin(tmp_path, other)
    with pytest.raises(PersonError, match=r"model\.ch was 64, now 128"):
        workdir.prepare(tmp_path, CONFIG)


def test_other_sections_and_the_place_of_the_data_may_change(tmp_path):
    begin(tmp_path, CONFIG)
    workdir.prepare(tmp_path, changed(train={"num_steps": 200}, data={"data_dir": "/elsewhere", "prefetch": 4}))
    config = workdir.read_config(tmp_path)
    assert config["train"]["num_steps"] == 200
    assert config["data"]["data_dir"] == "/elsewhere"
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "config.json"]


def test_a_field_younger_than_the_run_counts_as_its_default(tmp_path):
    begin(tmp_path, CONFIG)
    defaults = {"data": {"image_size": 64, "background": "white"}, "model": {"heads": (1, 2)}}
    newer = changed(data={"background": "white"}, model={"heads": (1, 2)})
    assert workdir.prepare(tmp_path, newer, defaults=defaults) == tmp_path
    begin(tmp_path / "again", CONFIG)
    with pytest.raises(PersonError, match=r'data\.background was "white", now "black"') as error:
        workdir.prepare(tmp_path / "again", changed(data={"background": "black"}), defaults=defaults)
    assert "image_size" not in str(error.value)


def test_what_is_fixed_can_be_chosen(tmp_path):
    begin(tmp_path, CONFIG)
    with pytest.raises(PersonError, match="seed was 0, now 1"):
        workdir.prepare(tmp_path, {**CONFIG, "seed": 1}, fixed=("seed", "model.ch"))
    workdir.prepare(tmp_path, changed(model={"dropout": 0.0}), fixed=("seed", "model.ch"))


def test_a_section_name_that_only_begins_alike_is_not_fixed(tmp_path):
    begin(tmp_path, {"data": {}, "dataset": {"n": 1}})
    workdir.prepare(tmp_path, {"data": {}, "dataset": {"n": 2}})


def test_processes_that_do_not_write_only_check(tmp_path):
    workdir.prepare(tmp_path / "new", CONFIG, is_writer=False)
    assert not (tmp_path / "new").exists()
    begin(tmp_path, CONFIG)
    workdir.prepare(tmp_path, changed(train={"num_steps": 7}), is_writer=False)
    assert workdir.read_config(tmp_path)["train"]["num_steps"] == 100
    with pytest.raises(PersonError, match=r"model\.ch"):
        workdir.prepare(tmp_path, changed(model={"ch": 1}), is_writer=False)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(PersonError, match=r"holds no run.*--workdir"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"model": ', b"[1]", b"\xff\xfe"])
def test_a_broken_config_is_told(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    for use in (lambda: workdir.read_config(tmp_path), lambda: workdir.prepare(tmp_path, CONFIG)):
        with pytest.raises(PersonError, match=r"config\.json is damaged") as error:
            use()
        assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == content


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PersonError, match="cannot make the workdir"):
            workdir.prepare(place, CONFIG)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so the mode of the folder would not do
    with pytest.raises(PersonError, match="cannot write into the workdir"):
        workdir.prepare(tmp_path, CONFIG)


@pytest.mark.parametrize("place", ["gs://bucket/run", ""])
def test_places_that_are_no_folder(place):
    with pytest.raises(PersonError, match="workdir"):
        workdir.prepare(place, CONFIG)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "f"
    workdir.write_atomically(file, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PersonError, match=r"cannot write .*: no space left on device"):
        workdir.write_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]
