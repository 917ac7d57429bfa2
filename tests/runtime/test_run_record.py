"""The record of a run on disk, for starts that succeed, fail and are killed."""

import json
import os

import pytest

from ddpm_jax.runtime import run_record, workdir
from ddpm_jax.runtime.errors import ConflictError, InvalidDataError

CONFIG = {
    "seed": 0,
    "model": {"unet": {"ch": 128, "ch_mult": (1, 2, 2, 2), "dropout": 0.1}},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"batch_size": 8},
}
AS_READ = json.loads(json.dumps(CONFIG))


def with_rate(rate):
    return CONFIG | {"optimizer": {"learning_rate": rate}}


def rate_at(folder, step):
    return run_record.config_at(folder, step)["optimizer"]["learning_rate"]


def save(folder, *steps):
    """Creates empty checkpoint folders."""
    for step in steps:
        (workdir.checkpoint_folder(folder) / str(step)).mkdir(parents=True)


def test_a_start_writes_its_config_and_a_line(tmp_path):
    run_record.record_start(tmp_path, CONFIG, 0, date="today", changed={})
    assert workdir.read_config(tmp_path) == AS_READ
    (entry,) = run_record.read_history(tmp_path)
    assert entry == {"step": 0, "date": "today", "changed": {}, "config": AS_READ}
    assert sorted(os.listdir(tmp_path)) == ["config.json", "history.jsonl"]


def test_checks_write_nothing(tmp_path):
    run_record.check_config(tmp_path, CONFIG, resume=True)
    run_record.check_config(tmp_path, CONFIG, resume=False)
    assert run_record.report_config(tmp_path, CONFIG, None) == AS_READ
    assert os.listdir(tmp_path) == []


def test_until_a_checkpoint_is_saved_any_field_may_change(tmp_path):
    run_record.record_start(tmp_path, CONFIG, 0)
    workdir.checkpoint_folder(tmp_path).mkdir()  # killed before the first save
    other = CONFIG | {"seed": 3, "model": {"unet": CONFIG["model"]["unet"] | {"ch": 64}}}
    run_record.check_config(tmp_path, other, resume=True)
    assert run_record.resume_changes(tmp_path, other, 0) == {}
    run_record.record_start(tmp_path, other, 0)
    save(tmp_path, 10)
    assert run_record.config_at(tmp_path, 10)["seed"] == 3
    with pytest.raises(ConflictError, match=r"model\.unet\.ch was 64, now 128.*seed was 3, now 0"):
        run_record.check_config(tmp_path, CONFIG, resume=True)


def test_unsaved_steps_are_ignored(tmp_path):
    """A start from step 10 with another rate is killed before it saves: the checkpoint still has the first rate."""
    run_record.record_start(tmp_path, with_rate(1.0), 0)
    save(tmp_path, 5, 10)
    run_record.record_start(tmp_path, with_rate(2.0), 10)
    assert rate_at(tmp_path, 10) == 1.0
    assert rate_at(tmp_path, None) == 1.0
    # `--workdir` alone uses the config of the killed start, which is still a change.
    assert workdir.read_config(tmp_path)["optimizer"]["learning_rate"] == 2.0
    assert run_record.resume_changes(tmp_path, with_rate(2.0), 10) == {"optimizer.learning_rate": [1.0, 2.0]}
    assert run_record.resume_changes(tmp_path, with_rate(1.0), 10) == {}
    run_record.record_start(tmp_path, with_rate(3.0), 10)
    save(tmp_path, 20)
    run_record.record_start(tmp_path, with_rate(4.0), 20)
    save(tmp_path, 30)
    assert [rate_at(tmp_path, step) for step in (5, 10, 20, 30)] == [1.0, 1.0, 3.0, 4.0]


def test_a_resume_from_an_older_checkpoint_repeats_the_later_steps(tmp_path):
    run_record.record_start(tmp_path, with_rate(1.0), 0)
    run_record.record_start(tmp_path, with_rate(2.0), 20)  # then 30 and 20 turn out to be damaged
    run_record.record_start(tmp_path, with_rate(3.0), 10)
    assert [rate_at(tmp_path, step) for step in (10, 20, 30)] == [1.0, 3.0, 3.0]


