"""Pictures of README and docs: each is shown, made by one target of `make figures`, small, and of that target's command."""

import argparse
import importlib.util
import json
import pathlib
import re
import shlex
import subprocess

import numpy as np
import pytest
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
IMAGES = REPOSITORY / "docs" / "images"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
UNRECORDED = {"lengths", "samplers"}  # made before pictures held their command: remove a name once `make figures` has made it


@pytest.fixture
def figures():
    spec = importlib.util.spec_from_file_location("make_figures", REPOSITORY / "docs" / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def referred_to():
    found = set()
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            found.add((page.parent / target).resolve())
    return found


def test_pictures_that_pages_show_are_those_that_are_made(figures):
    """No picture without a target, none that no page shows, and no target without a picture."""
    shown = {path.name for path in referred_to() if path.parent == IMAGES}
    assert shown == {f"{name}.png" for name in figures.FIGURES} == {path.name for path in IMAGES.iterdir()}
    assert len(shown) == len(referred_to())


def test_pictures_are_small(figures):
    for path in IMAGES.iterdir():
        assert path.stat().st_size <= figures.LARGE, path.name


def test_pictures_hold_the_command_of_their_target(figures):
    """Of a target whose command has changed since, the picture is stale: run `make figures`. Slow ones may be older."""
    for name, figure in figures.FIGURES.items():
        with Image.open(IMAGES / f"{name}.png") as image:
            if not (figure.slow or (name in UNRECORDED and "Command" not in image.info)):
                assert image.info.get("Command") == figures.recipe(name), name


def test_each_command_names_fields_and_modes_that_exist(figures):
    import main as program
    from configs import defaults

    config = defaults.get_config()
    commands = [figures.recipe(name) for name in figures.FIGURES]
    for command in " && ".join(commands).split(" && "):
        python, script, *rest = shlex.split(command)
        assert python == "python"
        assert (REPOSITORY / script).is_file()
        for part in rest:
            flag, _, value = part.partition("=")
            if flag == "--config":
                assert (REPOSITORY / value).is_file()
            elif flag.startswith("--config."):
                _, section, field = flag.split(".")
                assert field in config[section], flag
            elif flag == "--mode":
                assert value in program.MODES


@pytest.fixture
def small(figures, tmp_path, monkeypatch):
    """make_figures with one target, `chain`, of a program that counts its calls and paints; its options."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "IMAGES", tmp_path / "docs" / "images")
    (tmp_path / "benchmarks").mkdir()
    for file in ("main.py", "benchmarks/mixture.py"):
        (tmp_path / file).write_text("")
    calls = []

    def run(line, cwd, check):
        calls.append(line)
        values = dict(part.partition("=")[::2] for part in line[1:] if "=" in part)
        (tmp_path / values["--workdir"]).mkdir(parents=True, exist_ok=True)
        output = values.get("--output")
        if output:
            (tmp_path / output).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / output / "chain.png")
            Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / output / "reverse.png")
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(figures.subprocess, "run", run)
    return figures, calls, argparse.Namespace(force=False, data_dir="", flowers_dir=None)


def test_a_picture_is_made_once_and_again_when_the_program_changes(small, tmp_path):
    figures, calls, options = small
    figures.make("chain", options)
    assert len(calls) == 2  # trains, then illustrates
    assert figures.is_current("chain")
    assert not figures.is_current("reverse")
    figures.make("reverse", options)  # the same command made it
    assert len(calls) == 2
    assert figures.is_current("reverse")
    with Image.open(tmp_path / "docs" / "images" / "reverse.png") as image:
        assert image.mode == "L"
        assert (np.asarray(image) == 9).all()
        assert image.info["Command"] == figures.recipe("reverse")

    (tmp_path / "runs" / "figures" / "digits" / "old").touch()
    (tmp_path / "main.py").write_text("changed")
    assert not figures.is_current("chain")
    figures.make("chain", options)
    assert len(calls) == 4
    assert not (tmp_path / "runs" / "figures" / "digits" / "old").exists()  # it was of the program before


def test_a_training_that_was_stopped_resumes(small, tmp_path):
    figures, calls, options = small
    figures.make("chain", options)
    stamp = tmp_path / "runs" / "figures" / "digits.json"
    checkpoint = tmp_path / "runs" / "figures" / "digits" / "checkpoint"
    checkpoint.touch()
    stamp.write_text(json.dumps({key: value for key, value in json.loads(stamp.read_text()).items() if key != "finished"}))
    figures.train("digits", options)
    assert len(calls) == 3
    assert checkpoint.exists()
    figures.train("digits", options)
    assert len(calls) == 3
    checkpoint.unlink()
    checkpoint.parent.rmdir()  # as a user may
    figures.train("digits", options)
    assert len(calls) == 4


def test_folders_of_data_are_filled_in_and_kept_out_of_the_record(small, tmp_path):
    figures, calls, options = small
    options.data_dir = str(tmp_path / "tfds")
    figures.call(figures.FIGURES["forward"].command, options)
    assert f"--config.data.data_dir={tmp_path / 'tfds'}" in calls[-1]
    assert str(tmp_path) not in figures.recipe("forward")
    options.data_dir = ""
    figures.call(figures.FIGURES["forward"].command, options)
    assert "--config.data.data_dir=" in calls[-1]
    with pytest.raises(FileNotFoundError, match="--flowers_dir=DIR"):
        figures.train("flowers", options)


def test_pictures_keep_every_color(figures, tmp_path):
    """Gray becomes one channel, few colors a palette, and no pixel changes."""
    generator = np.random.default_rng(0)
    for colors, mode in ((None, "L"), (20, "P"), (5000, "RGB")):
        palette = generator.integers(0, 256, (colors or 256, 3 if colors else 1), dtype=np.uint8)
        pixels = np.broadcast_to(palette[generator.integers(0, len(palette), (64, 64))], (64, 64, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "from.png")
        figures.save(tmp_path / "from.png", tmp_path / "to.png", {"command": "python main.py", "sources": "0"})
        with Image.open(tmp_path / "to.png") as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)


def test_the_flowers_are_trained_by_the_command_of_the_readme(figures):
    """The same flags but for the folders: a reader who runs it gets the picture that is above it."""
    text = (REPOSITORY / "README.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^python main.py .*--workdir=runs/flowers .*$", text, re.MULTILINE)
    ours = figures.training_command("flowers").replace(figures.PHOTOS, "PATH").replace(f"{figures.RUNS}/", "runs/")
    assert set(shlex.split(command)) == set(shlex.split(ours))
