"""The command line, in subprocesses."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

import ddpm_jax
from ddpm_jax.cli.modes import MODES
from tests import preloaded

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, main):
    """Workdir of a run started from the command line."""
    run = tmp_path_factory.mktemp("trained") / "run"
    result = main(run)
    assert result.returncode == 0, result.stderr
    return run


def test_train_then_sample_without_config(trained, tmp_path, main, monkeypatch):
    """With ~ in flags, which the shell does not expand."""
    assert json.loads((trained / "config.json").read_text())["model"]["unet"]["ch"] == 8
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(trained)
    (tmp_path / "cache").symlink_to(REPOSITORY / ".cache" / "xla")
    flags = ["--mode=sample", "--output=~/out", "--compilation_cache=~/cache", "--config.sampling.num_images=3"]
    result = main("~/run", *flags, config=None, tiny=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "grid.png").exists()
    assert str(tmp_path / "out") in result.stdout
    assert not (REPOSITORY / "~").exists()
    from ddpm_jax.cli import main as program

    assert program._with_home("--config=~/mine.py:x") == f"--config={tmp_path}/mine.py:x"
    assert program._with_home("--config.data.data_dir=~/x") == "--config.data.data_dir=~/x"  # expanded where it is read
    assert "Traceback" not in result.stderr


def test_a_run_of_another_version_is_refused(trained, tmp_path, main):
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config["data"]["background"]
    (run / "config.json").write_text(json.dumps(config))
    result = main(run, config=None, tiny=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "config.json was written by another version of this program: it lacks data.background" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x"], "--config is missing, and x contains no run"),
        (["plan", "cpu"], "--config is missing: give"),
        (["--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
        (["--config=configs/digits.py", "--workdir=x", "--config.train.num_stepz=1"], "'num_stepz': did you mean 'num_steps'?"),
        (
            ["--config=configs/digits.py", "--workdir=x", "--config.train.num_steps=many"],
            "num_steps=many: 'many' is not an integer",
        ),
        (["--config=configs/digits.py", "--workdir=x", "--mode=fly"], "mode"),
        (["--config=configs/digits.py", "--workdir=x", "--wordir=y"], "wordir"),
        (["--config=configs/digits.py", "--workdir=x", "train"], "unexpected argument 'train'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else "",
)
def test_usage_errors_are_one_line_with_exit_code_2(flags, message, monkeypatch, repository):
    result = subprocess.run([sys.executable, "main.py", *flags], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")


def test_missing_packages_are_a_one_line_error_with_advice(repository):
    command = [sys.executable, "-S", "main.py", "--help"]  # -S: without site-packages
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {sys.executable} does not have the package absl: run `source .venv/bin/activate`")
    assert result.stderr.count("\n") == 1


def seconds_of(code, repository):
    """CPU time of the shortest of three runs, and the output. On a busy machine the wall time is that of other programs."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds), result.stdout


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_fast_and_explains_every_mode(flag, repository):
    code = (
        f"import sys; sys.argv = ['ddpm-jax', {flag!r}]\nfrom ddpm_jax.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as error:\n    assert error.code == 0\n"
        "print('IMPORTED', {'jax', 'numpy', 'tensorflow'} & set(sys.modules))"
    )
    seconds, text = seconds_of(code, repository)
    assert seconds < 1
    assert text.endswith("IMPORTED set()\n")
    lines = text.splitlines()
    assert "  ddpm-jax --config=digits --workdir=runs/digits" in lines
    for mode in MODES:
        (line,) = [line for line in lines if line.startswith(f"  {mode} ")]
        assert len(line.split(maxsplit=1)[1]) > 10
    for flag in ("config", "workdir", "mode", "output", "version"):
        assert any(line.startswith(f"  --{flag} ") for line in lines)
    assert max(map(len, lines)) <= 128


def test_importing_the_package_is_fast(repository):
    seconds, text = seconds_of("import sys, ddpm_jax; print('jax' in sys.modules)", repository)
    assert seconds < 0.5
    assert text == "False\n"


