"""Python programs in processes that have imported JAX and the package already, which saves seconds per program.

A server process imports them once and forks for each program. A program is a real process with its own devices, signals
and exit code. Only its imports are not its own: a test of these needs `subprocess`.
"""

import atexit
import contextlib
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

import jax
from jax._src import compilation_cache, compiler

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
MODULES = [f"ddpm_jax.cli.{file.stem}" for file in sorted((REPOSITORY / "ddpm_jax" / "cli").glob("[a-z]*.py"))]
MODULES += [
    "tests.preloaded",
    "absl.app",
    "absl.logging",
    "ml_collections.config_flags",
    "configs.digits",
    "configs.from_workdir",
    "sklearn.datasets",  # which has the digits: half a second
]

_server = multiprocessing.get_context("forkserver")


class Process:
    """A started program, with the methods of `subprocess.Popen`.

    Args:
      line: command line: `sys.executable`, then a script or `-c` and its text, then its arguments.
      stdout: file to which the output is appended; None discards it.
      stderr: as stdout.
      env: all environment variables; by default those of this process. JAX has read its own already, except
        JAX_COMPILATION_CACHE_DIR, where the program caches all that it compiles.
    """

    def __init__(
        self,
        line: Sequence[str | os.PathLike],
        *,
        stdout: pathlib.Path | None = None,
        stderr: pathlib.Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        interpreter, *arguments = map(str, line)
        if interpreter != sys.executable:
            raise ValueError(f"{interpreter} is not {sys.executable}, which the server runs")
        _server.set_forkserver_preload(MODULES)  # has an effect before the first start only
        files = [str(file or os.devnull) for file in (stdout, stderr)]
        for file in files:
            pathlib.Path(file).touch()
        self._process = _server.Process(target=_run, args=(arguments, files, dict(env or os.environ)), daemon=True)
        with contextlib.chdir(REPOSITORY):  # the server finds the modules in its working directory
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a preloaded program", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(
    line: Sequence[str | os.PathLike], folder: pathlib.Path, *, timeout: float = 280, **options
) -> subprocess.CompletedProcess:
    """Run a program to its end, as `subprocess.run` with captured text; its output is kept in files of `folder`."""
    files = [folder / f"{name}.{len(list(folder.glob('*.std*')))}.std" for name in ("out", "err")]
    process = Process(line, stdout=files[0], stderr=files[1], **options)
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(line, code, *(file.read_text() for file in files))


def _run(arguments: list[str], files: list[str], environment: dict[str, str]) -> None:
    """The program, in the forked process."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY), number)
    multiprocessing.current_process()._config["daemon"] = False  # it may start processes itself
    os.environ.clear()
    os.environ.update(environment)
    if cache := environment.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", cache)
    compiler._cache_write = _write_to_cache
    os.chdir(REPOSITORY)
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, str(REPOSITORY))
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(pathlib.Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    finally:  # the end of an interpreter, which multiprocessing does not run
        threading._shutdown()
        atexit._run_exitfuncs()


def _write_to_cache(key, seconds, name, backend, executable, host_callbacks=()) -> None:
    """As JAX's function, but in all processes of a job: JAX's writes in the first only, while the keys of the others differ.

    JAX 0.12 has no host_callbacks."""
    if not host_callbacks:
        compilation_cache.put_executable_and_time(key, name, executable, backend, int(seconds))
