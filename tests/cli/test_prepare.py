"""The command that prepares a set, and runs that read it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import compute_stats, evaluate, prepare, train
from ddpm_jax.runtime.errors import ConflictError, InvalidDataError
from ddpm_jax.user_messages import UsageError
from tests.cli.conftest import REPOSITORY

NETWORK = "tests.small_network:Small"


@pytest.fixture
def photographs(tmp_path):
    """20 images in the classes a and b."""
    rng = np.random.default_rng(0)
    for index in range(20):
        where = tmp_path / "photos" / "ab"[index % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9 + index, 20, 3), dtype=np.uint8)).save(where / f"{index}.jpg")
    return tmp_path / "photos"


def command(*flags):
    done = subprocess.run(
        [sys.executable, "main.py", *flags], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command(tmp_path, photographs):
    target = tmp_path / "set"
    code, out, err = command("prepare", f"--from={photographs}", f"--to={target}", "--size=8x16", "--crop=adm")
    assert code == 0, err
    assert f"{target}: 20 images of train, 8x16x3, 2 classes" in out
    assert (
        f"--config.data.name=prepared --config.data.data_dir={target} --config.data.image_size='(8,16)' "
        "--config.data.channels=3 --config.data.num_classes=2" in out
    )
    assert "20 / 20 images (100%)" in err
    code, again, err = command("prepare", str(photographs), "--to", str(target), "--size", "8x16", "--crop", "adm")
    assert (code, again) == (0, out), err
    code, out, err = command("--mode=prepare", f"--from={photographs}", f"--to={target}", "--size=16")
    assert code == 1
    assert err.splitlines()[-1] == (
        f"error: {target} contains another prepared set (image_size: [8, 16] there, [16, 16] here; crop: adm there, "
        "center here): choose another --to"
    )
    for flags, error in (
        (("compare", "a", "b", "--size=8"), "--size is for --mode=prepare only: leave it out with --mode=compare"),
        (("prepare", "--from=x", "--size=8"), "--to is missing: give the folder to write, such as --to=sets/photos64"),
    ):
        assert command(*flags) == (2, "", f"error: {error}\n")


@pytest.mark.parametrize(
    ("flags", "error", "match"),
    [
        ({"size": "0"}, UsageError, "--size is '0': give the side of a square"),
        ({"size": "8x"}, UsageError, "--size is '8x'"),
        ({"channels": "2"}, ValueError, "--channels is 2"),
        ({"channels": "x"}, UsageError, "--channels is 'x': it must be an integer above 0"),
        ({"crop": "x"}, ValueError, "--crop is 'x': choose one of center, adm"),
        ({"levels": "5,5"}, UsageError, "--levels is '5,5'"),
        ({"on_decode_error": "x"}, ValueError, "--on_decode_error is 'x': choose one of error, skip"),
        ({"source": "/nonexistent"}, OSError, "there is no folder /nonexistent: check --from"),
    ],
)
def test_invalid_flags(tmp_path, photographs, flags, error, match):
    with pytest.raises(error, match=match):
        prepare.run(**({"source": str(photographs), "target": str(tmp_path / "set"), "size": "8"} | flags))


def test_broken_files(tmp_path, photographs, capsys):
    (photographs / "a" / "0.jpg").write_bytes(b"")
    flags = {"source": str(photographs), "target": str(tmp_path / "set"), "size": "8"}
    with pytest.raises(InvalidDataError, match=r"a/0\.jpg \(empty file\).*--on_decode_error=skip$"):
        prepare.run(**flags)
    assert prepare.run(**flags, on_decode_error="skip") == 0
    out = capsys.readouterr().out
    assert f"1 files cannot be read and were left out: {tmp_path / 'set' / 'broken.txt'}" in out
    assert "19 images of train" in out
    with pytest.raises(ConflictError, match="choose another --to"):
        prepare.run(**flags, channels="1")


def test_training_sampling_and_evaluation_read_the_set(tmp_path, photographs, tiny_config):
    assert prepare.run(str(photographs), str(tmp_path / "set"), "8") == 0

    def config(name, folder, **data):
        made = tiny_config()
        made.data.update(name=name, data_dir=str(folder), split="train[:70%]", image_size=8, channels=3, num_classes=2, **data)
        made.model.class_conditional = True
        made.train.num_steps = 2
        made.evaluation.update(features="pixels", metrics=("frechet",), num_images=8, heldout_split="train[70%:]")
        return made

    losses, scores = [], []
    for name, folder, memory in (("prepared", "set", "never"), ("image_folder", "photos", "auto")):
        workdir = tmp_path / f"{name}-{memory}"
        made = config(name, tmp_path / folder, in_memory=memory)
        assert train.run(made, str(workdir)) == 0
        losses.append([json.loads(line)["train/loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()])
        identity = json.loads((workdir / "data.json").read_text())
        assert identity["name"] == str(tmp_path / folder)
        assert (identity["count"], identity["class_names"], len(identity["fingerprint"])) == (14, ["a", "b"], 64)
        assert compute_stats.run(made, str(workdir)) == 0
        assert evaluate.run(made, str(workdir)) == 0
        (row,) = json.loads((workdir / "eval" / "step_2.json").read_text())["generated"]
        scores.append(row["frechet"])
    assert losses[0] == losses[1]
    assert scores[0] == scores[1]
    wrong = config("prepared", tmp_path / "set")
    wrong.data.image_size = 16
    with pytest.raises(UsageError, match=r"8x8 pixels and 3 channels: set config\.data\.image_size=8 and"):
        train.run(wrong, str(tmp_path / "wrong"))
