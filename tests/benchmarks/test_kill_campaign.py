"""The functions of the kill campaign that read a workdir; tests/cli/test_resume.py tests bit-exact resume after a kill."""

import importlib.util

import numpy as np
import pytest


@pytest.fixture
def campaign(repository):
    spec = importlib.util.spec_from_file_location("kill_campaign", repository / "benchmarks" / "kill_campaign.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_difference_of_one_bit_is_found(campaign):
    expected = {"a": np.float32(1).tobytes(), "b": b"x"}
    assert campaign.differing(expected, dict(expected)) == []
    assert campaign.differing(expected, {"a": np.nextafter(np.float32(1), np.float32(2)).tobytes(), "c": b""}) == [
        "a",
        "b",
        "c",
    ]


def test_a_kill_is_described_by_the_state_of_the_workdir(campaign, tmp_path):
    def left(step, *saved, half=False, bare=False):
        run = tmp_path / f"{step}-{saved}-{half}-{bare}"
        for number in saved:
            folder = run / "checkpoints" / str(number)
            folder.mkdir(parents=True)
            if not (bare and number == saved[-1]):
                (folder / "checksums.json").touch()
        run.mkdir(exist_ok=True)
        if half:
            (run / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
        if step:
            (run / "config.json").touch()
            lines = "".join(f'{{"step": {n}, "train/loss": 1}}\n' for n in range(1, step + 1))
            (run / "metrics.jsonl").write_text(lines + '{"st')
        return campaign.where(run, 0, 30)

    assert left(0) == "before the first step of the start"
    assert left(13, 10) == "between two saves"
    assert left(21, 10, half=True) == "during a save"
    assert left(30, 20, half=True) == "during the last save"
    assert left(21, 10, 20, bare=True) == "after a save, before its checksums"
    assert left(30, 20, 30) == "after the last save, before the exit"
