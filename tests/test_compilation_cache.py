"""The folder of compiled programs: which one, what a folder that cannot be used does, and that the hosts of a job share it."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from ddpm_jax import compilation_cache
from ddpm_jax.runtime.errors import InvalidArgumentError


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """JAX's settings are restored, and the environment names no folder."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_follows_from_flag_environment_and_job(monkeypatch, tmp_path):
    folder_of, local = compilation_cache.folder_of, compilation_cache.LOCAL
    monkeypatch.chdir(tmp_path)
    in_workdir = str(tmp_path / "run" / "compilation_cache")
    assert folder_of(None, "run") == local
    assert folder_of(None, "run", several_processes=True) == in_workdir
    assert folder_of(None, "", several_processes=True) == local
    assert folder_of("workdir", "run") == in_workdir
    assert folder_of("workdir", "gs://bucket/run") == "gs://bucket/run/compilation_cache"
    assert folder_of("gs://bucket/xla", None) == "gs://bucket/xla"
    assert folder_of("./workdir", "run") == str(tmp_path / "workdir")
    assert folder_of("~/x", None) == os.path.expanduser("~/x")
    assert folder_of("", "run", several_processes=True) == ""
    with pytest.raises(InvalidArgumentError, match="needs a `workdir`: give one, or a folder for the cache"):
        folder_of("workdir", None)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "set"))
    for several in (False, True):
        assert folder_of(None, "run", several_processes=several) == str(tmp_path / "set")
    assert folder_of("", "run") == ""
    assert folder_of("mine", "run") == str(tmp_path / "mine")


def used():
    return jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs


def test_a_folder_is_created_except_in_the_workdir(monkeypatch, tmp_path):
    for name in ("new", "run/compilation_cache"):
        compilation_cache.enable(str(tmp_path / name))
        assert used() == (str(tmp_path / name), compilation_cache.MIN_COMPILE_S)
    assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "run").exists()
    compilation_cache.enable("")
    assert used()[0] is None
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
    compilation_cache.enable(str(tmp_path / "new"))
    assert used() == (str(tmp_path / "new"), 3)


def test_a_folder_that_cannot_be_used_is_a_warning(monkeypatch, tmp_path, log_lines):
    (tmp_path / "file").write_text("")
    compilation_cache.enable(str(tmp_path / "file"))
    assert used()[0] is None
    (line,) = log_lines
    assert line.startswith(f"compiled programs are not kept: cannot write {tmp_path / 'file'}: ")
    assert line.endswith("; choose another `compilation_cache`")
    log_lines.clear()

    def read_only(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(compilation_cache.storage, "check_writable", read_only)
    compilation_cache.enable(str(tmp_path))
    assert used() == (str(tmp_path), compilation_cache.NEVER_S)
    (line,) = log_lines
    assert line.startswith("new compiled programs are not kept, but those there are used: cannot write")


@pytest.mark.parametrize("file", ["run/compilation_cache", "run"])
def test_a_file_instead_of_the_folder_in_the_workdir_is_one_warning(tmp_path, log_lines, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    folder = tmp_path / "run" / "compilation_cache"
    compilation_cache.enable(str(folder))
    assert used()[0] is None
    (line,) = log_lines
    assert line.startswith(f"compiled programs are not kept: cannot write {folder}: not a directory; choose another")


def test_a_workdir_that_cannot_be_written_is_one_warning(monkeypatch, tmp_path, log_lines):
    """Its folder is not there, so that the nearest one that is there is tried."""
    tried = []

    def read_only(folder):
        tried.append(folder)
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(compilation_cache.storage, "check_writable", read_only)
    compilation_cache.enable(str(tmp_path / "run" / "compilation_cache"))
    assert (tried, used()[0]) == ([tmp_path], None)
    (line,) = log_lines
    assert "permission denied; choose another `compilation_cache`" in line


# JAX's log has each program that it reads from the cache. On CPUs the key of a program has the process; on GPUs and TPUs it
# has the devices of the whole job, which are the same for all processes. So here it gets their kinds only.
PROGRAM = """
import logging, sys
import jax._src.cache_key as cache_key
cache_key._hash_accelerator_config = cache_key._hash_devices
log = logging.getLogger("jax._src.compiler")
log.setLevel(logging.DEBUG)
log.addHandler(logging.StreamHandler(sys.stdout))
from ddpm_jax.cli import main
main.run()
"""


def run_job(line, repository, environment, processes):
    """The output of each process of a job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(processes):
        joined = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={index}"]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *line, *(joined if processes > 1 else [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                cwd=repository,
            )
        )
    try:
        printed = [process.communicate(timeout=280)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, printed
    return printed


@pytest.fixture
def line():
    """(workdir) -> the flags of a training of 2 steps of a tiny network, whose programs are all kept."""
    fields = {
        "model.unet.ch": 8,
        "model.unet.ch_mult": (1,),
        "model.unet.attn_resolutions": (),
        "train.batch_size": 8,
        "train.sample_every": 0,
        "train.trackers": (),
    }
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    return lambda workdir, steps: ["--config=digits", f"--workdir={workdir}", f"--config.train.num_steps={steps}", *flags]


@pytest.fixture
def environment(compiled_fast):
    return os.environ | {
        "XLA_FLAGS": compiled_fast,
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def was_read(printed, program):
    return f"Persistent compilation cache hit for '{program}'" in printed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_hosts_of_a_job_share_the_cache_of_the_workdir(line, environment, repository, tmp_path):
    """Process 0 writes the training step; at the next start both processes read it."""
    folder = tmp_path / "run"
    first = run_job(line(folder, 2), repository, environment, 2)
    kept = [file.name for file in (folder / "compilation_cache").glob("jit_step-*")]
    assert len(kept) == 1
    second = run_job(line(folder, 4), repository, environment, 2)
    for index in range(2):
        assert not was_read(first[index], "jit_step")
        assert was_read(second[index], "jit_step"), second[index]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_cache_may_be_in_a_bucket(line, environment, repository, emulator, bucket):
    first, second = (
        run_job([*line(bucket, steps), "--compilation_cache=workdir"], repository, os.environ | environment, 1)[0]
        for steps in (2, 4)
    )
    from ddpm_jax.runtime import storage

    assert [file.name for file in storage.path(f"{bucket}/compilation_cache").glob("jit_step-*")]
    assert not was_read(first, "jit_step")
    assert was_read(second, "jit_step"), second
    assert not pathlib.Path(repository / "gs:").exists()
