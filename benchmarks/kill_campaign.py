"""Kills a training run at random times, resumes it, and compares the final state with that of an uninterrupted run.

    python benchmarks/kill_campaign.py --kills=50
    python benchmarks/kill_campaign.py --kills=50 --kills_per_run=3 --warm

Each run is a small network on scikit-learn's digits, 200 steps, a checkpoint every 10. A kill is SIGKILL at a random time:
during the start, between two steps, while a checkpoint is written, between its naming and its checksums, and around the last
save. After `kills_per_run` kills the run is resumed to its end, and every array of its state (parameters, EMA, optimizer) is
compared bit for bit. The exit code is 1 if one differs.

--warm forks each run from a process that has imported the program: several times faster, but without kills during imports.
"""

import argparse
import collections
import importlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

KINDS = ("start", "step", "save", "checksums", "last save")
CONFIG = (
    "model.unet.ch=8",
    "model.unet.ch_mult=(1,)",
    "model.unet.attn_resolutions=()",
    "model.unet.dropout=0.1",
    "diffusion.timestep_sampler=low_discrepancy",
    "ema.extra_decays=(0.99,)",
    "train.batch_size=8",
    "train.log_every=1",
    "train.checkpoint_every=10",
    "train.max_to_keep=2",
    "train.keep_period=50",
    "train.sample_every=0",
    "train.trackers=()",
)
TIMEOUT_S = 600.0


def in_child(work: Callable[[], int], log: pathlib.Path) -> int:
    """Forks a process that runs `work` and exits with its result; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = work()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Run:
    """A training run in a separate process."""

    def __init__(self, workdir: pathlib.Path, options: argparse.Namespace):
        self._log = workdir.with_name(f"{workdir.name}.log")
        cache = REPOSITORY / ".cache" / "xla"
        fields = [f"--config.{field}" for field in (*CONFIG, f"train.num_steps={options.steps}")]
        line = ["main.py", f"--config={REPOSITORY / 'configs' / 'digits.py'}", f"--workdir={workdir}"]
        line += [f"--compilation_cache={cache}", *fields]
        self.began = time.monotonic()
        self.code: int | None = None
        if options.warm:
            self._pid = in_child(lambda: train_here(line), self._log)
        else:
            with self._log.open("a") as log:
                self._pid = subprocess.Popen([sys.executable, *line], cwd=REPOSITORY, stdout=log, stderr=log).pid

    def ended(self) -> bool:
        """Whether the process has ended; then `code` is its exit code."""
        if self.code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def kill(self) -> None:
        """Sends SIGKILL and waits for the process to end."""
        os.kill(self._pid, signal.SIGKILL)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def wait(self) -> None:
        """Waits until the process ends; raises SystemExit on an error."""
        while not self.ended():
            if time.monotonic() - self.began > TIMEOUT_S:
                self.kill()
            time.sleep(0.02)
        if self.code:
            raise SystemExit(f"a run ended with {self.code}: {self._log.read_text()[-2000:]}")


def train_here(line: list[str]) -> int:
    """Runs the program in this process."""
    program = importlib.import_module("ddpm_jax.cli.main")
    sys.argv = line
    program.main(program.parse_flags(line))
    return 0


def logged_step(workdir: pathlib.Path) -> int:
    """The last completely logged step in metrics.jsonl, 0 before the first."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    return int(lines[-1].split(b'"step": ')[1].split(b",")[0]) if lines else 0


def checkpoints(workdir: pathlib.Path) -> tuple[list[int], bool, bool]:
    """Saved steps; whether a save is unfinished; whether the newest has no checksums."""
    try:
        names = os.listdir(workdir / "checkpoints")
    except OSError:
        return [], False, False
    steps = sorted(int(name) for name in names if name.isdigit())
    bare = bool(steps) and not (workdir / "checkpoints" / str(steps[-1]) / "checksums.json").exists()
    return steps, any("tmp" in name for name in names), bare


def instant(kind: str, random: np.random.Generator, first_step_s: float, done: int, steps: int):
    """When to kill a run that has `done` of `steps` steps: (condition of workdir and run, delay in seconds)."""
    step = int(random.integers(done + 1, max(done + 2, steps - 4)))
    if kind == "start":
        wait = random.uniform(0.0, first_step_s)
        return (lambda workdir, run: time.monotonic() - run.began >= wait), 0.0
    if kind == "step":
        return (lambda workdir, run: logged_step(workdir) >= step), random.uniform(0.0, 0.05)
    if kind == "save":
        return (lambda workdir, run: checkpoints(workdir)[1] and logged_step(workdir) >= step), random.uniform(0.0, 0.03)
    if kind == "checksums":
        return (lambda workdir, run: checkpoints(workdir)[2] and logged_step(workdir) >= step), 0.0
    return (lambda workdir, run: logged_step(workdir) >= steps - 1), random.uniform(0.0, 0.1)