def test_after_a_kill_between_the_two_files_the_history_is_correct(tmp_path, monkeypatch):
    run_record.record_start(tmp_path, with_rate(1.0), 0)
    save(tmp_path, 10)
    original = run_record.write_atomically

    def killed(file, text):
        if file.name == run_record.HISTORY:
            raise KeyboardInterrupt
        original(file, text)

    monkeypatch.setattr(run_record, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        run_record.record_start(tmp_path, with_rate(2.0), 10)
    assert rate_at(tmp_path, 10) == 1.0
    assert len(run_record.read_history(tmp_path)) == 1


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_of_another_version_is_refused(tmp_path, resume):
    """Its config has other fields. Sections of free options may differ."""
    run_record.record_start(tmp_path, CONFIG | {"data": {"options": {"a": 1}}}, 0)
    save(tmp_path, 10)
    now = CONFIG | {"optimizer": {"rate": 1e-3}, "data": {"options": {}}}
    found = r"by another version of this program: it lacks optimizer\.rate; optimizer\.learning_rate is unknown\."
    with pytest.raises(ConflictError, match=found):
        run_record.check_config(tmp_path, now, resume=resume)
    with pytest.raises(ConflictError, match=r"data\.options\.a was 1, now null"):
        run_record.check_config(tmp_path, CONFIG | {"data": {"options": {}}}, resume=resume)


def test_a_field_that_an_older_version_did_not_record_is_no_change(tmp_path):
    run_record.record_start(tmp_path, with_rate(1.0), 0)
    save(tmp_path, 10)
    now = with_rate(2.0) | {"sampling": {"num_steps": 3}}
    run_record.check_config(tmp_path, now, resume=True)
    assert run_record.resume_changes(tmp_path, now, 10) == {"optimizer.learning_rate": [1.0, 2.0]}
    assert run_record.report_config(tmp_path, now, 10) == json.loads(json.dumps(with_rate(1.0))) | {
        "sampling": {"num_steps": 3}
    }


def test_a_report_has_the_training_config_of_the_checkpoint(tmp_path):
    run_record.record_start(tmp_path, with_rate(1.0), 0)
    save(tmp_path, 10)
    run_record.record_start(tmp_path, with_rate(2.0), 10)
    save(tmp_path, 20)
    called = with_rate(9.0) | {"sampling": {"num_steps": 3}}
    for step, rate in ((10, 1.0), (20, 2.0)):
        report = run_record.report_config(tmp_path, called, step)
        assert report["optimizer"]["learning_rate"] == rate
        assert report["sampling"]["num_steps"] == 3


def test_changed_versions_are_found(tmp_path):
    run_record.record_start(tmp_path, CONFIG, 0, versions={"jax": "1", "numpy": "2"})
    assert run_record.version_changes(tmp_path, {"jax": "3", "numpy": "2", "new": "1"}, 10) == {"jax": ["1", "3"]}
    assert run_record.version_changes(tmp_path, {"jax": "3"}, 0) == {}


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 1}', '{"step": "x", "config": {}}'])
def test_a_damaged_history_is_named(tmp_path, line):
    run_record.record_start(tmp_path, CONFIG, 0)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InvalidDataError, match=r"line 2 of .*history\.jsonl is damaged; remove that line"):
        run_record.read_history(tmp_path)


def test_a_start_keeps_the_earlier_lines(tmp_path):
    run_record.record_start(tmp_path, CONFIG, 0, date="2026-01-01", command=["main.py"])
    before = (tmp_path / run_record.HISTORY).read_text()
    save(tmp_path, 10)
    run_record.record_start(tmp_path, with_rate(1e-4), 10, date="2026-01-02", command=["main.py"])
    assert (tmp_path / run_record.HISTORY).read_text().startswith(before)