@pytest.mark.parametrize("start", [["main.py"], ["-m", "ddpm_jax"]], ids=" ".join)
def test_the_clone_and_the_package_are_one_program(start, repository):
    def output(*flags):
        command = [sys.executable, *start, *flags]
        result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout, result.stderr

    assert output("--version") == (0, f"ddpm_jax {ddpm_jax.__version__}\n", "")
    code, text, _ = output("--help")
    assert code == 0
    assert f"{' '.join(start)} --config=digits --workdir=runs/digits" in text
    assert output("--config=digit", "--workdir=x") == (
        2,
        "",
        "error: --config=digit: no such config; did you mean --config=digits?\n",
    )


@pytest.mark.slow
def test_training_without_tensorflow(tmp_path, command, repository):
    """One log line reports that TensorBoard is off; the digits need no tensorflow."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    for name in ("tensorflow", "tensorboard"):
        (blocker / f"{name}.py").write_text("raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n")
    line = command(tmp_path / "run", fields={"train.trackers": "('tensorboard',)"})
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(blocker)!r}); sys.argv = {line[1:]!r}; "
        "runpy.run_path('main.py', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert sum("the tracker tensorboard is off" in row for row in result.stderr.splitlines()) == 1
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("environment", "seconds"), [({"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}, "0.0"), ({}, "0.5")]
)
def test_what_is_cached_follows_the_environment(environment, seconds, tmp_path, command):
    """JAX's variable replaces the program's half second. The batch size is wrong, so that nothing is trained."""
    line = command(tmp_path / "run", fields={"train.batch_size": 0})
    code = (
        f"import sys, runpy, jax; sys.argv = {line[1:]!r}\ntry:\n    runpy.run_path('main.py', run_name='__main__')\n"
        "except SystemExit:\n    print(jax.config.jax_persistent_cache_min_compile_time_secs)"
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_PERSISTENT_CACHE")}
    result = preloaded.run([sys.executable, "-c", code], tmp_path, env=others | environment)
    assert "config.train.batch_size" in result.stderr
    assert result.stdout == f"{seconds}\n"


def test_compare_needs_no_jax_and_no_config(trained, tmp_path, repository):
    other = shutil.copytree(trained, tmp_path / "other, of seed 7")
    config = json.loads((trained / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 7}))
    code = (
        "import sys\nfrom ddpm_jax.cli.main import run\ntry:\n    run()\nexcept SystemExit as error:\n    code = error.code\n"
        "print('JAX', 'jax' in sys.modules)\nsys.exit(code)"
    )

    def compare(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=repository, capture_output=True, text=True, check=False
        )

    for arguments in (
        ["compare", str(trained), str(other), f"--output={tmp_path / 'short'}"],
        ["compare", "--output", str(tmp_path / "spaced"), str(trained), str(other)],
        ["--mode=compare", f'--runs={trained},"{other}"', f"--output={tmp_path / 'long'}"],
    ):
        result = compare(*arguments)
        assert result.returncode == 0, result.stderr
        assert "| seed | 0 | 7 |" in result.stdout
        assert result.stdout.endswith("JAX False\n")
    for folder in ("short", "spaced", "long"):
        assert {file.name for file in (tmp_path / folder).iterdir()} == {"table.md", "curves.png"}
    result = compare("compare", str(trained))
    assert result.returncode == 2
    assert "error: compare needs the workdirs of two or more different runs, such as compare runs/a runs/b" in result.stderr
    assert "--mode=compare has no --workdir" in compare("compare", str(trained), str(other), "--workdir=x").stderr
    assert "--runs is for --mode=compare only" in compare("--runs=a,b", "--workdir=x").stderr


def test_ctrl_c_is_one_line(repository):
    program = "import os, signal; from ddpm_jax.cli import compare, main\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
    program += "compare.run = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\nmain.run()"
    line = [sys.executable, "-c", program, "compare", "runs/a", "runs/b"]
    done = subprocess.run(line, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() == "stopped by Ctrl-C"