def where(workdir: pathlib.Path, before: int, last: int) -> str:
    """Describes when the kill happened; `before` was the newest checkpoint at the start, `last` is the last step."""
    steps, half_written, bare = checkpoints(workdir)
    if not (workdir / "config.json").exists() or logged_step(workdir) <= before:
        return "before the first step of the start"
    if half_written:
        return "during the last save" if logged_step(workdir) >= last else "during a save"
    if bare:
        return "after a save, before its checksums"
    if steps and steps[-1] == last:
        return "after the last save, before the exit"
    return "between two saves"


def write_arrays(folder: pathlib.Path, out: pathlib.Path) -> int:
    """Reads every array of a checkpoint and writes them into one file."""
    import jax
    import orbax.checkpoint as ocp

    found = {}
    for item in sorted(folder.iterdir()):
        if item.is_dir():
            for path, leaf in jax.tree_util.tree_flatten_with_path(ocp.StandardCheckpointer().restore(item))[0]:
                found[item.name + jax.tree_util.keystr(path)] = np.asarray(leaf)
    np.savez(out, **found)
    return 0


def final_state(workdir: pathlib.Path, last: int) -> dict[str, bytes]:
    """Every array of the last checkpoint: name -> bytes. Read in a child process, since JAX does not survive a fork."""
    out, log = (workdir.with_name(f"{workdir.name}{suffix}") for suffix in (".npz", ".log"))
    _, status = os.waitpid(in_child(lambda: write_arrays(workdir / "checkpoints" / str(last), out), log), 0)
    if status:
        raise SystemExit(f"the last checkpoint of {workdir} cannot be read: {log.read_text()[-2000:]}")
    with np.load(out) as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files}


def differing(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Names of arrays that are not bit-identical."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills_per_run", type=int, default=1, help="number of kills before a run is resumed to its end")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times")
    parser.add_argument("--warm", action="store_true", help="fork the runs from this process")
    parser.add_argument("--folder", default="", help="folder of the runs; a temporary folder by default")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder or tempfile.mkdtemp(prefix="kills-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(options.seed)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # two processes cannot share some accelerators
    if options.warm:
        for module in ("ddpm_jax.cli.main", "ddpm_jax.cli.train", "ddpm_jax.data.digits", "ddpm_jax.configs.defaults"):
            importlib.import_module(module)

    whole = folder / "whole"
    for _ in range(2):  # the first compiles
        shutil.rmtree(whole, ignore_errors=True)
        run = Run(whole, options)
        while not run.ended() and not logged_step(whole):
            time.sleep(0.01)
        first_step_s = time.monotonic() - run.began
        run.wait()
    expected = final_state(whole, options.steps)
    size = sum(map(len, expected.values()))
    print(f"{len(expected)} arrays, {size:,} bytes; first step after {first_step_s:.1f} s", flush=True)

    places, ends, wrong, killed = collections.Counter(), 0, 0, 0
    while killed < options.kills:
        workdir = folder / f"run{ends}"
        shutil.rmtree(workdir, ignore_errors=True)
        found: list[str] = []
        while len(found) < options.kills_per_run and killed < options.kills:
            before = max(checkpoints(workdir)[0], default=0)
            if before >= options.steps:
                break
            condition, delay = instant(KINDS[killed % len(KINDS)], random, first_step_s, before, options.steps)
            run = Run(workdir, options)
            while not run.ended() and not condition(workdir, run):
                time.sleep(0.001)
            time.sleep(delay)
            if run.ended():  # the run ended first: no kill
                run.wait()
                break
            run.kill()
            killed += 1
            found.append(where(workdir, before, options.steps))
            places[found[-1]] += 1
        if not found:
            continue
        Run(workdir, options).wait()
        difference = differing(expected, final_state(workdir, options.steps))
        ends, wrong = ends + 1, wrong + bool(difference)
        verdict = f"DIFFERS in {len(difference)}: {', '.join(difference[:3])}" if difference else "bit-identical"
        print(f"{killed:4d}  {verdict}  ({'; '.join(found)})", flush=True)
        if not difference:
            shutil.rmtree(workdir)
    print("\n| time of the kill | count |\n|---|---|")
    for place, count in places.most_common():
        print(f"| {place} | {count} |")
    print(f"\n{killed} kills, {ends} runs resumed to the end: {ends - wrong} bit-identical, {wrong} different")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
